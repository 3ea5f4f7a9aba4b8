"""Shards: runs of prompts with about equally many tokens, and files of arrays made from them.

How prompts are cut depends on them alone, never on how many workers there are, and what a shard
gives depends on its prompts alone: so the scores are the same bits for any number of workers.
"""

from __future__ import annotations

import os
import platform
import zipfile
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from cropi.schema import RolloutGroup
from cropi.store.files import atomic_write

LEAST_SHARDS = 32
"""Shards that a pool is cut into, if they are worth it: workers should end together."""
LEAST_TOKENS = 4_096
"""Tokens in a shard, about, unless the pool has fewer: handing one out has a price too."""
MOST_TOKENS = 1_000_000
"""Tokens in a shard, about: what is lost when a worker dies."""
FINGERPRINT = "fingerprint"
Arrays = Mapping[str, Any]


def cut(groups: Sequence[RolloutGroup], least: int = LEAST_SHARDS) -> list[range]:
    """Ranges of indices into `groups` with about equally many tokens, none empty."""
    if not groups:
        return []
    tokens_P = np.array([len(group.prompt_ids) + group.tokens for group in groups], np.int64)
    ends_P = np.cumsum(tokens_P)
    total = int(ends_P[-1])
    worth = max(1, min(least, total // LEAST_TOKENS))
    count = min(len(groups), max(worth, -(-total // MOST_TOKENS)))
    # The shard in which the middle of a prompt lies.
    shard_P = ((ends_P - tokens_P / 2) * count // ends_P[-1]).astype(np.int64)
    edges = [0, *(np.flatnonzero(np.diff(shard_P)) + 1).tolist(), len(groups)]
    return [range(start, end) for start, end in pairwise(edges)]


def content_of(groups: Sequence[RolloutGroup]) -> str:
    """A hash of everything in rollouts that gradients depend on."""
    digest = xxhash.xxh3_128()
    for group in groups:
        digest.update(f"{group.prompt_id}\0{group.sampling}\0{group.logprob_mode}".encode())
        digest.update(group.prompt_ids.tobytes())
        for each in group.responses:
            digest.update(f"{len(each.ids)} {each.reward!r} {each.reward_status}".encode())
            digest.update(each.ids.tobytes())
            digest.update(each.logprobs.tobytes())
            if each.loss_mask is not None:
                digest.update(each.loss_mask.tobytes())
    return digest.hexdigest()


def write_arrays(path: Path, arrays: Arrays, fingerprint: str) -> None:
    """Write arrays, atomically, with the fingerprint of what they were made from.

    Two processes may do that at once: each writes a file of its own first.
    """
    aside = path.with_name(f"{path.stem}.{platform.node()}-{os.getpid()}{path.suffix}")
    named: dict[str, Any] = {FINGERPRINT: np.array(fingerprint), **arrays}
    with atomic_write(aside) as part, part.open("wb") as file:
        np.savez(file, **named)
    os.replace(aside, path)


def read_arrays(path: Path, fingerprint: str) -> dict[str, np.ndarray] | None:
    """The arrays of a file; None if it is missing, damaged or made from something else."""
    try:
        with np.load(path, allow_pickle=False) as file:
            if str(file[FINGERPRINT]) != fingerprint:
                return None
            return {name: file[name] for name in file.files if name != FINGERPRINT}
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None


def is_made(path: Path, fingerprint: str) -> bool:
    """Whether a file is there and was made from the inputs with this fingerprint.

    Its arrays are checked when they are read.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            return str(file[FINGERPRINT]) == fingerprint
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return False
