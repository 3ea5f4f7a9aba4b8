"""The processes that compute gradients together, and what they tell each other.

Every rank has prompts of its own and sees the whole gradient of each, because FSDP2 gathers a
layer's weights before they are used. So a number that belongs to a prompt is computed by one rank
and zero on all others, and adding it up over the ranks gives it to everyone. Exchanges happen in
the same order on every rank: all of them run equally many batches, and make the same rows of the
same parameter at a time.

What is too large to be held whole, a vector over all parameters, is sharded by rows: rank r has
the rows r, r + W, r + 2W ... of each parameter seen as a matrix.

Ranks of a tensor parallel model share the prompts instead, and each has parts of the parameters and
of such vectors (`tensor_parts.py`): inner products and squared norms add up over them.

Shape legend: R rows, I width, X anything.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

from cropi.errors import InputError

LONGEST_WAIT = timedelta(hours=2)
"""For another process: loading a large checkpoint from a slow disk takes long."""


@dataclass(frozen=True)
class Ranks:
    """Process `rank` of `size` that work together; alone by default.

    They divide the prompts, or `share_prompts` and divide the parameters.
    """

    rank: int = 0
    size: int = 1
    share_prompts: bool = False

    @classmethod
    def joined(cls) -> Ranks:
        """The processes of torch's default group, or this one alone where there is none."""
        if not (distributed.is_available() and distributed.is_initialized()):
            return ALONE
        return cls(distributed.get_rank(), distributed.get_world_size())

    @classmethod
    def of(cls, model: nn.Module) -> Ranks:
        """The processes that hold parts of a model's weights; this one alone of any other model.

        Raises InputError where weights are split by FSDP2 and by layers, or by hand.
        """
        parts = [p.placements for p in model.parameters() if isinstance(p, DTensor)]
        if not parts:
            return ALONE
        joined = cls.joined()
        by_fsdp = any(isinstance(module, FSDPModule) for module in model.modules())
        by_layers = not by_fsdp and getattr(model, "tp_size", None) == joined.size
        if not (by_fsdp or by_layers):
            raise InputError(
                "the model's layers are split over processes in a way that transformers does not "
                f"report; load it with cropi.load_model(..., shards={joined.size}, split='tensor')"
            )
        if by_fsdp and any(sum(each.is_shard() for each in part) > 1 for part in parts):
            raise InputError(
                "the model is split by FSDP2 and by tensor parallelism; load it with "
                "DistributedConfig(fsdp_size=...) or DistributedConfig(tp_size=...) alone"
            )
        return replace(joined, share_prompts=by_layers)

    @property
    def prompt_ranks(self) -> Ranks:
        """The ranks that divide prompts, and rows of what is sharded: alone if they share all."""
        return ALONE if self.share_prompts else self

    def as_used(self, values: Tensor) -> Tensor:
        """A parameter's values, or their gradient, as far as this rank's layers use them."""
        if not isinstance(values, DTensor):
            return values
        return values.to_local() if self.share_prompts else values.full_tensor()

    @property
    def several(self) -> bool:
        """Whether there are others."""
        return self.size > 1

    def add_up(self, values: Tensor) -> Tensor:
        """Replace `values` by their sum over the ranks, and return them."""
        return _reduced(values, distributed.ReduceOp.SUM) if self.several else values

    def total(self, number: float) -> float:
        """The sum of one number of each rank."""
        return float(self.add_up(torch.tensor(number, dtype=torch.float64)))

    def largest(self, number: float) -> float:
        """The largest of one number of each rank."""
        if not self.several:
            return number
        value = torch.tensor(number, dtype=torch.float64)
        return float(_reduced(value, distributed.ReduceOp.MAX))

    def gather(self, value: Any) -> list[Any]:
        """One picklable value of each rank, in the ranks' order."""
        if not self.several:
            return [value]
        values: list[Any] = [None] * self.size
        distributed.all_gather_object(values, value)
        return values

    def union(self, rows_R: Tensor) -> Tensor:
        """The sorted rows that any rank names."""
        if not self.several:
            return rows_R
        named: Tensor = torch.cat(self.gather(rows_R.cpu())).unique()  # type: ignore[no-untyped-call]
        return named.to(rows_R.device)

    def own(self, rows: slice | Tensor, device: torch.device) -> tuple[Tensor, Tensor]:
        """Which of some rows this rank holds: their indices into `rows`, and into its own rows."""
        if isinstance(rows, slice):
            rows = torch.arange(rows.start, rows.stop, device=device)
        mine_R = (rows.to(device) % self.size == self.rank).nonzero().squeeze(1)
        return mine_R, rows.to(device)[mine_R] // self.size

    @property
    def rows(self) -> slice:
        """The rows of a matrix that this rank holds."""
        return slice(self.prompt_ranks.rank, None, self.prompt_ranks.size)

    def held(self, height: int) -> int:
        """How many rows of a matrix this rank holds."""
        return len(range(height)[self.rows])


