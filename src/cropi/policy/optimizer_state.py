"""Adam's second moments by parameter name, from a checkpoint of transformers, TRL or cropi.

torch's optimizers save numbers, not names: a parameter's number is its place in the groups that
the optimizer was made with. So the groups are rebuilt, in every order in which a checkpoint may
have been written, and compared with what was saved: the size of every group and the shape of every
moment. Exactly one assignment must fit; none means another model, and two mean that shapes do not
decide.

Within one order, parameters of equal shape (a projection of layer 3 and of layer 7) are
distinguished by the model's order, as when training resumes: a file in which two such moments were
swapped by hand would pass.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from torch import Tensor, nn

from cropi.errors import InputError
from cropi.store.files import file_hash

OPTIMIZER_FILE = "optimizer.pt"
UNSUPPORTED_FORMATS = {
    "DeepSpeed's": ("global_step*", "latest"),
    "FSDP's": ("optimizer.bin", "optimizer_[0-9]*", "pytorch_model_fsdp*"),
    "a sharded": ("rank*-of-*-optimizer.pt", "optimizer.pt_*"),
}
"""Files of other formats, which store shards or flattened parameters."""
SECOND_MOMENT_KEYS = ("max_exp_avg_sq", "exp_avg_sq")
"""Names of the second moment that Adam divides by; AMSGrad's running maximum comes first."""
CHECKPOINT_HINT = (
    "give a checkpoint trained in one process with optim=adamw_torch or adamw_torch_fused"
)
MODEL_HINT = "give the model of that very checkpoint, with the adapters it was trained with"

Groups = list[list[str]]
Shape = tuple[int, ...]


@dataclass(frozen=True, eq=False)
class SecondMoments(Mapping[str, Tensor]):
    """Adam's `exp_avg_sq` by parameter name: fp32, in the parameter's shape, on the CPU.

    A parameter that never had a gradient is zero, after 0 steps. `steps` counts each parameter's
    updates, `source` is the file's hash, and `raw` holds the tensors as saved; a tensor is read
    from the file when it is asked for.
    """

    raw: Mapping[str, Tensor]
    steps: Mapping[str, int]
    beta2: float
    eps: float
    source: str = ""

    def __getitem__(self, name: str) -> Tensor:
        return self.raw[name].float()

    def __iter__(self) -> Iterator[str]:
        return iter(self.raw)

    def __len__(self) -> int:
        return len(self.raw)

    @property
    def step(self) -> int:
        """The largest number of updates of any parameter."""
        return max(self.steps.values())

    def corrected(self, name: str) -> Tensor:
        """v / (1 - beta2^t): the moment without the bias of its start at zero, fp32."""
        steps = self.steps[name]
        return self[name] / (1 - self.beta2**steps) if steps else self[name]


def second_moments(checkpoint: Path, model: nn.Module) -> SecondMoments:
    """Read the second moments in `checkpoint`, a folder with an `optimizer.pt`.

    `model` is the checkpoint's, for an adapter the PeftModel. Names are those of its
    `named_parameters`, for every parameter that the optimizer was given.

    Raises InputError if there is no such file, if another optimizer than a plain Adam wrote it, or
    if it does not verifiably belong to this model.
    """
    saved = _read_adam(Path(checkpoint))
    numbers = _assign_names(saved, model)
    parameters = dict(model.named_parameters())
    # Expanded from one number, zeros take no memory.
    raw = {
        name: saved.moments.get(number, torch.zeros(()).expand(parameters[name].shape))
        for name, number in numbers.items()
    }
    steps = {name: saved.steps.get(number, 0) for name, number in numbers.items()}
    return SecondMoments(raw, steps, saved.beta2, saved.eps, file_hash(saved.file))


@dataclass(frozen=True)
class _SavedAdam:
    """What was saved, by number: `groups` as the optimizer was made, moments of the updated.

    `names` are those of the parameters, in the order of `groups`, if the optimizer stored them.
    """

    file: Path
    groups: list[list[int]]
    names: Groups | None
    moments: dict[int, Tensor]
    steps: dict[int, int]
    beta2: float
    eps: float


