"""Scans give what plain float64 arithmetic gives, and scores from features those of the sketch."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from cropi.errors import InputError
from cropi.influence.features import FeatureStore, score_features
from cropi.influence.targets import target_weights
from support.fake_stores import cosines_of, fill, identity, sketches, store, writer


@pytest.mark.parametrize("dim", [64, 5000, 70_000])
def test_dot_products_equal_float64_ones_within_a_millionth(tmp_path: Path, dim: int) -> None:
    features = store(tmp_path / "s", dim=dim)
    directions = np.random.default_rng(0).normal(size=(3, dim))
    rows = torch.cat([block.double() for _, block in features.blocks()]).numpy() / dim**0.5
    errors = features.dots(directions) - rows @ directions.T
    assert features.dots(directions).dtype == np.float64
    assert np.abs(errors / np.linalg.norm(directions, axis=1)).max() < 1e-6


def test_float16_features_cost_less_than_a_thousandth_of_a_cosine(tmp_path: Path) -> None:
    features = store(tmp_path / "s", 100, dim=2048)
    sketched = sketches(100, 2048)[0].double().numpy()
    direction = sketched[10:30].mean(0)
    exact = cosines_of(sketched, direction)
    unit = direction[None] / np.linalg.norm(direction)
    assert np.abs(features.dots(unit)[:, 0] - exact).max() < 1e-4


def test_weighted_sums_follow_their_weights(tmp_path: Path) -> None:
    features = store(tmp_path / "s", dtype="float32")
    sketched = sketches(21)[0].double().numpy()
    assert features.mean() == pytest.approx(sketched.mean(0), rel=1e-5, abs=1e-3)
    weights = np.random.default_rng(1).normal(size=(2, 21))
    lengths = np.linalg.norm(sketched, axis=1, keepdims=True)
    units = sketched / np.where(lengths > 0, lengths, 1)
    assert features.weighted_sums(weights) == pytest.approx(weights @ units, abs=1e-5)


@pytest.mark.parametrize("target", ["mean", "unit_mean"])
def test_scores_from_features_are_the_sketches_cosines(tmp_path: Path, target: str) -> None:
    pool = store(tmp_path / "pool", 50)
    sets = {name: store(tmp_path / name, 9, seed) for name, seed in (("v", 5), ("w", 6))}
    influence = score_features(pool, sets, target)
    sketched = np.delete(sketches(50)[0].double().numpy(), 2, 0)  # the third has no gradient
    for name, seed in (("v", 5), ("w", 6)):
        rows, norms = (x.double().numpy() for x in sketches(9, seed=seed))
        weighted = target_weights(norms, target)[:, None] * rows
        expected = cosines_of(sketched, weighted.sum(0))
        assert influence.estimate.scored().mean[name].dtype == np.float32
        assert np.abs(influence.estimate.scored().mean[name] - expected).max() < 1e-3
        halves = [weighted[h::2].sum(0) for h in (0, 1)]
        reliability = influence.reliability[name]
        assert reliability.split_half == pytest.approx(
            float(cosines_of(halves[0][None], halves[1])[0]), abs=1e-3
        )
        weighted_norms = np.linalg.norm(weighted, axis=1) * np.where(
            norms > 0, norms / np.where(norms > 0, np.linalg.norm(rows, axis=1), 1), 0
        )
        assert reliability.informative == 8, "one of nine has no gradient"
        assert reliability.largest_share == pytest.approx(
            weighted_norms.max() / weighted_norms.sum(), rel=1e-6
        )
    assert influence.estimate.pool_size == 53
    assert influence.estimate.skipped == {"rewards all equal": 3, "zero gradient": 1}
    assert np.isnan(influence.estimate.mean["v"][2]), "a gradient that cancels has no direction"
    assert influence.estimate.status[2] == "zero gradient"


def test_a_dominant_prompt_in_a_target_gives_a_warning(tmp_path: Path) -> None:
    pool = store(tmp_path / "pool")
    *left_out, note = score_features(pool, {"v": pool}).notes
    assert "one prompt carries" in note
    assert [n.partition(":")[0] for n in left_out] == ["the pool", "validation set v"]
    assert all("left out for zero gradient (p000002)" in n for n in left_out)
    assert score_features(pool, {"v": pool}, "unit_mean").reliability[
        "v"
    ].effective == pytest.approx(20)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sketch": {"sketch": "fake", "seed": "7"}}, "sketch.seed '7', not '0'"),
        ({"policy": "later"}, "policy 'later', not 'weights'"),
        ({"dim": 32}, "dim 32, not 64"),
        (
            {"settings": {"objective": {"ratio": "sequence"}}},
            "settings.objective.ratio 'sequence', not 'token'",
        ),
    ],
)
def test_features_of_different_things_are_not_compared(
    tmp_path: Path, change: dict[str, object], message: str
) -> None:
    pool, other = store(tmp_path / "pool"), store(tmp_path / "other", **change)
    with pytest.raises(InputError, match=message) as caught:
        score_features(pool, {"gsm8k": other})
    assert "target gsm8k" in str(caught.value)


def test_rollouts_sizes_and_dtypes_may_differ(tmp_path: Path) -> None:
    pool = store(tmp_path / "pool", 30)
    other = store(tmp_path / "v", 5, dtype="float32", rollouts="others", rows_per_shard=2)
    assert len(score_features(pool, {"v": other}).estimate.prompt_ids) == 30


def test_a_target_that_sums_to_zero_is_refused(tmp_path: Path) -> None:
    pool = store(tmp_path / "pool")
    still = torch.zeros(4, 64), torch.zeros(4, dtype=torch.float64)
    fill(writer(tmp_path / "still", identity(4)), still)
    with pytest.raises(InputError, match="validation set v sum to zero"):
        score_features(pool, {"v": FeatureStore(tmp_path / "still")})


def test_scoring_features_loads_no_model_code(tmp_path: Path) -> None:
    script = (
        "import sys, cropi.influence.features\n"
        "unwanted = {'transformers', 'trl', 'cropi.gradients', 'cropi.policy.loading'}\n"
        "heavy = unwanted & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True, capture_output=True)


def test_a_scan_needs_the_same_memory_for_eight_times_the_prompts(tmp_path: Path) -> None:
    """Peak memory in a separate process; ru_maxrss counts kB, mapped files included."""
    for name, prompts in (("small", 512), ("large", 4096)):
        store(tmp_path / name, prompts, dim=8192, rows_per_shard=256)
    script = (
        "import resource, sys, numpy as np\n"
        "from cropi.influence.features import FeatureStore\n"
        "peaks = []\n"
        "for folder in sys.argv[1:]:\n"
        "    store = FeatureStore(folder)\n"
        "    store.dots(np.ones((2, store.dim))), store.mean()\n"
        "    peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)\n"
        "print(peaks[1] - peaks[0])\n"
    )
    folders = [str(tmp_path / name) for name in ("small", "large")]
    done = subprocess.run(
        [sys.executable, "-c", script, *folders], check=True, capture_output=True, text=True
    )
    assert int(done.stdout) < 8_000, "the large store has 56 MB more"
