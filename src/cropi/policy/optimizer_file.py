"""Reading `optimizer.pt`: Adam's moments under the numbers that torch gave its parameters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from torch import Tensor

from cropi.errors import InputError

FILE = "optimizer.pt"

FOREIGN = {
    "DeepSpeed's": ("global_step*", "latest"),
    "FSDP's": ("optimizer.bin", "optimizer_[0-9]*", "pytorch_model_fsdp*"),
    "a sharded": ("rank*-of-*-optimizer.pt", "optimizer.pt_*"),
}
"""Files that tell of another format, which keeps shards or flattened parameters."""

MOMENTS = ("max_exp_avg_sq", "exp_avg_sq")
"""Names of the second moment that Adam divides by; where AMSGrad keeps a maximum, it is that."""

MEND = "give a checkpoint trained in one process with optim=adamw_torch or adamw_torch_fused"


@dataclass(frozen=True)
class SavedAdam:
    """What was saved, by number: `groups` as the optimizer was made, moments of the updated.

    `names` are there, in the order of `groups`, only where the optimizer knew them.
    """

    file: Path
    groups: list[list[int]]
    names: list[list[str]] | None
    moments: dict[int, Tensor]
    steps: dict[int, int]
    beta2: float
    eps: float


def read_adam(checkpoint: Path) -> SavedAdam:
    """Read the optimizer of a checkpoint's folder.

    Raises InputError where there is none, or another than an unsharded, unquantised Adam.
    """
    file = _find(checkpoint)
    saved = _load(file)
    rows, groups = saved["state"], saved["param_groups"]
    _require_adam(file, rows)
    beta2, eps = _constants(file, groups)
    named = all("param_names" in group for group in groups)
    return SavedAdam(
        file,
        [list(group["params"]) for group in groups],
        [list(group["param_names"]) for group in groups] if named else None,
        {number: next(row[key] for key in MOMENTS if key in row) for number, row in rows.items()},
        {number: int(row["step"]) for number, row in rows.items()},
        beta2,
        eps,
    )


def _find(folder: Path) -> Path:
    """The optimizer's file; raises InputError where it is missing or in another format."""
    file = folder / FILE
    if file.is_file():
        return file
    for kind, patterns in FOREIGN.items():
        if found := sorted(p.name for pattern in patterns for p in folder.glob(pattern)):
            raise InputError(
                f"checkpoint {folder} keeps its optimizer in {kind} format ({found[0]}), which is "
                f"not read here; {MEND}, or compute influence without the optimizer"
            )
    raise InputError(
        f"checkpoint {folder} has no {FILE}, so no second moments are known; give a folder that "
        "transformers or TRL saved with its optimizer, or compute influence without it"
    )


def _load(file: Path) -> dict[str, Any]:
    """The optimizer's state, mapped from the file: of its two moments one is never read."""
    try:
        saved = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    except (OSError, RuntimeError, UnpicklingError, EOFError, ValueError) as error:
        reason = " ".join(str(error).split()).split(". ")[0][:200]
        raise InputError(f"{file} cannot be read ({reason}); {MEND}") from error
    if not isinstance(saved, dict) or not {"state", "param_groups"} <= saved.keys():
        found = ", ".join(map(str, saved)) if isinstance(saved, dict) else type(saved).__name__
        raise InputError(f"{file} holds {found}, not the state of a torch optimizer; {MEND}")
    return saved


def _require_adam(file: Path, rows: Mapping[Any, Mapping[str, Any]]) -> None:
    """Raise InputError unless every state is Adam's, in floating-point numbers."""
    if not rows:
        raise InputError(f"{file} holds no moments, so no step was trained; train at least one")
    if any(isinstance(number, str) for number in rows):
        raise InputError(f"{file} was consolidated from FSDP's shards, which is not read; {MEND}")
    for row in rows.values():
        moment = next((row[key] for key in MOMENTS if key in row), None)
        if "step" not in row or moment is None or not moment.is_floating_point():
            kept = ", ".join(f"{key} ({_kind(value)})" for key, value in row.items()) or "nothing"
            raise InputError(
                f"{file} keeps {kept} of a parameter, not Adam's step and exp_avg_sq as an "
                f"optimizer of plain numbers does (8-bit and factored ones do not); {MEND}"
            )


def _kind(value: object) -> str:
    """A dtype or a type, for a message."""
    return str(value.dtype) if isinstance(value, Tensor) else type(value).__name__


def _constants(file: Path, groups: Sequence[Mapping[str, Any]]) -> tuple[float, float]:
    """beta2 and eps, which all groups must share."""
    found = {(float(g["betas"][1]), float(g["eps"])) for g in groups if g["params"]}
    if len(found) != 1:
        raise InputError(f"{file} has groups of unlike (beta2, eps) {sorted(found)}; use one")
    return found.pop()
