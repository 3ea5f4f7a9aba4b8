"""Asks verl, in its own interpreter, whether it would train with these settings.

Run there as a script, so it imports nothing of cropi's. It ends with verl's own error where verl's
checks of its config fail; else the answer is a line of JSON: `lacks` lists packages that are not
there, and `gpus` counts the GPUs that are visible.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

SAMPLERS = ("vllm", "sglang")
"""Ways to sample whose packages have the names that verl knows them by."""


def composed(overrides: Sequence[str]) -> Any:
    """Return verl's config with these overrides."""
    import verl
    from hydra import compose, initialize_config_dir

    folder = str(Path(verl.__file__).parent / "trainer" / "config")
    with initialize_config_dir(folder, version_base=None):
        return compose("ppo_trainer", list(overrides))


def lacking(config: Any) -> list[str]:
    """The packages that training needs and that are not there."""
    sampler = config.actor_rollout_ref.rollout.name
    needed = ["cropi", *(["transfer_queue"] if config.trainer.use_v1 else [])]
    needed += [sampler] if sampler in SAMPLERS else []
    return [name for name in needed if importlib.util.find_spec(name) is None]


def main(overrides: Sequence[str]) -> dict[str, Any]:
    """Compose a config and have verl check it."""
    if importlib.util.find_spec("verl") is None:
        return {"lacks": ["verl"], "gpus": 0}
    import torch
    from verl.trainer.ppo.utils import need_critic, need_reference_policy
    from verl.utils.config import validate_config

    config = composed(overrides)
    validate_config(config, need_reference_policy(config), need_critic(config))
    return {"lacks": lacking(config), "gpus": torch.cuda.device_count()}


if __name__ == "__main__":
    with contextlib.redirect_stdout(sys.stderr):
        answer = main(sys.argv[1:])
    print(json.dumps(answer))
