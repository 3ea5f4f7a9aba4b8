"""Stored responses judged again, without sampling: another verifier, or a corrected answer."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from cropi.arguments import PROMPTS_FIX, require_list_of
from cropi.errors import InputError
from cropi.progress import ProgressCallback
from cropi.rollouts.rollout_file import as_groups, read_side_columns, write_rollouts
from cropi.schema import Prompt, Response, RolloutGroup
from cropi.short_repr import ShortRepr
from cropi.store.files import require_writable
from cropi.verifiers.settings import VerifiersConfig
from cropi.verifiers.verdict import Verdict

if TYPE_CHECKING:
    from cropi.verifiers import Judge

CHUNK = 64
"""Groups that are judged in one call, after which progress is reported."""


@dataclass(frozen=True, slots=True, repr=False)
class ChangedVerdict(ShortRepr):
    """A response whose reward or status is another than before."""

    prompt_id: str
    response_index: int
    before: Response
    after: Response


@dataclass(frozen=True, slots=True, repr=False)
class Rejudged(ShortRepr):
    """Groups with their new rewards, what changed, and why responses were not judged.

    `dropped` are the prompts whose answers cannot be read, where the settings drop those.
    """

    groups: list[RolloutGroup]
    changed: list[ChangedVerdict]
    reasons: Counter[str]
    dropped: list[str]


def judge(
    rollouts: Sequence[RolloutGroup] | str | Path,
    prompts: Sequence[Prompt],
    out: str | Path | None = None,
    *,
    verifier: str | VerifiersConfig | Judge | None = None,
    progress: ProgressCallback | None = None,
) -> Rejudged:
    """Judge stored responses again and return what changed; nothing is sampled.

    Args:
        rollouts: groups, or their file; columns of other tools in it are kept.
        prompts: with the answers; those without rollouts do not matter.
        out: the Parquet file to write; the one that is read may be replaced.
        verifier: a verifier's name, settings, or an open judge.
        progress: called with (groups done, groups in all).

    Raises:
        InputError: a group's prompt is missing, its answer cannot be read, or `out` cannot be
            written.
    """
    from cropi.verifiers import open_judge

    require_list_of(prompts, Prompt, "prompts", PROMPTS_FIX)
    if out is not None:
        require_writable(Path(out))
    groups = as_groups(rollouts)
    side_columns = read_side_columns(rollouts) if isinstance(rollouts, str | Path) else None
    asked = _prompts_of(groups, prompts)
    with open_judge(verifier) as open_one:
        readable = {prompt.prompt_id for prompt in open_one.readable(asked)}
        dropped = [group.prompt_id for group in groups if group.prompt_id not in readable]
        groups = [group for group in groups if group.prompt_id in readable]
        asked = [prompt for prompt in asked if prompt.prompt_id in readable]
        before = Counter(open_one.reasons)
        fresh: list[RolloutGroup] = []
        for start in range(0, len(groups), CHUNK):
            chunk = slice(start, start + CHUNK)
            fresh += _judged(open_one, groups[chunk], asked[chunk])
            if progress is not None:
                progress(len(fresh), len(groups))
        reasons = open_one.reasons - before
    if out is not None:
        write_rollouts(Path(out), fresh, side_columns=side_columns)
    return Rejudged(fresh, _changes(groups, fresh), reasons, dropped)


def _prompts_of(groups: Sequence[RolloutGroup], prompts: Sequence[Prompt]) -> list[Prompt]:
    """Return every group's prompt. Raises InputError if one is missing."""
    by_id = {prompt.prompt_id: prompt for prompt in prompts}
    missing = [group.prompt_id for group in groups if group.prompt_id not in by_id]
    if missing:
        raise InputError(
            f"{len(missing)} of {len(groups)} prompts with rollouts are not among the "
            f"{len(by_id)} prompts, the first is {missing[0]!r}; give the prompts that were sampled"
        )
    return [by_id[group.prompt_id] for group in groups]


def _judged(
    judge: Judge, groups: Sequence[RolloutGroup], prompts: Sequence[Prompt]
) -> list[RolloutGroup]:
    """Return groups with new verdicts; all are judged in one call."""
    pairs = [(p, r) for p, group in zip(prompts, groups, strict=True) for r in group.responses]
    verdicts = iter(
        judge.judge([(p, r.text) for p, r in pairs], [r.ids.tolist() for _, r in pairs])
    )
    return [
        replace(group, responses=[_with_verdict(r, next(verdicts)) for r in group.responses])
        for group in groups
    ]


def _with_verdict(response: Response, verdict: Verdict) -> Response:
    reward = float(verdict.reward) if verdict.status == "ok" else float("nan")
    return replace(response, reward=reward, reward_status=verdict.status)


def _changes(before: Sequence[RolloutGroup], after: Sequence[RolloutGroup]) -> list[ChangedVerdict]:
    return [
        ChangedVerdict(old.prompt_id, index, one, other)
        for old, new in zip(before, after, strict=True)
        for index, (one, other) in enumerate(zip(old.responses, new.responses, strict=True))
        if _shown(one) != _shown(other)
    ]


def _shown(response: Response) -> tuple[str, float | None]:
    """Return what may change; the reward of a response that was not judged is none."""
    judged = response.reward_status == "ok"
    return response.reward_status, response.reward if judged else None