def _read_adam(checkpoint: Path) -> _SavedAdam:
    """Read the optimizer of a checkpoint's folder.

    Raises InputError if there is none, or another than an unsharded, unquantised Adam.
    """
    file = _find_file(checkpoint)
    saved = _load(file)
    rows, groups = saved["state"], saved["param_groups"]
    _require_adam(file, rows)
    beta2, eps = _constants(file, groups)
    named = all("param_names" in group for group in groups)
    return _SavedAdam(
        file,
        [list(group["params"]) for group in groups],
        [list(group["param_names"]) for group in groups] if named else None,
        {number: _second_moment(row) for number, row in rows.items()},
        {number: int(row["step"]) for number, row in rows.items()},
        beta2,
        eps,
    )


def _find_file(folder: Path) -> Path:
    """Return the optimizer's file; raises InputError if it is missing or in another format."""
    file = folder / OPTIMIZER_FILE
    if file.is_file():
        return file
    for kind, patterns in UNSUPPORTED_FORMATS.items():
        if names := sorted(p.name for pattern in patterns for p in folder.glob(pattern)):
            raise InputError(
                f"checkpoint {folder} stores its optimizer in {kind} format ({names[0]}), which "
                f"cropi does not read; {CHECKPOINT_HINT}, or compute influence without the "
                "optimizer"
            )
    raise InputError(
        f"checkpoint {folder} has no {OPTIMIZER_FILE}, so its second moments are unknown; give a "
        "folder that transformers or TRL saved with its optimizer, or compute influence without it"
    )


def _load(file: Path) -> dict[str, Any]:
    """Return the optimizer's state, mapped from the file: one of its two moments is never read."""
    try:
        saved = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    except (OSError, RuntimeError, UnpicklingError, EOFError, ValueError) as error:
        reason = " ".join(str(error).split()).split(". ")[0][:200]
        raise InputError(f"{file} cannot be read ({reason}); {CHECKPOINT_HINT}") from error
    if not isinstance(saved, dict) or not {"state", "param_groups"} <= saved.keys():
        content = ", ".join(map(str, saved)) if isinstance(saved, dict) else type(saved).__name__
        raise InputError(
            f"{file} holds {content}, not the state of a torch optimizer; {CHECKPOINT_HINT}"
        )
    return saved


def _require_adam(file: Path, rows: Mapping[Any, Mapping[str, Any]]) -> None:
    """Raise InputError unless every state is Adam's, in floating-point numbers."""
    if not rows:
        raise InputError(f"{file} holds no moments, so no step was trained; train at least one")
    if any(isinstance(number, str) for number in rows):
        raise InputError(
            f"{file} was consolidated from FSDP's shards, which cropi does not read; "
            f"{CHECKPOINT_HINT}"
        )
    for row in rows.values():
        moment = _second_moment(row)
        if "step" not in row or moment is None or not moment.is_floating_point():
            state = ", ".join(f"{key} ({_kind(value)})" for key, value in row.items()) or "nothing"
            raise InputError(
                f"{file} stores {state} per parameter, not Adam's step and exp_avg_sq in floating "
                f"point (8-bit and factored optimizers do not have them); {CHECKPOINT_HINT}"
            )


def _second_moment(row: Mapping[str, Any]) -> Any:
    """Return the second moment that Adam divides by, or None."""
    return next((row[key] for key in SECOND_MOMENT_KEYS if key in row), None)


def _kind(value: object) -> str:
    """Return a dtype or a type, for a message."""
    return str(value.dtype) if isinstance(value, Tensor) else type(value).__name__


def _constants(file: Path, groups: Sequence[Mapping[str, Any]]) -> tuple[float, float]:
    """Return beta2 and eps, which all groups must share."""
    pairs = {(float(g["betas"][1]), float(g["eps"])) for g in groups if g["params"]}
    if len(pairs) != 1:
        raise InputError(f"{file} has groups with different (beta2, eps) {sorted(pairs)}; use one")
    return pairs.pop()


