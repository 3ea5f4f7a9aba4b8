"""Rows of metrics.jsonl and timings.jsonl: one typed class per kind, one writer, one reader.

Every line is a JSON object. In metrics.jsonl its "kind" names the class here; in timings.jsonl a
"phase" of "clock" is a `ClockRow` and any other a `TimingRow`. Optional fields that do not apply
are left out. The reader takes lines that may still be being written: what is not JSON, or lacks
what its kind has, is counted, and rows of a kind or shape that it does not know are kept as they
are (`UnknownRow`), so that files of older and newer versions can be read. `FORMAT` goes up when a
field changes its meaning; the run's manifest records it.

Costs are counted everywhere in the same way: a token costs 2 FLOPs per parameter forward, 2
backward through the activations and 2 for the gradient of the weights. Attention's own products are
left out, as is usual; they are small at these lengths.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import Field, asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from cropi.store.files import read_partial_jsonl, write_jsonl

FORMAT = 1
METRICS, TIMINGS = "metrics.jsonl", "timings.jsonl"
SHARED_COSTS, START_EVALUATION = "costs.jsonl", "start_evaluation.jsonl"
FORWARD, FORWARD_BACKWARD = 2, 6
CLOCK = "clock"
"""The phase of a `ClockRow` in timings.jsonl."""


@dataclass(frozen=True, kw_only=True)
class EvaluationRow:
    """Accuracy of a policy on one set after `step` optimizer steps of an arm.

    `pass_at` maps k to pass@k, which is NaN where no prompt could be judged; `statuses` counts the
    responses by reward status. `sampled_tokens` and `prompt_tokens` are what this evaluation cost;
    `generated_tokens`, `prefill_tokens` and `trained_tokens` what training had cost the arm up to
    here. The start policy's evaluation belongs to no arm until an arm's first stage copies it.
    """

    kind: ClassVar[str] = "evaluation"
    step: int
    set: str
    targeted: bool = False
    prompts: int = 0
    pass_at: Mapping[int, float] = field(default_factory=dict)
    statuses: Mapping[str, int] = field(default_factory=dict)
    sampled_tokens: int = 0
    prompt_tokens: int = 0
    generated_tokens: int = 0
    prefill_tokens: int = 0
    trained_tokens: int = 0
    arm: str = ""
    stage: int | None = None


@dataclass(frozen=True, kw_only=True)
class TrainRow:
    """The trainer's log at one optimizer step; on disk `values` lie beside the other fields."""

    kind: ClassVar[str] = "train"
    arm: str
    step: int
    stage: int | None = None
    values: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class StageRow:
    """What a finished stage selected and trained on.

    `negative` counts selected prompts of negative influence, `targets` holds the reliability of
    each target direction by name, `prompts_sampled` counts those that training sampled, and
    `uninformative_trained` the groups without a gradient that it trained on.
    """

    kind: ClassVar[str] = "stage"
    arm: str
    stage: int
    steps: int = 0
    selected: int = 0
    negative: int = 0
    notes: Sequence[str] = ()
    targets: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    reward_statuses: Mapping[str, int] = field(default_factory=dict)
    prompts_sampled: int = 0
    uninformative_trained: int = 0


@dataclass(frozen=True, kw_only=True)
class CostRow:
    """Tokens and FLOPs of one phase; `arm` is empty and `stage` absent where all arms share it.

    `tokens_generated` were sampled, `tokens_forward` went through the model once more (prompts
    included), and `tokens_backward` of those also came back with gradients. Shared rollouts name
    the `set` (pool or validation) and the `arms` that use, and therefore pay for, them.
    """

    kind: ClassVar[str] = "cost"
    phase: str
    arm: str = ""
    stage: int | None = None
    tokens_generated: int = 0
    tokens_forward: int = 0
    tokens_backward: int = 0
    flops: float = 0
    set: str | None = None
    arms: Sequence[str] | None = None


@dataclass(frozen=True, kw_only=True)
class TimingRow:
    """Wall time in seconds of one phase, phases inside it left out; `set` and `arms` as costs."""

    phase: str
    seconds: float
    arm: str = ""
    stage: int | None = None
    set: str | None = None
    arms: Sequence[str] | None = None


@dataclass(frozen=True, kw_only=True)
class ClockRow:
    """Seconds that an arm had trained for at a step, evaluations left out."""

    phase: ClassVar[str] = CLOCK
    arm: str
    step: int
    seconds: float
    stage: int = 0


@dataclass(frozen=True)
class UnknownRow:
    """A row of a kind or shape that this version does not know, as it was read."""

    values: Mapping[str, Any]


