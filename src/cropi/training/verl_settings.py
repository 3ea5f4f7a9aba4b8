"""Settings of the training engine `verl`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

from pydantic import AfterValidator, Field

from cropi.policy.settings import ModelConfig
from cropi.settings import Devices, PathText
from cropi.text import shown
from cropi.training.settings import TrainerSettings, TrainingConfig

DTYPES = {"float32": "fp32", "bfloat16": "bf16"}
"""What verl calls a dtype of training."""
PYTHON_VARIABLE = "CROPI_VERL_PYTHON"


def _dotted(values: Mapping[str, Any], above: str = "") -> dict[str, Any]:
    """Return overrides by their dotted keys. Raises ValueError for what is not a key."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        key = f"{above}{name}"
        if not re.fullmatch(r"\+{0,2}[A-Za-z_]\w*(\.\w+)*", key):
            raise ValueError(
                f"{shown(key)} is not a key of verl's config; write keys such as "
                "trainer.project_name"
            )
        inner = _dotted(value, f"{key}.") if isinstance(value, Mapping) and value else {key: value}
        if twice := flat.keys() & inner.keys():
            raise ValueError(f"{min(twice)} appears twice; leave one of them out")
        flat |= inner
    return flat


class VerlSettings(TrainerSettings):
    """Settings of the training engine `verl`."""

    execution: ClassVar[frozenset[str]] = frozenset({"python", "address"})

    python: PathText | None = Field(
        None,
        description=f"interpreter that has verl and cropi; default: ${PYTHON_VARIABLE}, or cropi's",
    )
    gpus: Devices = Field(1, description="GPUs per node")
    nodes: Devices = Field(1, description="nodes of the Ray cluster that train together")
    address: str | None = Field(
        None,
        pattern=r"^(auto|[^:/\s]+:\d+)$",
        description="a running Ray cluster: auto or HOST:PORT; default: RAY_ADDRESS, or else verl "
        "starts Ray on this machine",
    )
    overrides: Annotated[dict[str, Any], AfterValidator(_dotted)] = Field(
        default_factory=dict,
        description="other keys of verl's config, such as "
        "{actor_rollout_ref.rollout.gpu_memory_utilization: 0.6}",
    )

    @property
    def devices(self) -> int:
        """The GPUs of all nodes."""
        return self.gpus * self.nodes

    def refusals(
        self, training: TrainingConfig, model: ModelConfig, dynamic_sampling: bool
    ) -> list[str]:
        """What verl cannot keep of the other settings."""
        rows = training.step_responses
        allowed = {
            "cannot replace dead groups and keep a stage's order; leave dynamic sampling out": (
                not dynamic_sampling
            ),
            "trains all weights; leave training.lora out": training.lora is None,
            "needs training.dtype float32 or bfloat16": training.dtype in DTYPES,
            f"has {self.devices} GPUs, which do not divide a step of {rows} responses "
            "(prompts_per_step x responses); choose a divisor": rows % self.devices == 0,
            f"trains on GPUs, and model.device = {model.device}; leave it at auto, and choose GPUs "
            "by CUDA_VISIBLE_DEVICES": model.device in ("auto", "cuda"),
            f"takes no revision, and model.revision = {model.revision}; download it, and give its "
            "folder as model.path": model.revision is None,
        }
        problems = [problem for problem, is_allowed in allowed.items() if not is_allowed]
        return [f"training.engine verl {problem}" for problem in problems]
