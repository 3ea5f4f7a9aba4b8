"""Statistics of the prompts in a set of rollouts, before any gradient.

Selection strategies and the report read them: how often a prompt is solved, how much its rewards
vary, whether it has a gradient. Groups in memory have `rollout_statistics`; a file of any size is
summarised in batches, without its texts, by `summarise_rollout_file`. Torch-free.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol, get_args

import numpy as np
from numpy.typing import NDArray

from cropi.errors import InputError
from cropi.schema import RewardStatus, RolloutGroup, rewards_differ
from cropi.short_repr import ShortRepr

if TYPE_CHECKING:
    import pyarrow as pa

STATUSES: tuple[RewardStatus, ...] = get_args(RewardStatus)
GroupKind = Literal["informative", "all right", "all wrong", "all the same", "too few judged"]
GROUP_KINDS: tuple[GroupKind, ...] = get_args(GroupKind)
GROUP_SIZE = 8
"""Responses that a training step samples to a prompt, if nothing else is said."""
SUMMARY_COLUMNS = (
    "prompt_id",
    "reward",
    "reward_status",
    "finish_reason",
    "response_ids",
    "loss_mask",
)


@dataclass(frozen=True, slots=True, repr=False)
class RolloutStatistics(ShortRepr):
    """Arrays with one element per prompt [P], in the groups' order.

    `pass_rates` float64: the mean reward of the usable responses, or the share at or above the
    threshold; NaN without a usable response. `variances` float64: their population variance,
    which is p(1 - p) for rewards of 0 and 1. `informative`: whether the rewards differ, so that
    there is a gradient. `distinct`: responses with different token ids. `tokens`: those that the
    policy sampled. `statuses`: how many responses have each reward status.
    """

    prompt_ids: list[str]
    pass_rates: NDArray[np.float64]
    variances: NDArray[np.float64]
    informative: NDArray[np.bool_]
    distinct: NDArray[np.int64]
    tokens: NDArray[np.int64]
    statuses: dict[str, NDArray[np.int64]]


def rollout_statistics(
    groups: Sequence[RolloutGroup], threshold: float | None = None
) -> RolloutStatistics:
    """Return the statistics of groups; `threshold` turns rewards into passes first."""
    passes = [as_passes(group.rewards, threshold) for group in groups]
    nan = float("nan")
    return RolloutStatistics(
        prompt_ids=[group.prompt_id for group in groups],
        pass_rates=np.array([p.mean() if len(p) else nan for p in passes], dtype=np.float64),
        variances=np.array([p.var() if len(p) else nan for p in passes], dtype=np.float64),
        informative=np.array([group.informative for group in groups], dtype=bool),
        distinct=np.array([_distinct(group) for group in groups], dtype=np.int64),
        tokens=np.array([group.tokens for group in groups], dtype=np.int64),
        statuses={status: _count(groups, status) for status in STATUSES},
    )


def as_passes(rewards: NDArray[np.float64], threshold: float | None) -> NDArray[np.float64]:
    """Return rewards unchanged, or as 0 and 1 if there is a threshold to reach."""
    if threshold is None:
        return rewards
    return np.asarray(rewards >= threshold, dtype=np.float64)


def _distinct(group: RolloutGroup) -> int:
    return len({response.ids.tobytes() for response in group.responses})


def _count(groups: Sequence[RolloutGroup], status: str) -> NDArray[np.int64]:
    counts = [sum(r.reward_status == status for r in group.responses) for group in groups]
    return np.array(counts, dtype=np.int64)


@dataclass(frozen=True, slots=True, repr=False)
class PassHistory(ShortRepr):
    """How often each prompt [P] of a pool has passed, by round of sampling [R], oldest first.

    A round is a set of rollouts: the start policy's, what a later stage sampled again, the groups
    that a stage's training sampled. `passes` float64 [R, P] are sums of rewards, or of passes where
    there is a threshold, over `responses` int64 [R, P], the usable ones: 0 where a round did not
    sample the prompt. `unequal` [R, P]: whether their rewards differ; None: they are 0 and 1, so
    that the sums tell. `latest`: the same of the policy that ended each round. It is one policy's
    from the start in the first round; later ones may be a training's, which moves, so that only a
    prompt's last group of responses counts; None: all of them do.
    """

    passes: NDArray[np.float64]
    responses: NDArray[np.int64]
    unequal: NDArray[np.bool_] | None = None
    latest: PassHistory | None = None

    @property
    def rates(self) -> NDArray[np.float64]:
        """Pass rates [R, P]; NaN where a round has no usable response to the prompt."""
        sampled = np.where(self.responses > 0, self.responses, np.nan)
        return np.asarray(self.passes / sampled)

    @property
    def mixed(self) -> NDArray[np.bool_]:
        """Whether a round has better and worse responses [R, P] to a prompt."""
        if self.unequal is not None:
            return self.unequal
        return np.asarray((self.passes > 0) & (self.passes < self.responses))


class RewardedGroup(Protocol):
    """A prompt, and the rewards [K] of its usable responses; a `RolloutGroup` is one."""

    @property
    def prompt_id(self) -> str:
        """The prompt's id."""

    @property
    def rewards(self) -> NDArray[np.float64]:
        """The rewards, in the order of sampling."""


