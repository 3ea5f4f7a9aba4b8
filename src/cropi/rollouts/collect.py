"""Collecting rollouts: encode, sample, judge, store, in chunks that survive a kill.

Every finished chunk is an atomic file beside the result; a collection that was killed continues
with the first missing chunk. A chunk's prompts and its seed depend on the arguments alone, so the
result has the same bytes however often it was interrupted. What servers send is stored as it comes
(`collect_streamed`).
"""

from __future__ import annotations

import os
import platform
import shutil
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cropi.arguments import PROMPTS_FIX, require_list_of
from cropi.errors import InputError
from cropi.execution import Executor, Inline, WorkUnit, run_all
from cropi.plugins import code_of
from cropi.policy.reference import PolicyRef
from cropi.progress import ProgressCallback
from cropi.prompts.encoding import encode_all
from cropi.rollouts.checked_engine import load_engine
from cropi.rollouts.collect_streamed import collect_streamed
from cropi.rollouts.engines.engine import RolloutEngine, StreamingEngine, require_context
from cropi.rollouts.judged_groups import EncodedPrompts, SamplingPlan
from cropi.rollouts.rollout_file import read_rollouts, write_rollouts
from cropi.rollouts.settings import RolloutsConfig
from cropi.schema import (
    Prompt,
    RolloutGroup,
    derive_seed,
    fingerprint,
    unique,
)
from cropi.settings import given_or_default
from cropi.store.cached import is_current, stamp
from cropi.store.files import cannot_write, require_writable
from cropi.store.lock import exclusive_output
from cropi.verifiers.settings import VerifiersConfig
from cropi.verifiers.verdict import Grader, Tally, Tallying

if TYPE_CHECKING:
    from cropi.policy.loading import Policy
    from cropi.verifiers import Judge

IF_UNITS_FAIL = (
    "the same command continues with the chunks that are finished, which are in {}; if memory ran "
    "out, use fewer workers, or lower rollouts.engine.batch_size, with which all is sampled again"
)
"""What to do where no worker could finish a chunk."""


def collect(
    engine: RolloutEngine,
    policy: PolicyRef,
    prompts: Sequence[Prompt],
    judge: Grader,
    plan: SamplingPlan,
    out: Path,
    inputs_fingerprint: str,
    progress: ProgressCallback | None = None,
    executor: Executor | None = None,
) -> Path:
    """Sample and judge responses to every prompt into the Parquet file `out`.

    Groups keep the order of `prompts`. If `out` was already made from `inputs_fingerprint`,
    nothing is done; finished chunks in `out` + ".parts" are used if they were made from the same.

    Args:
        engine: samples from `policy`.
        policy: encodes prompts and decodes responses; its identity is recorded in every row.
        prompts: with distinct ids.
        judge: rewards the responses' texts.
        plan: how many responses are sampled, and how.
        out: the Parquet file to write.
        inputs_fingerprint: fingerprint of everything that determines the result.
        progress: called with (prompts done, prompts in all) after each chunk.
        executor: runs the chunks; default: one after the other in this process. One that runs them
            elsewhere pickles `engine`, `policy` and `judge`; a pickled model's log-probs differ in
            the last bits, so an engine should load its weights where it runs. An engine that
            streams has no chunks: a server samples many prompts at once as it is.

    Returns:
        `out`.

    Raises:
        InputError: a prompt is empty, appears twice or exceeds the context, or `out` cannot be
            written.
    """
    if is_current(out, inputs_fingerprint):
        return out
    encoded = _encode(policy.tokenizer, prompts, plan, engine.context)
    all_prompts = EncodedPrompts(policy, prompts, encoded, judge, plan)
    parts = _parts_folder(out)
    if isinstance(engine, StreamingEngine):
        groups = collect_streamed(engine, all_prompts, parts, inputs_fingerprint, progress)
        write_rollouts(out, groups, stamp(inputs_fingerprint))
        shutil.rmtree(parts)
        return out
    sampler, chunks = _ChunkSampler(engine, all_prompts), _chunks(encoded, plan.chunk_prompts)
    part_fingerprint = fingerprint(inputs_fingerprint, plan.chunk_prompts)
    units = _missing_chunks(sampler, chunks, parts, part_fingerprint)
    done = len(prompts) - sum(len(unit.arguments[0]) for unit in units)
    if done and progress is not None:
        progress(done, len(prompts))
    with executor or Inline() as chosen:
        for finished in run_all(chosen, units, "chunk", IF_UNITS_FAIL.format(parts)):
            written: Written = finished.value
            written.count_in(judge)
            done += written.prompts
            if progress is not None:
                progress(done, len(prompts))
    _join(parts, chunks, out, inputs_fingerprint)
    return out