def _reduced(values: Tensor, by: Any) -> Tensor:
    """All ranks' values made one, in place; through a GPU where the group is of GPUs alone."""
    if values.device.type in distributed.get_backend_config():
        distributed.all_reduce(values, by)
        return values
    moved = values.to(torch.device("cuda", torch.cuda.current_device()))
    distributed.all_reduce(moved, by)
    return values.copy_(moved)


ALONE = Ranks()


@contextmanager
def process_group() -> Iterator[None]:
    """Join the processes that torchrun has started, each with the GPU of its rank if there are any.

    Raises InputError if there are fewer GPUs than processes on this machine.
    """
    backend = "gloo"
    if gpus := torch.cuda.device_count():
        local = int(os.environ["LOCAL_RANK"])
        if local >= gpus:
            raise InputError(
                f"process {local} of this machine has no GPU, which has {gpus}; start as many "
                f"processes as GPUs, with torchrun --nproc-per-node {gpus}"
            )
        torch.cuda.set_device(local)
        backend = "cpu:gloo,cuda:nccl"
    distributed.init_process_group(backend, timeout=LONGEST_WAIT)
    yield
    # Not after an error: the others may be waiting for this process, which must end then.
    distributed.destroy_process_group()


def is_sharded(model: nn.Module) -> bool:
    """Whether weights are sharded over processes."""
    return any(isinstance(parameter, DTensor) for parameter in model.parameters())


def reshard(model: nn.Module) -> None:
    """Put weights back that FSDP2 has gathered: parameters are then the ones that it trains."""
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def tied_names(model: nn.Module) -> dict[str, str]:
    """The weights of a sharded model that are another one: its name, by theirs.

    FSDP2 holds weights that transformers ties while it loads as two of the same values. Of any
    other model the objects say what is tied.
    """
    if not is_sharded(model):
        return {}
    pairs = {
        (prefix, name): source
        for prefix, module in model.named_modules()
        for name, source in (getattr(module, "all_tied_weights_keys", None) or {}).items()
    }
    return {
        f"{prefix}.{name}".lstrip("."): f"{prefix}.{source}".lstrip(".")
        for (prefix, name), source in pairs.items()
    }


@contextmanager
def without_gradients(model: nn.Module) -> Iterator[None]:
    """Put aside what `grad` of the weights holds, so that one backward pass can be seen alone."""
    reshard(model)
    before = [(parameter, parameter.grad) for parameter in model.parameters()]
    for parameter, _ in before:
        parameter.grad = None
    try:
        yield
    finally:
        reshard(model)
        for parameter in model.parameters():
            parameter.grad = None
        for parameter, gradient in before:
            parameter.grad = gradient


def model_class_name(model: nn.Module) -> str:
    """The name of a model's class, which FSDP2 makes a class of its own of."""
    return type(model).__name__.removeprefix("FSDP")


def full_tensor(values: Tensor) -> Tensor:
    """The whole of a tensor that is sharded over processes; any other as it is."""
    return values.full_tensor() if isinstance(values, DTensor) else values


def is_divided(values: Tensor) -> bool:
    """Whether each process holds another part of a tensor."""
    return isinstance(values, DTensor) and not all(p.is_replicate() for p in values.placements)


def sharded_like(parameter: Tensor, gradient: Tensor) -> Tensor:
    """A gradient sharded as its parameter is: backward may leave addends, or all of it."""
    if not isinstance(gradient, DTensor) or not isinstance(parameter, DTensor):
        return gradient
    return gradient.redistribute(placements=parameter.placements)


def square_sum(values: Tensor) -> float:
    """Squared norm of a tensor, sharded or not, in float64."""
    norm = torch.linalg.vector_norm(values, dtype=torch.float64)
    return float(full_tensor(norm)) ** 2


def rounds(batches: Sequence[Any], size: int) -> list[Sequence[Any]]:
    """Batches that run at the same time, one on each of `size` ranks; the last may be fewer."""
    return [batches[start : start + size] for start in range(0, len(batches), size)]