def _assign_names(saved: _SavedAdam, model: nn.Module) -> dict[str, int]:
    """Return the number in the file of each parameter that was trained, by name.

    Raises InputError if no assignment fits, or more than one.
    """
    shapes = {name: tuple(p.shape) for name, p in model.named_parameters()}
    if saved.names is None:
        candidates = parameter_groupings(model)
    else:
        candidates = _named_grouping(saved, saved.names, shapes)
    fitting: list[dict[str, int]] = []
    misfits = []
    for groups in candidates:
        matched, reason = _misfit(groups, shapes, saved)
        numbers = dict(zip(chain(*groups), chain(*saved.groups), strict=False))
        if reason:
            misfits.append((matched, reason))
        elif numbers not in fitting:
            fitting.append(numbers)
    if not fitting:
        # The grouping that fits furthest is most likely the one meant.
        _, reason = max(misfits, key=lambda misfit: misfit[0])
        raise InputError(f"{saved.file} is not of this model: {reason}; {MODEL_HINT}")
    if len(fitting) > 1:
        first, second = fitting[:2]
        name = next(n for n in first if first[n] != second.get(n))
        raise InputError(
            f"{saved.file} fits this model in {len(fitting)} ways, and shapes do not decide which "
            f"moments belong to {name} {shapes[name]}; {MODEL_HINT}"
        )
    return fitting[0]


def parameter_groupings(model: nn.Module) -> Iterator[Groups]:
    """Yield every grouping and order in which an optimizer may have been given the parameters.

    Split by either rule of transformers for weight decay, or in one group; of the trainable
    parameters, or of all of them, in case the model was partly frozen after training.
    """
    # named_parameters has tied weights once, under the first of their names, as in training.
    is_trainable = {name: p.requires_grad for name, p in model.named_parameters()}
    trainable = [name for name, flag in is_trainable.items() if flag]
    for names in (trainable, list(is_trainable)):
        for decay in (_decayed_names(model), _decayed_names_of_older_versions(model)):
            yield [[n for n in names if n in decay], [n for n in names if n not in decay]]
        yield [names]


def _decayed_names(model: nn.Module) -> set[str]:
    """Return the names to which the installed transformers applies weight decay."""
    from transformers import Trainer

    # The method uses nothing of its trainer, and making one would need training arguments.
    return set(Trainer.get_decay_parameter_names(None, model))


def _decayed_names_of_older_versions(model: nn.Module) -> set[str]:
    """Apply the rule of older versions: all but biases and the weights of an nn.LayerNorm."""
    norms = {n for n, module in model.named_modules() if isinstance(module, nn.LayerNorm)}
    names = [name for name, _ in model.named_parameters()]
    return {n for n in names if "bias" not in n and n.rpartition(".")[0] not in norms}


def _named_grouping(
    saved: _SavedAdam, names: Groups, shapes: Mapping[str, Shape]
) -> Iterator[Groups]:
    """Yield the grouping that the file names; raises InputError for a name that is not here."""
    unknown_name = next((name for name in chain(*names) if name not in shapes), None)
    if unknown_name is not None:
        raise InputError(
            f"{saved.file} has moments of {unknown_name}, which the model lacks; {MODEL_HINT}"
        )
    yield names


def _misfit(groups: Groups, shapes: Mapping[str, Shape], saved: _SavedAdam) -> tuple[int, str]:
    """Return how many parameters fit before the first that does not, and why; "" if all do."""
    model_sizes, saved_sizes = [len(g) for g in groups], [len(g) for g in saved.groups]
    if model_sizes != saved_sizes:
        first = next(chain(*groups), "none")
        return -1, (
            f"it was made with groups of {saved_sizes} parameters, and the model's, from {first} "
            f"on, have {model_sizes}"
        )
    pairs = zip(chain(*groups), chain(*saved.groups), strict=True)
    for matched, (name, number) in enumerate(pairs):
        moment = saved.moments.get(number)
        if moment is not None and tuple(moment.shape) != shapes[name]:
            return matched, (
                f"parameter {name} has shape {shapes[name]} and the moment in its place has "
                f"{tuple(moment.shape)}"
            )
    return len(shapes), ""