def rollout(
    policy: Policy | PolicyRef | str | Path,
    prompts: Sequence[Prompt],
    out: str | Path,
    settings: RolloutsConfig | None = None,
    *,
    verifier: str | VerifiersConfig | Judge | None = None,
    seed: int = 0,
    template_kwargs: Mapping[str, Any] | None = None,
    inputs_fingerprint: str | None = None,
    executor: Executor | None = None,
    progress: ProgressCallback | None = None,
) -> list[RolloutGroup]:
    """Sample and judge responses of a policy, store them in the Parquet file `out`, return them.

    A call that was killed continues where it stopped, and one whose `out` exists and was made from
    the same inputs samples nothing.

    Args:
        policy: a loaded policy, a reference, or a path, hub id or built-in name.
        prompts: with distinct ids.
        out: the Parquet file to write.
        settings: engine, sampling and responses per prompt.
        verifier: a verifier's name, settings, or an open judge that has checked the prompts.
        seed: of the sampling.
        template_kwargs: arguments of the chat template.
        inputs_fingerprint: of everything that determines the result; default: computed here.
        executor: has chunks of prompts sampled and judged by workers, as in `collect`.
        progress: called with (prompts done, prompts in all).

    Raises:
        InputError: a prompt is empty, appears twice or exceeds the context, a verifier cannot
            judge them, or `out` cannot be written.
    """
    from cropi.verifiers import Judge, open_judge

    settings = given_or_default(settings, RolloutsConfig, "settings")
    require_list_of(prompts, Prompt, "prompts", PROMPTS_FIX)
    require_writable(Path(out))
    reference = PolicyRef.of(policy)
    engine = load_engine(settings.engine, reference)
    plan = SamplingPlan(settings.sampling, settings.responses, seed, template_kwargs)
    with exclusive_output(Path(out)), open_judge(verifier) as judge:
        if not isinstance(verifier, Judge):
            prompts = judge.readable(prompts)
        reference.require_same_tokens([p.content for p in prompts])
        inputs_fingerprint = inputs_fingerprint or fingerprint(
            reference.identity,
            settings.result_settings,
            judge.settings.model_dump(),
            seed,
            template_kwargs,
            [(p.prompt_id, p.content, p.answer) for p in prompts],
            *judge.code,
            *filter(None, [code_of("engine", settings.engine.name)]),
        )
        place = Path(out).absolute() if executor else Path(out)
        collect(
            engine, reference, prompts, judge, plan, place, inputs_fingerprint, progress, executor
        )
    groups = read_rollouts(out)
    if note := tokens_without_text(groups, reference.tokenizer):
        warnings.warn(f"{out}: {note}", stacklevel=2)
    return groups


def tokens_without_text(groups: Sequence[RolloutGroup], tokenizer: Any) -> str | None:
    """Say how many sampled ids the tokenizer does not have: models may have more rows than it."""
    size = len(tokenizer)
    counts = [int((response.ids >= size).sum()) for group in groups for response in group.responses]
    if not sum(counts):
        return None
    affected = sum(map(bool, counts))
    return (
        f"{sum(counts):,} sampled tokens in {affected:,} of {len(counts):,} responses have ids "
        f"from {size} on, which the tokenizer does not have: they have no text, and count as tokens"
    )


