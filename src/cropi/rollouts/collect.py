"""Collecting rollouts: encode, sample, judge, store, in chunks that survive a kill.

Every finished chunk is an atomic file beside the result; a collection that was killed goes on
with the first chunk that is missing. A chunk's prompts and its seed depend on the arguments
alone, so however often it was interrupted, the result has the same bytes.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cropi.config import RolloutsConfig, VerifiersConfig
from cropi.errors import InputError
from cropi.prompts.encoding import encode_all
from cropi.rollouts.engines.engine import (
    Completion,
    RolloutEngine,
    load_engine,
    require_context,
)
from cropi.rollouts.rollout_file import read_rollouts, write_rollouts
from cropi.schema import (
    PolicyIdentity,
    Prompt,
    Response,
    RolloutGroup,
    Sampling,
    derive_seed,
    fingerprint,
    unique,
)
from cropi.store.cached import is_current, stamp
from cropi.store.files import cannot_write, require_writable
from cropi.verifiers.verdict import Grader, Verdict

if TYPE_CHECKING:
    from cropi.policy.loading import Policy
    from cropi.verifiers import Judge

Progress = Callable[[int, int], None]


def collect(
    engine: RolloutEngine,
    tokenizer: Any,
    prompts: Sequence[Prompt],
    judge: Grader,
    sampling: Sampling,
    responses: int,
    seed: int,
    out: Path,
    identity: PolicyIdentity,
    inputs_fingerprint: str,
    template_kwargs: Mapping[str, Any] | None = None,
    chunk: int = 128,
    progress: Progress | None = None,
) -> Path:
    """Sample and judge `responses` for every prompt into the Parquet file `out`.

    Groups keep the order of `prompts`. If `out` was already made from `inputs_fingerprint`,
    nothing is done; finished chunks in `out` + ".parts" are used if they were made from the same.

    Args:
        engine: samples from the policy called `identity`.
        tokenizer: the policy's; encodes prompts and decodes responses.
        prompts: with distinct ids.
        judge: rewards the responses' texts.
        sampling: how responses are drawn.
        responses: how many for each prompt.
        seed: chunk i draws from `derive_seed(seed, "chunk", i)`.
        out: the Parquet file to write.
        identity: recorded in every row.
        inputs_fingerprint: fingerprint of everything that determines the result.
        template_kwargs: arguments of the chat template.
        chunk: prompts between two saves.
        progress: called with (prompts done, prompts in all) after each chunk.

    Returns:
        `out`.

    Raises:
        InputError: a prompt is empty, stands twice or exceeds the context, or `out` cannot be
            written.
    """
    if is_current(out, inputs_fingerprint):
        return out
    encoded = encode_prompts(tokenizer, prompts, sampling, engine.context, template_kwargs)
    plan = _Plan(engine, tokenizer, prompts, encoded, judge, sampling, responses, seed, identity)
    parts = _parts_folder(out)
    part_fingerprint = fingerprint(inputs_fingerprint, chunk)
    chunks = _chunks(encoded, chunk)
    done = 0
    for index, members in enumerate(chunks):
        part = parts / f"{index:06d}.parquet"
        if not is_current(part, part_fingerprint):
            groups = plan.sample(members, derive_seed(seed, "chunk", index))
            write_rollouts(part, groups, stamp(part_fingerprint))
        done += len(members)
        if progress is not None:
            progress(done, len(prompts))
    _join(parts, chunks, out, inputs_fingerprint)
    return out


def rollout(
    policy: Policy | str | Path,
    prompts: Sequence[Prompt],
    out: str | Path,
    settings: RolloutsConfig | None = None,
    *,
    verifier: str | VerifiersConfig | Judge | None = None,
    seed: int = 0,
    template_kwargs: Mapping[str, Any] | None = None,
    inputs_fingerprint: str | None = None,
    progress: Progress | None = None,
) -> list[RolloutGroup]:
    """Sample and judge responses of a policy, store them in the Parquet file `out`, return them.

    A call that was killed continues where it stopped, and one whose `out` is there and was made
    from the same inputs samples nothing.

    Args:
        policy: a loaded policy, or a path, hub id or built-in name.
        prompts: with distinct ids.
        out: the Parquet file to write.
        settings: engine, sampling and responses per prompt.
        verifier: a verifier's name, settings, or an open judge that has checked the prompts.
        seed: of the sampling.
        template_kwargs: arguments of the chat template.
        inputs_fingerprint: stands for everything above; default: computed here.
        progress: called with (prompts done, prompts in all).

    Raises:
        InputError: a prompt is empty, appears twice or exceeds the context, a verifier cannot
            judge them, or `out` cannot be written.
    """
    from cropi.policy.loading import as_policy
    from cropi.verifiers import Judge, open_judge

    settings = settings or RolloutsConfig()
    require_writable(Path(out))
    loaded = as_policy(policy)
    engine = load_engine(settings.engine, loaded, settings.batch_size)
    with open_judge(verifier) as judge:
        if not isinstance(verifier, Judge):
            judge.check(prompts)
        path = collect(
            engine,
            loaded.tokenizer,
            prompts,
            judge,
            settings.sampling,
            settings.responses,
            seed,
            Path(out),
            loaded.identity,
            inputs_fingerprint
            or fingerprint(
                loaded.identity,
                settings.model_dump(),
                judge.settings.model_dump(),
                seed,
                template_kwargs,
                [(p.prompt_id, p.content, p.answer) for p in prompts],
            ),
            template_kwargs,
            progress=progress,
        )
    return read_rollouts(path)


def encode_prompts(
    tokenizer: Any,
    prompts: Sequence[Prompt],
    sampling: Sampling,
    context: int,
    template_kwargs: Mapping[str, Any] | None = None,
) -> list[list[int]]:
    """Return the token ids of every prompt.

    Raises InputError if there is no prompt, an id stands twice, or a prompt is empty or too long.
    """
    ids = [prompt.prompt_id for prompt in prompts]
    if not ids:
        raise InputError("there are no prompts to sample; give at least one")
    if not unique(ids):
        twice = next(i for i in ids if ids.count(i) > 1)
        raise InputError(f"prompt_id {twice!r} stands twice; give every prompt its own id")
    encoded = encode_all(tokenizer, prompts, template_kwargs)
    require_context(list(zip(ids, encoded, strict=True)), sampling.max_new_tokens, context)
    return encoded


def judge_completions(
    judge: Grader,
    tokenizer: Any,
    prompts: Sequence[Prompt],
    sampled: Sequence[Sequence[Completion]],
) -> list[list[tuple[Completion, str, Verdict]]]:
    """Return every completion with its text and verdict, by prompt; all are judged in one call.

    Verifiers read the text without EOS and other special tokens.
    """
    flat = [completion for group in sampled for completion in group]
    asked = [prompt for prompt, group in zip(prompts, sampled, strict=True) for _ in group]
    ids = [completion.ids.tolist() for completion in flat]
    texts = [tokenizer.decode(row, skip_special_tokens=True) for row in ids]
    verdicts = judge.judge(list(zip(asked, texts, strict=True)), ids)
    judged = iter(list(zip(flat, texts, verdicts, strict=True)))
    return [[next(judged) for _ in group] for group in sampled]


@dataclass(frozen=True, slots=True)
class _Plan:
    """Everything that the chunks have in common."""

    engine: RolloutEngine
    tokenizer: Any
    prompts: Sequence[Prompt]
    encoded: list[list[int]]
    judge: Grader
    sampling: Sampling
    responses: int
    seed: int
    identity: PolicyIdentity

    def sample(self, members: Sequence[int], seed: int) -> list[RolloutGroup]:
        """Sample and judge the prompts at these places."""
        rows = [self.encoded[m] for m in members]
        sampled = self.engine.generate(rows, self.sampling, self.responses, seed)
        prompts = [self.prompts[m] for m in members]
        judged = judge_completions(self.judge, self.tokenizer, prompts, sampled)
        return [
            RolloutGroup(
                prompt_id=self.prompts[member].prompt_id,
                prompt_ids=np.array(self.encoded[member], dtype=np.int32),
                responses=[_response(*outcome) for outcome in group],
                sampling=self.sampling,
                policy=self.identity,
                seed=self.seed,
            )
            for member, group in zip(members, judged, strict=True)
        ]


def _response(completion: Completion, text: str, verdict: Verdict) -> Response:
    """Return the response with its reward, NaN unless the verdict is ok."""
    return Response(
        ids=completion.ids,
        logprobs=completion.logprobs,
        text=text,
        finish_reason=completion.finish_reason,
        reward=float(verdict.reward) if verdict.status == "ok" else float("nan"),
        reward_status=verdict.status,
    )


def _chunks(encoded: Sequence[Sequence[int]], size: int) -> list[list[int]]:
    """Split the prompts' places into chunks, longest first: what does not fit fails early."""
    order = sorted(range(len(encoded)), key=lambda p: (-len(encoded[p]), p))
    return [order[start : start + size] for start in range(0, len(order), size)]


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
        groups = read_rollouts(parts / f"{index:06d}.parquet")
        placed.update(zip(members, groups, strict=True))
    write_rollouts(
        out,
        [placed[p] for p in range(len(placed))],
        stamp(inputs_fingerprint),
    )
    shutil.rmtree(parts)
