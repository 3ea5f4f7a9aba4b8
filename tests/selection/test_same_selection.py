"""Selection on estimates chooses exactly what the formulas on plain cosines choose.

The oracle below is the arithmetic on the informative prompts' cosines alone, written out: fusion,
noise floor from the negative half, and memory as a running mean.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from cropi.estimation.noise import pooled_standard_error, running_mean
from cropi.schema import EQUAL_REWARDS, SCORED, TOO_FEW_RESPONSES, InfluenceEstimate
from cropi.selection import fuse
from cropi.store.tables import read_scores, write_scores

Cosines = dict[str, np.ndarray]
Table = tuple[list[str], Cosines]


def oracle_fuse(table: Table, count: int, constant: float, floor: float) -> list[str]:
    names, cosines = table
    ids = np.array(names)
    fused = np.zeros((len(cosines), len(ids)))
    for row, cosine in zip(fused, cosines.values(), strict=True):
        order = np.lexsort((ids, -cosine.astype(np.float64)))[:count]
        row[order] = 1.0 / (constant + np.arange(1, len(order) + 1))
    total = np.sort(fused, axis=0).sum(axis=0)
    order = np.lexsort((ids, -total))
    chosen = order[total[order] > 0][:count]
    if floor > 0:
        clear = np.zeros(len(ids), dtype=bool)
        for cosine in cosines.values():
            negative = -cosine[cosine < 0].astype(np.float64)
            width = float(np.median(negative) / 0.6745) if len(negative) else 0.0
            clear |= cosine > floor * width
        keep = clear[chosen]
        missing = max(0, max(1, int(0.2 * count)) - int(keep.sum()))
        keep[np.flatnonzero(~keep)[:missing]] = True
        chosen = chosen[keep]
    return [str(i) for i in ids[chosen]]


def oracle_memory(stages: list[Table], memory: float) -> Table:
    ids, current = stages[-1]
    means: Cosines = {}
    for name, cosine in current.items():
        mean = np.full(len(ids), np.nan)
        for stage_ids, cosines in stages:
            if name not in cosines:
                continue
            values = cosine
            if cosines is not current:
                by_id = dict(zip(stage_ids, cosines[name].tolist(), strict=True))
                values = np.array([by_id.get(i, np.nan) for i in ids])
            blend = memory * mean + (1 - memory) * values
            mean = np.where(np.isnan(mean), values, np.where(np.isnan(values), mean, blend))
        means[name] = mean.astype(np.float32)
    return ids, means


def random_stage(rng: np.random.Generator, targets: list[str]) -> tuple[Table, InfluenceEstimate]:
    """A pool in random order with ties, zeros and uninformative prompts, in both forms."""
    count = 200
    ids = [f"p{n}" for n in rng.permutation(count)]
    reasons = [SCORED, SCORED, SCORED, EQUAL_REWARDS, TOO_FEW_RESPONSES]
    status = [reasons[n] for n in rng.integers(0, 5, count)]
    scored = np.array([each == SCORED for each in status])
    mean = {}
    for name in targets:
        values = rng.normal(0.01, 0.05, count).astype(np.float32)
        values[rng.integers(0, count, 60)] = np.float32(0.07)
        values[rng.integers(0, count, 10)] = 0.0
        mean[name] = np.where(scored, values, np.float32(np.nan))
    estimate = InfluenceEstimate(
        prompt_ids=ids,
        mean=mean,
        standard_error=pooled_standard_error(mean),
        norms=np.where(scored, rng.random(count), np.nan).astype(np.float32),
        tokens=rng.integers(1, 99, count),
        group_size=rng.integers(0, 8, count).astype(np.int32),
        status=status,
    )
    rows = np.flatnonzero(scored)
    return ([ids[r] for r in rows], {n: v[rows] for n, v in mean.items()}), estimate


@pytest.mark.parametrize("seed", range(25))
def test_selections_are_those_of_the_plain_formulas(seed: int, tmp_path: Path) -> None:
    rng = np.random.default_rng(seed)
    targets = [["v"], ["v", "w"], ["v", "w", "x"]]
    stages = [random_stage(rng, targets[rng.integers(3)]) for _ in range(3)]
    tables, estimates = [list(each) for each in zip(*stages, strict=True)]
    path = tmp_path / "scores.parquet"
    for memory in (0.0, 0.5, 0.3):
        for count in (1, 7, 20, 150, 300):
            for constant, floor in ((0.0, 0.0), (0.0, 3.0), (60.0, 1.0), (0.0, 0.5)):
                table = oracle_memory(tables, memory) if memory else tables[-1]
                combined = running_mean(estimates[-1], estimates[:-1], memory)
                selection = fuse(combined, count, constant, floor)
                assert selection.prompt_ids == oracle_fuse(table, count, constant, floor)
        write_scores(path, combined)
        assert fuse(read_scores(path), 20, 0.0, 1.0).prompt_ids == oracle_fuse(table, 20, 0.0, 1.0)


def test_the_running_mean_keeps_every_bit() -> None:
    rng = np.random.default_rng(0)
    stages = [random_stage(rng, ["v", "w"]) for _ in range(4)]
    tables, estimates = [list(each) for each in zip(*stages, strict=True)]
    ids, means = oracle_memory(tables, 0.37)
    combined = running_mean(estimates[-1], estimates[:-1], 0.37)
    assert combined.prompt_ids == ids
    assert combined.pool_size == 200
    for name, mean in means.items():
        assert combined.mean[name].dtype == np.float32
        assert combined.mean[name].tobytes() == mean.tobytes()


def test_an_estimate_and_its_scored_part_select_alike() -> None:
    _, estimate = random_stage(np.random.default_rng(1), ["v", "w"])
    scored = estimate.scored()
    assert scored.pool_size == estimate.pool_size == 200
    assert scored.skipped == estimate.skipped
    assert sum(scored.skipped.values()) + len(scored.prompt_ids) == 200
    assert (
        fuse(scored, 20, noise_floor=2.0).prompt_ids
        == fuse(estimate, 20, noise_floor=2.0).prompt_ids
    )