def _encode(
    tokenizer: Any, prompts: Sequence[Prompt], plan: SamplingPlan, context: int
) -> list[list[int]]:
    """Return the token ids of every prompt.

    Raises InputError without prompts, or if an id appears twice or a prompt is empty or too long.
    """
    ids = [prompt.prompt_id for prompt in prompts]
    if not ids:
        raise InputError("there are no prompts to sample; give at least one")
    if not unique(ids):
        repeated = next(i for i in ids if ids.count(i) > 1)
        raise InputError(f"prompt_id {repeated!r} appears twice; give every prompt its own id")
    encoded = encode_all(tokenizer, prompts, plan.template_kwargs)
    require_context(list(zip(ids, encoded, strict=True)), plan.sampling.max_new_tokens, context)
    return encoded


@dataclass(frozen=True)
class Written:
    """A chunk that has been written: its prompts, and what a judge elsewhere counted meanwhile."""

    prompts: int
    tally: Tally | None = None

    def count_in(self, judge: Grader) -> None:
        """Add what was counted elsewhere to the judge here."""
        if self.tally is not None and isinstance(judge, Tallying):
            judge.add(self.tally.counts, self.tally.reasons)


@dataclass(frozen=True, slots=True)
class _ChunkSampler:
    """Everything that the chunks share."""

    engine: RolloutEngine
    prompts: EncodedPrompts

    def write(
        self, members: Sequence[int], index: int, part: Path, part_fingerprint: str
    ) -> Written:
        """Sample chunk `index`, the prompts at these positions.

        Two workers may do that at once: each writes a file of its own first.
        """
        groups = self.sample(members, derive_seed(self.prompts.plan.seed, "chunk", index))
        aside = part.with_name(f"{part.stem}.{platform.node()}-{os.getpid()}{part.suffix}")
        write_rollouts(aside, groups, stamp(fingerprint(part_fingerprint, index)))
        os.replace(aside, part)
        judge = self.prompts.judge
        return Written(len(members), judge.tally() if isinstance(judge, Tallying) else None)

    def sample(self, members: Sequence[int], seed: int) -> list[RolloutGroup]:
        """Sample and judge the prompts at these positions."""
        rows, plan = [self.prompts.encoded[m] for m in members], self.prompts.plan
        sampled = self.engine.generate(rows, plan.sampling, plan.responses, seed)
        return self.prompts.judged(members, sampled)


def _chunks(encoded: Sequence[Sequence[int]], size: int) -> list[list[int]]:
    """Split the prompts' positions into chunks, longest first: what does not fit fails early."""
    order = sorted(range(len(encoded)), key=lambda p: (-len(encoded[p]), p))
    return [order[start : start + size] for start in range(0, len(order), size)]


def _missing_chunks(
    sampler: _ChunkSampler, chunks: Sequence[Sequence[int]], parts: Path, part_fingerprint: str
) -> list[WorkUnit]:
    """Return a work unit for every chunk without a file that was made from the same inputs."""
    paths = [_part(parts, index) for index in range(len(chunks))]
    ids = [prompt.prompt_id for prompt in sampler.prompts.prompts]
    return [
        WorkUnit(
            f"chunk {index}, prompts {ids[members[0]]} to {ids[members[-1]]}",
            _ChunkSampler.write,
            (members, index, path, part_fingerprint),
            output=path,
            shared=sampler,
            speculative=True,
        )
        for index, (members, path) in enumerate(zip(chunks, paths, strict=True))
        if not is_current(path, fingerprint(part_fingerprint, index))
    ]


def _part(parts: Path, index: int) -> Path:
    return parts / f"{index:06d}.parquet"


def _parts_folder(out: Path) -> Path:
    """Make the folder for finished chunks; InputError before any work if it cannot be made."""
    parts = out.with_name(out.name + ".parts")
    try:
        parts.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise cannot_write(out, error) from error
    return parts


def _join(parts: Path, chunks: Sequence[Sequence[int]], out: Path, inputs_fingerprint: str) -> None:
    """Write the chunks' groups in the prompts' order, then remove the chunks."""
    placed: dict[int, RolloutGroup] = {}
    for index, members in enumerate(chunks):
        groups = read_rollouts(_part(parts, index))
        placed.update(zip(members, groups, strict=True))
    write_rollouts(
        out,
        [placed[p] for p in range(len(placed))],
        stamp(inputs_fingerprint),
    )
    shutil.rmtree(parts)
