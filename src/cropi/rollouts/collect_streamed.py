"""Collecting from an engine that streams: what arrives is judged and stored, in order of arrival.

Parts are atomic files that hold whichever prompts came next; a collection that was killed asks for
the prompts that no part has. A prompt's seed depends on its id alone, not on what else is asked.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from cropi.progress import ProgressCallback
from cropi.rollouts.engines.engine import Completion, StreamingEngine
from cropi.rollouts.judged_groups import EncodedPrompts
from cropi.rollouts.rollout_file import read_rollouts, write_rollouts
from cropi.schema import RolloutGroup, derive_seed, fingerprint
from cropi.store.cached import is_current, stamp

PART_PROMPTS = 64
PART_SECONDS = 20.0
"""A part is written when it has so many prompts, or so long after the one before it."""


def collect_streamed(
    engine: StreamingEngine,
    prompts: EncodedPrompts,
    folder: Path,
    inputs_fingerprint: str,
    progress: ProgressCallback | None = None,
) -> list[RolloutGroup]:
    """Sample and judge every prompt that no part in `folder` has; return all groups in order.

    `progress` is called with (prompts done, prompts in all). Whatever stops it, what had arrived is
    stored.
    """
    parts = _Parts(folder, fingerprint(inputs_fingerprint, "streamed"), prompts)
    groups = parts.read()
    members = [m for m, p in enumerate(prompts.prompts) if p.prompt_id not in groups]
    done = len(groups)
    for new in parts.written(_stream(engine, prompts, members)):
        groups |= new
        done += len(new)
        if progress is not None:
            progress(done, len(prompts.prompts))
    return [groups[prompt.prompt_id] for prompt in prompts.prompts]


def _stream(
    engine: StreamingEngine, prompts: EncodedPrompts, members: Sequence[int]
) -> Iterator[tuple[int, list[Completion]]]:
    """Yield the completions of the prompts at these positions, longest prompts asked first."""
    ordered = sorted(members, key=lambda m: (-len(prompts.encoded[m]), m))
    plan = prompts.plan
    seeds = [derive_seed(plan.seed, "prompt", prompts.prompts[m].prompt_id) for m in ordered]
    rows = [prompts.encoded[m] for m in ordered]
    for index, completions in engine.stream(rows, plan.sampling, plan.responses, seeds):
        yield ordered[index], completions


@dataclass
class _Parts:
    """The files of what has been stored so far, all made from the same inputs."""

    folder: Path
    inputs_fingerprint: str
    prompts: EncodedPrompts
    _waiting: list[tuple[int, list[Completion]]] = field(default_factory=list)

    def read(self) -> dict[str, RolloutGroup]:
        """Return the stored groups by prompt id."""
        paths = [p for p in self._paths() if is_current(p, self.inputs_fingerprint)]
        return {group.prompt_id: group for path in paths for group in read_rollouts(path)}

    def written(
        self, stream: Iterator[tuple[int, list[Completion]]]
    ) -> Iterator[dict[str, RolloutGroup]]:
        """Judge and store what the stream yields; yield each part after it has been written."""
        began = time.monotonic()
        try:
            for item in stream:
                self._waiting.append(item)
                if len(self._waiting) >= PART_PROMPTS or time.monotonic() - began > PART_SECONDS:
                    yield self._write()
                    began = time.monotonic()
        except BaseException:
            if self._waiting:
                self._write()
            raise
        if self._waiting:
            yield self._write()

    def _write(self) -> dict[str, RolloutGroup]:
        waiting, self._waiting = self._waiting, []
        groups = self.prompts.judged([m for m, _ in waiting], [each for _, each in waiting])
        numbers = [int(path.stem) for path in self._paths()]
        path = self.folder / f"{max(numbers, default=-1) + 1:06d}.parquet"
        write_rollouts(path, groups, stamp(self.inputs_fingerprint))
        return {group.prompt_id: group for group in groups}

    def _paths(self) -> list[Path]:
        return sorted(p for p in self.folder.glob("*.parquet") if p.stem.isdecimal())