def pass_history(
    prompt_ids: Sequence[str],
    rounds: Iterable[Sequence[RewardedGroup]],
    threshold: float | None = None,
    group_size: int = GROUP_SIZE,
) -> PassHistory:
    """Count the passes of a pool's prompts in rounds of rollouts; other prompts are left out.

    `group_size` is how many responses to a prompt a training step samples.
    Raises InputError for a round without any of the pool's prompts.
    """
    place_of = {prompt_id: place for place, prompt_id in enumerate(prompt_ids)}
    whole, latest = [], []
    for index, groups in enumerate(rounds):
        of_pool = [group for group in groups if group.prompt_id in place_of]
        if not of_pool:
            raise InputError(
                f"round {index} of the history has no rollout of the pool's prompts; give the "
                "rollouts that were sampled of this pool, oldest first"
            )
        whole.append(_counted(place_of, of_pool, threshold))
        latest.append(_counted(place_of, of_pool, threshold, group_size) if index else whole[0])
    return PassHistory(*_stacked(whole), latest=PassHistory(*_stacked(latest)))


Counts = tuple[NDArray[np.float64], NDArray[np.int64], NDArray[np.bool_]]
"""Passes, usable responses, and whether their rewards differ: [P], or [R, P]."""


def _counted(
    place_of: Mapping[str, int],
    groups: Sequence[RewardedGroup],
    threshold: float | None,
    last: int = 0,
) -> Counts:
    """The counts [P] of one round, of the last so many responses to each prompt; 0: of all."""
    passes, responses = np.zeros(len(place_of)), np.zeros(len(place_of), np.int64)
    unequal = np.zeros(len(place_of), bool)
    for group in groups:
        rewards, place = group.rewards[-last:], place_of[group.prompt_id]
        passes[place] += as_passes(rewards, threshold).sum()
        responses[place] += len(rewards)
        unequal[place] |= len(rewards) > 1 and rewards_differ(rewards.min(), rewards.max())
    return passes, responses, unequal


def _stacked(counts: Sequence[Counts]) -> Counts:
    passes, responses, unequal = zip(*counts, strict=True)
    return np.array(passes), np.array(responses), np.array(unequal)


@dataclass(slots=True)
class GroupSummary:
    """The usable responses of one prompt: how many, and the range of their rewards."""

    count: int = 0
    total: float = 0.0
    least: float = float("inf")
    greatest: float = float("-inf")

    def add(self, reward: float) -> None:
        """Count one usable response."""
        self.count += 1
        self.total += reward
        self.least = min(self.least, reward)
        self.greatest = max(self.greatest, reward)

    @property
    def pass_rate(self) -> float | None:
        """The mean reward; None where no response was judged."""
        return self.total / self.count if self.count else None

    @property
    def kind(self) -> GroupKind:
        """Whether the group has a gradient, and if not, why (docs/method.md)."""
        if self.count >= 2 and rewards_differ(self.least, self.greatest):
            return "informative"
        return uninformative_kind(self.count, self.least, self.greatest)


def uninformative_kind(count: int, least: float, greatest: float) -> GroupKind:
    """Why a group of `count` judged responses with these extreme rewards has no gradient."""
    if count < 2:
        return "too few judged"
    if least >= 1:
        return "all right"
    return "all wrong" if greatest <= 0 else "all the same"


@dataclass(slots=True)
class RolloutFileSummary:
    """The groups of a rollout file by prompt, and counts over all its responses."""

    groups: dict[str, GroupSummary] = field(default_factory=dict)
    statuses: Counter[str] = field(default_factory=Counter)
    finish_reasons: Counter[str] = field(default_factory=Counter)
    tokens: int = 0

    @property
    def responses(self) -> int:
        """How many responses the file holds."""
        return sum(self.statuses.values())

    @property
    def informative(self) -> int:
        """How many prompts have a gradient."""
        return sum(g.kind == "informative" for g in self.groups.values())


def summarise_rollout_file(path: Path) -> RolloutFileSummary:
    """Summarise a rollout file of any size. Raises pyarrow's errors if it cannot be read."""
    import pyarrow.parquet as pq

    summary = RolloutFileSummary()
    with pq.ParquetFile(path) as file:
        present = [c for c in SUMMARY_COLUMNS if c in file.schema_arrow.names]
        for batch in file.iter_batches(batch_size=65536, columns=present):
            _add_batch(summary, batch)
    return summary


def _add_batch(summary: RolloutFileSummary, batch: pa.RecordBatch) -> None:
    lengths = _policy_tokens(batch)
    statuses = _texts(batch, "reward_status", "ok")
    summary.statuses.update(statuses)
    summary.finish_reasons.update(_texts(batch, "finish_reason", "stop"))
    summary.tokens += sum(lengths)
    ids, rewards = batch.column("prompt_id").to_pylist(), batch.column("reward").to_pylist()
    for prompt_id, reward, status, length in zip(ids, rewards, statuses, lengths, strict=True):
        group = summary.groups.setdefault(str(prompt_id), GroupSummary())
        if status == "ok" and length and reward is not None and reward == reward:
            group.add(float(reward))


def _policy_tokens(batch: pa.RecordBatch) -> list[int]:
    """The policy's own tokens in each response; without token ids every response counts as one."""
    import pyarrow.compute as pc

    if "response_ids" not in batch.schema.names:
        return [1] * batch.num_rows
    lengths = [int(n or 0) for n in pc.list_value_length(batch.column("response_ids")).to_pylist()]
    if "loss_mask" not in batch.schema.names:
        return lengths
    masks = batch.column("loss_mask").to_pylist()
    return [n if mask is None else sum(mask) for n, mask in zip(lengths, masks, strict=True)]


def _texts(batch: pa.RecordBatch, name: str, default: str) -> list[str]:
    if name not in batch.schema.names:
        return [default] * batch.num_rows
    return [str(v) for v in batch.column(name).to_pylist()]
