"""What a stage with verl needs: of settings before it, and of the files that it leaves."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from cropi.errors import InputError
from cropi.execution.program import environment_for, interpreter_at, last_error
from cropi.policy.loading import load_policy
from cropi.policy.reference import PolicyRef
from cropi.schema import Prompt
from cropi.text import shown
from cropi.training import verl_check
from cropi.training.stage import StagePlan, loss_warnings, require_agreeing
from cropi.training.verl_config import LOSS, NORMALISATION, loss_of
from cropi.training.verl_settings import PYTHON_VARIABLE, VerlSettings

PLAIN = {"role", "content"}
"""The keys of a message that verl's rows hold as they are."""


def interpreter(settings: VerlSettings) -> str:
    """The interpreter that verl is in. Raises InputError if it is not there."""
    chosen = settings.python or os.environ.get(PYTHON_VARIABLE) or sys.executable
    return interpreter_at(chosen, "training.engine.python", "verl and cropi")


def require_settings(plan: StagePlan, settings: VerlSettings) -> None:
    """Raise InputError for settings that verl cannot keep, and prompts that it would change."""
    require_agreeing(settings, plan)
    if settings.nodes > 1 and not has_cluster(settings):
        raise InputError(
            "training.engine verl has several nodes only where training.engine.address or "
            "RAY_ADDRESS names the Ray cluster that they are in"
        )
    for prompt in plan.prompts:
        if prompt.messages is None or prompt.tools or prompt.continued is not None:
            raise InputError(
                f"training.engine verl applies the chat template to every prompt, and prompt "
                f"{shown(prompt.prompt_id, 60)} is {_kind(prompt)}; set chat: true for its source, "
                "or train with trl"
            )
        if more := next((m.keys() - PLAIN for m in prompt.messages if m.keys() - PLAIN), None):
            raise InputError(
                f"training.engine verl takes messages of role and content, and prompt "
                f"{shown(prompt.prompt_id, 60)} has {min(more)} too; leave such prompts out, or "
                "train with trl"
            )


def model_of(plan: StagePlan) -> str:
    """The folder or hub id of the stage's policy. Raises InputError for one of another kind."""
    if plan.start != plan.model.path:
        return plan.start  # what an earlier stage left
    checkpoint = PolicyRef(plan.start).plain_checkpoint
    if checkpoint is None:
        raise InputError(
            f"training.engine verl loads whole checkpoints, and {plan.start} is an adapter or a "
            "GGUF file; merge it into its model first, or train with trl"
        )
    return checkpoint


def _kind(prompt: Prompt) -> str:
    if prompt.messages is None:
        return "text"
    return "one with tools" if prompt.tools else "an answer that is begun"


def has_cluster(settings: VerlSettings) -> bool:
    """Whether verl joins a Ray cluster, which may have other GPUs than this machine."""
    return bool(settings.address or os.environ.get("RAY_ADDRESS"))


def warnings_of(plan: StagePlan, settings: VerlSettings) -> list[str]:
    """Sentences about where the objective of influence is not the loss that is trained on."""
    loss, has_kl = loss_of(settings)
    return loss_warnings(
        f"{LOSS} {loss}",
        NORMALISATION.get(loss, plan.normalisation),
        plan.normalisation,
        "the KL term of verl's config" if has_kl else "",
    )


def require_usable(settings: VerlSettings, overrides: Sequence[str]) -> None:
    """Raise InputError unless verl is there, accepts its config, and sees the GPUs."""
    python = interpreter(settings)
    answer = _asked(python, tuple(overrides))
    if answer["lacks"]:
        raise InputError(
            f"training.engine verl needs {' and '.join(answer['lacks'])} in the interpreter "
            f"{python}; install them there, or name another one as training.engine.python or "
            f"${PYTHON_VARIABLE} (docs/integrations/verl.md)"
        )
    if settings.gpus > answer["gpus"] and not has_cluster(settings):
        raise InputError(
            f"training.engine.gpus = {settings.gpus}, and verl's interpreter sees {answer['gpus']} "
            "GPUs; lower it, change CUDA_VISIBLE_DEVICES, or name a Ray cluster as "
            "training.engine.address"
        )


@cache
def _asked(python: str, overrides: tuple[str, ...]) -> dict[str, Any]:
    """What `verl_check` answers in verl's interpreter."""
    done = subprocess.run(
        [python, verl_check.__file__, *overrides],
        env=environment_for(python),
        capture_output=True,
        text=True,
        check=False,
    )
    try:
        answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    except (IndexError, ValueError):
        raise InputError(
            f"verl refuses the settings of training, or does not work, in the interpreter {python} "
            f"({last_error(done.stderr)}); correct training.engine"
        ) from None
    return answer


def require_shards(state: Path, step: int, settings: VerlSettings) -> None:
    """Raise InputError unless verl's checkpoint of a step is there for so many GPUs."""
    for rank in range(settings.devices):
        for kind in ("model", "optim", "extra_state"):
            name = f"{kind}_world_size_{settings.devices}_rank_{rank}.pt"
            file = state / f"global_step_{step}" / "actor" / name
            if not file.is_file():
                raise InputError(
                    f"{file} is missing, and verl cannot continue without it; keep training.engine "
                    f"and its GPUs as they were when step {step} was trained, or start with a "
                    "fresh optimizer"
                )


def require_merged(plan: StagePlan, folder: Path) -> None:
    """Raise InputError unless a folder has all weights of the stage's model, finite."""
    trusted = plan.model.trust_remote_code
    merged = load_policy(folder, device="cpu", trust_remote_code=trusted).model
    config = AutoConfig.from_pretrained(model_of(plan), trust_remote_code=trusted)
    with torch.device("meta"):
        start = AutoModelForCausalLM.from_config(config, trust_remote_code=trusted)
    shapes = {name: tuple(weight.shape) for name, weight in start.named_parameters()}
    for name, weight in merged.named_parameters():
        if shapes.pop(name, None) != tuple(weight.shape):
            raise InputError(
                f"verl's merged checkpoint has other weights than {plan.start}, first {name}; "
                "leave out overrides that change the model"
            )
    if shapes:
        raise InputError(f"verl's merged checkpoint lacks {min(shapes)}; see {plan.log}")
