"""The order in which a stage visits its prompts, under our control and nobody else's."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from cropi.schema import derive_seed


def stage_order(prompt_ids: Sequence[str], visits: int, seed: int, offset: int = 0) -> list[str]:
    """Return `visits` prompt ids: whole epochs, each in a fresh order drawn from the seed.

    `offset` visits have been made already; a later stage on the same prompts goes on where the
    earlier one stopped, so that full-data training sees every prompt before any twice.
    """
    count = len(prompt_ids)
    ordered: list[str] = []
    epoch, skip = divmod(offset, count)
    while len(ordered) < visits:
        draw = np.random.default_rng(derive_seed(seed, "epoch", epoch)).permutation(count)
        ordered += [prompt_ids[i] for i in draw[skip:]]
        epoch, skip = epoch + 1, 0
    return ordered[:visits]
