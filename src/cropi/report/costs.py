"""What a run cost, by arm and phase: seconds, tokens and FLOPs, rollouts and scoring included."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from cropi.report.numbers import Row

SHARED = "shared"
PHASES = (
    "setup",
    "prompts",
    "warmup",
    "rollouts",
    "scoring",
    "selection",
    "training",
    "evaluation",
    "report",
)


@dataclass(slots=True)
class Cost:
    """The bill of one phase in one arm (SHARED: paid once for all arms)."""

    arm: str
    phase: str
    seconds: float = 0.0
    tokens_generated: float = 0.0
    tokens_forward: float = 0.0
    tokens_backward: float = 0.0
    flops: float = 0.0

    @property
    def tokens(self) -> float:
        """Tokens sampled, and tokens run forward with or without backward."""
        return self.tokens_generated + self.tokens_forward


def costs(metrics: Iterable[Row], timings: Iterable[Row], arms: Sequence[str]) -> list[Cost]:
    """Add up cost rows and wall times; what all arms share comes first, phases in their order."""
    bill: dict[tuple[str, str], Cost] = {}
    for row in metrics:
        if row.get("kind") == "cost":
            _add_tokens(_entry(bill, row), row)
    for row in timings:
        if row.get("phase") not in (None, "clock"):
            _entry(bill, row).seconds += float(row.get("seconds") or 0)
    order = {arm: i for i, arm in enumerate([SHARED, *arms])}
    return sorted(
        bill.values(), key=lambda c: (order.get(c.arm, len(order)), _phase_place(c.phase))
    )


def _entry(bill: dict[tuple[str, str], Cost], row: Row) -> Cost:
    key = (str(row.get("arm") or SHARED), str(row["phase"]))
    return bill.setdefault(key, Cost(*key))


def _add_tokens(cost: Cost, row: Row) -> None:
    cost.tokens_generated += float(row.get("tokens_generated") or 0)
    cost.tokens_forward += float(row.get("tokens_forward") or 0)
    cost.tokens_backward += float(row.get("tokens_backward") or 0)
    cost.flops += float(row.get("flops") or 0)


def _phase_place(phase: str) -> tuple[int, str]:
    return (PHASES.index(phase) if phase in PHASES else len(PHASES), phase)