MetricsRow = EvaluationRow | TrainRow | StageRow | CostRow
AnyRow = MetricsRow | TimingRow | ClockRow | UnknownRow
KINDS: dict[str, type[MetricsRow]] = {
    row.kind: row for row in (EvaluationRow, TrainRow, StageRow, CostRow)
}
Kind = TypeVar("Kind", bound=AnyRow)
Amount = TypeVar("Amount", int, float)


@dataclass(frozen=True)
class Rows:
    """Rows in the order of their file, and how many lines were no JSON or no row of any version."""

    rows: Sequence[AnyRow] = ()
    unreadable: int = 0

    def of_kind(self, kind: type[Kind]) -> list[Kind]:
        """Return the rows of one class."""
        return [row for row in self.rows if isinstance(row, kind)]


def flops_of(parameters: int, generated: Amount, forward: Amount, backward: Amount) -> Amount:
    """Floating-point operations of tokens in a model, counted as in `cost_row`."""
    return parameters * (FORWARD * (generated + forward) + (FORWARD_BACKWARD - FORWARD) * backward)


def cost_row(
    phase: str,
    parameters: int,
    arm: str = "",
    stage: int | None = None,
    *,
    generated: int = 0,
    forward: int = 0,
    backward: int = 0,
    **shared: Any,
) -> CostRow:
    """Return the cost of tokens in a model with so many parameters; `shared` are `set` and `arms`.

    `generated` tokens were sampled, `forward` went through the model once more, and `backward` of
    those also came back with gradients.
    """
    flops = flops_of(parameters, generated, forward, backward)
    return CostRow(
        phase=phase,
        arm=arm,
        stage=stage,
        tokens_generated=generated,
        tokens_forward=forward,
        tokens_backward=backward,
        flops=flops,
        **shared,
    )


def write_rows(path: Path, rows: Iterable[AnyRow]) -> None:
    """Write rows atomically. Raises InputError if the file cannot be written."""
    write_jsonl(path, [to_json(row) for row in rows])


def append_row(path: Path, row: AnyRow) -> None:
    """Append one row, as timings are written while a run works."""
    with path.open("a", encoding="utf-8") as handle:
        handle.write(json.dumps(to_json(row)) + "\n")


def read_rows(path: Path) -> Rows:
    """Read a file of rows that may be half written; a missing file has none.

    A row without a kind, or without what its kind has, is kept, and counted as unreadable.
    """
    raw, unreadable = read_partial_jsonl(path)
    rows = [from_json(row) for row in raw]
    return Rows(rows, unreadable + sum(map(_is_damaged, rows)))


def _is_damaged(row: AnyRow) -> bool:
    """Whether a row is of no version: its kind is known, or not there, and it does not fit."""
    if not isinstance(row, UnknownRow):
        return False
    return "kind" not in row.values or str(row.values["kind"]) in KINDS


def to_json(row: AnyRow) -> dict[str, Any]:
    """Return a row as the JSON object of its line."""
    if isinstance(row, UnknownRow):
        return dict(row.values)
    tag = {"phase": row.phase} if isinstance(row, ClockRow) else {}
    if isinstance(row, MetricsRow):
        tag = {"kind": row.kind}
    values = {name: value for name, value in asdict(row).items() if value is not None}
    logged: dict[str, Any] = values.pop("values", {})
    return tag | values | logged


def from_json(raw: Mapping[str, Any]) -> AnyRow:
    """Return the typed row of a JSON object, or an UnknownRow if it does not fit."""
    kind: type[AnyRow] | None = KINDS.get(str(raw.get("kind")))
    if "kind" not in raw and "phase" in raw:
        kind = ClockRow if raw["phase"] == CLOCK else TimingRow
    if kind is None:
        return UnknownRow(dict(raw))
    try:
        values = {
            f.name: _converted(f, raw[f.name])
            for f in fields(kind)
            if raw.get(f.name) is not None and f.name != "values"
        }
        if kind is TrainRow:
            columns = {"kind", *(f.name for f in fields(kind))}
            values["values"] = {name: raw[name] for name in raw if name not in columns}
        return kind(**values)
    except (TypeError, ValueError, AttributeError):
        return UnknownRow(dict(raw))


def _converted(column: Field[Any], value: Any) -> Any:
    """Return a JSON value as the type of its field. Raises if it is of another kind."""
    if column.name == "pass_at":
        return {int(k): float("nan") if p is None else float(p) for k, p in value.items()}
    expected = _EXPECTED[str(column.type).split("[")[0].split(" ")[0]]
    if not isinstance(value, expected) or (isinstance(value, bool) and bool not in expected):
        raise TypeError(f"{column.name} cannot be {value!r}")
    return value


_EXPECTED: dict[str, tuple[type, ...]] = {
    "int": (int,),
    "float": (int, float),
    "str": (str,),
    "bool": (bool,),
    "Mapping": (dict,),
    "Sequence": (list, tuple),
}
"""JSON types by the first word of a field's annotation, which is a string here."""
