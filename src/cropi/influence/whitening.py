"""Whitened influence: what a prompt's gradient shares with a target that others' do not.

Directions that many gradients of a pool share (sharpening, the format of answers) make prompts look
helpful that teach nothing else of a target, and any training brings them anyway. In the metric
of the pool's second moment C = mean_q u_q u_q^T of unit gradients they weigh less, as in a natural
gradient:

    W(p, V) = ridge * u_p^T (C + ridge I)^-1 v

with v the target's unit direction. With inner products alone (Woodbury), and with the prompt itself
left out of C, since its own noise would count as shared:

    W(p, V) = k_p - (1/M) sum_q K_pq a_q,    a = (K/M + ridge I)^-1 k      p not among the M
    W(p, V) = a_p / [(K/M + ridge I)^-1]_pp                                p among them

with k_p = u_p . v the plain cosine and K_pq = u_p . u_q. W is the residual of a ridge regression of
the target's direction on the other prompts' gradients, seen by p: a cosine where nothing is shared.
(Projecting a target on the span of training gradients: Dr. Post-Training, arXiv 2605.07063.)

Shape legend: N prompts with a gradient, M of them in the sample, V targets, D dimensions.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from cropi.schema import SCORED

RIDGE = 0.003
"""Share of a unit gradient's square below which a direction counts as not shared."""
SAMPLE = 2048
"""Most prompts that stand for the pool; K has the square of this many entries."""
DIMENSIONS = 8192
"""Of the sketches that inner products between prompts are estimated from, where scores are exact:
an error of 0.011 in one cosine, far below a prompt's own noise."""

_BLOCK = 1024


def whitened(
    cosines_NV: NDArray[np.floating],
    sketches_ND: NDArray[np.floating],
    sample_M: NDArray[np.int64],
    ridge: float = RIDGE,
) -> NDArray[np.float64]:
    """Whitened influence [N, V] from plain cosines and sketches of gradients of any length.

    `sample_M` are the places of the prompts that C is taken over. A prompt whose sketch has no
    length keeps its cosine.
    """
    units_ND = _units(sketches_ND)
    units_MD = units_ND[sample_M]
    cosines_MV = cosines_NV[sample_M].astype(np.float64)
    count = max(1, len(sample_M))
    gram_MM = (units_MD @ units_MD.T).astype(np.float64) / count
    inverse_MM = np.linalg.inv(gram_MM + ridge * np.eye(len(sample_M)))
    weights_MV = inverse_MM @ cosines_MV
    out_NV = np.empty(cosines_NV.shape)
    for start in range(0, len(out_NV), _BLOCK):
        rows = slice(start, start + _BLOCK)
        shared_RV = (units_ND[rows] @ units_MD.T).astype(np.float64) @ weights_MV / count
        out_NV[rows] = cosines_NV[rows] - shared_RV
    out_NV[sample_M] = weights_MV / np.diag(inverse_MM)[:, None]
    return out_NV


def whitening_sample(prompt_ids: Sequence[str], statuses: Sequence[str]) -> NDArray[np.int64]:
    """Places of the prompts that stand for the pool: SAMPLE of those with a sound gradient."""
    sound = [place for place, status in enumerate(statuses) if status == SCORED]
    chosen = lowest_hashes([prompt_ids[place] for place in sound], SAMPLE)
    return np.array([sound[each] for each in chosen], np.int64)


def lowest_hashes(prompt_ids: Sequence[str], count: int) -> list[int]:
    """Places of a random but fixed choice: of the ids with the lowest hashes."""
    hashes = [hashlib.sha256(each.encode()).hexdigest() for each in prompt_ids]
    return sorted(range(len(hashes)), key=hashes.__getitem__)[:count]


def _units(sketches_ND: NDArray[np.floating]) -> NDArray[np.float32]:
    lengths_N = np.linalg.norm(sketches_ND, axis=1, keepdims=True)
    return np.asarray(sketches_ND / np.where(lengths_N > 0, lengths_N, 1.0), np.float32)
