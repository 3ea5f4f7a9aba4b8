"""From rollouts to features to scores, by command: equal to direct scoring, killed or not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from cropi.config import InfluenceConfig, SketchChoice
from cropi.errors import InputError
from cropi.gradients.extractor import GradientExtractor
from cropi.influence.features import FeatureStore, score_features
from cropi.influence.features.extraction import policy_hash, write_features
from cropi.influence.preconditioner import Preconditioner
from cropi.influence.scorer import Scorer
from cropi.influence.setup import extract_features, score
from cropi.policy.loading import load_model
from cropi.policy.optimizer_state import SecondMoments
from cropi.rollouts import read_rollouts, write_rollouts
from cropi.sketches import SparseSketch
from cropi.store.tables import read_scores
from support.command_line import Command
from support.fake_stores import contents
from support.rollout_files import group, rollouts

DIM = 2048


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("rollouts")
    return {
        name: rollouts(folder / f"{name}.parquet", prompts, seed)
        for name, prompts, seed in (("pool", 24, 0), ("v", 8, 1), ("w", 6, 2))
    }


@pytest.mark.parametrize(
    ("sketch", "target"), [("sparse", "mean"), ("sparse", "unit_mean"), ("adaptive", "mean")]
)
def test_scores_from_features_equal_direct_ones(
    cropi: Command,
    files: dict[str, Path],
    tmp_path: Path,
    sketch: str,
    target: str,
    small_shards: None,
) -> None:
    pool = tmp_path / "pool"
    for name, path in files.items():
        cropi(
            *("features", path, "--model", "pocket", "--out", tmp_path / name),
            *("--sketch", sketch, f"sketch.dim={DIM}", "--seed", 3),
            *(() if name == "pool" else ("--like", pool)),
        ).done()
    sets = [x for n in ("v", "w") for x in ("--target", f"{n}={tmp_path / n}")]
    out, direct = tmp_path / "stored.parquet", tmp_path / "direct.parquet"
    cropi("score", "--features", pool, *sets, "--out", out, f"target={target}").done()
    sets = [x for n in ("v", "w") for x in ("--target", f"{n}={files[n]}")]
    cropi(
        *("score", "--model", "pocket", "--rollouts", files["pool"], *sets, "--out", direct),
        *("--sketch", sketch, f"sketch.dim={DIM}", "--seed", 3, f"target={target}"),
    ).done()
    one, other = read_scores(out).scored(), read_scores(direct).scored()
    assert one.prompt_ids == other.prompt_ids
    assert (
        (one.pool_size, one.skipped)
        == (other.pool_size, other.skipped)
        == (
            24,
            {"rewards all equal": 6},
        )
    )
    # Stored features do not know what the policy thinks of each response.
    needs_policy = ["current_reward", "effective_share"]
    columns = pq.read_table(out).column_names
    assert columns + needs_policy == pq.read_table(direct).column_names
    assert one.norms == pytest.approx(other.norms, rel=1e-5)
    for name in ("v", "w"):
        assert np.abs(one.mean[name] - other.mean[name]).max() < 1e-3
    assert one.identity == {**other.identity, "features": "float16"}


def test_reliability_from_features_equals_that_of_direct_scoring(
    files: dict[str, Path], tmp_path: Path
) -> None:
    settings = InfluenceConfig(sketch=SketchChoice.of("sparse", dim=DIM))
    stores = {
        name: extract_features("pocket", path, tmp_path / name, settings=settings).store
        for name, path in files.items()
    }
    stored = score_features(stores["pool"], {"v": stores["v"]}).reliability["v"]
    direct = score("pocket", files["pool"], {"v": files["v"]}, settings).reliability["v"]
    assert stored.informative == direct.informative
    assert stored.split_half == pytest.approx(direct.split_half, abs=1e-3)
    assert stored.effective == pytest.approx(direct.effective, rel=1e-5)
    assert stored.largest_share == pytest.approx(direct.largest_share, rel=1e-5)


def test_preconditioned_targets_score_as_directly(files: dict[str, Path], tmp_path: Path) -> None:
    extractor = GradientExtractor(load_model("pocket"))
    sketch = SparseSketch(extractor.shapes, 0, 1.0, DIM)
    draws = torch.Generator().manual_seed(0)
    raw = {n: torch.rand(s, generator=draws) ** 8 for n, s in extractor.shapes.items()}
    adam = Preconditioner(SecondMoments(raw, dict.fromkeys(raw, 3), 0.999, 1e-8, "abc"))

    def stored(name: str, preconditioner: Preconditioner | None) -> FeatureStore:
        return write_features(
            extractor,
            sketch,
            read_rollouts(files[name]),
            tmp_path / f"{name}-{preconditioner is not None}",
            rollouts=name,
            preconditioner=preconditioner,
        ).store

    pool = stored("pool", None)
    groups = [read_rollouts(files[name]) for name in ("pool", "v")]
    for target in ("mean", "unit_mean"):
        scores = score_features(pool, {"v": stored("v", adam)}, target)
        scorer = Scorer(extractor, sketch, target, preconditioner=adam)
        direct = scorer.score(groups[0], {"v": groups[1]})
        assert (
            np.abs(scores.estimate.scored().mean["v"] - direct.estimate.scored().mean["v"]).max()
            < 1e-3
        )
        assert scores.reliability["v"].effective == pytest.approx(
            direct.reliability["v"].effective, rel=1e-5
        )
        assert scores.estimate.identity["moments"] == "abc"
    with pytest.raises(InputError, match="only a target's may be"):
        score_features(stored("pool", adam), {"v": stored("v", adam)})
    with pytest.raises(InputError, match="preconditioned differently"):
        score_features(pool, {"v": stored("v", adam), "w": stored("w", None)})


def test_a_killed_extraction_ends_with_the_same_bytes(
    files: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    small_shards: None,
) -> None:
    settings = InfluenceConfig(sketch=SketchChoice.of("sparse", dim=DIM))

    def extract(folder: Path, stop_after: int | None = None) -> int:
        def progress(done: int, total: int) -> None:
            assert total == 18
            if stop_after is not None and done > stop_after:
                raise KeyboardInterrupt

        return extract_features(
            "pocket", files["pool"], folder, settings=settings, progress=progress
        ).tokens

    tokens = extract(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        extract(tmp_path / "killed", 11)
    assert 0 < extract(tmp_path / "killed") < tokens
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")
    assert extract(tmp_path / "killed") == 0, "a finished store costs no forward pass"


def test_features_of_another_policy_or_objective_are_refused(
    cropi: Command, files: dict[str, Path], tmp_path: Path
) -> None:
    common = ("--sketch", "sparse", "sketch.dim=64")
    pool = ("features", files["pool"], "--model", "pocket", "--out", tmp_path / "pool", *common)
    cropi(*pool).done()
    cropi(*pool, "--seed", 1).refused("sketch.seed '0', not '1'", str(tmp_path / "pool"))
    cropi(*pool, "objective.ratio=none").refused("settings.objective.ratio 'token', not 'none'")
    for name, changes in (("seed", ("--seed", 1)), ("ratio", ("objective.ratio=none",))):
        other = tmp_path / name
        cropi("features", files["v"], "--model", "pocket", "--out", other, *common, *changes).done()
        out = tmp_path / "s.parquet"
        cropi(
            "score", "--features", tmp_path / "pool", "--target", f"v={other}", "--out", out
        ).refused("target v", name)
        assert not out.exists()


def test_options_that_would_change_nothing_are_refused(
    cropi: Command, files: dict[str, Path], tmp_path: Path
) -> None:
    scoring = ("score", "--features", "nowhere", "--target", "v=there", "--out", tmp_path / "s")
    cropi(*scoring, "--sketch", "sparse").refused("--sketch")
    cropi(*scoring, "--model", "pocket", "--seed", 0).refused("--model, --seed")
    cropi(*scoring, "objective.ratio=none").refused("objective")
    cropi(*scoring).refused("nowhere", "not a feature store")
    cropi("score", "--target", "v=there", "--out", tmp_path / "s").refused("--model", "--features")
    cropi(
        "features", files["pool"], "--model", "pocket", "--out", tmp_path / "f", "--sketch", "exact"
    ).refused("exact")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("text")
    cropi("features", files["pool"], "--model", "nowhere", "--out", tmp_path / "full").refused(
        "do not belong to a feature store"
    )


def test_rollouts_without_an_informative_prompt_are_refused(cropi: Command, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    write_rollouts(tmp_path / "dull.parquet", [group(f"d{n}", rng, dull=True) for n in range(3)])
    cropi(
        "features", tmp_path / "dull.parquet", "--model", "pocket", "--out", tmp_path / "f"
    ).refused("no informative prompt among 3")


def test_the_policys_hash_follows_its_weights() -> None:
    model = load_model("pocket")
    before = policy_hash(model)
    assert policy_hash(load_model("pocket")) == before
    next(model.parameters()).data[0, 0] += 1e-3
    assert policy_hash(model) != before
    assert policy_hash(model.bfloat16()) != before


def test_scoring_by_command_loads_no_model(
    cropi: Command, files: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = tmp_path / "v"
    cropi("features", files["v"], "--model", "pocket", "--out", store, "sketch.dim=64").done()

    def forbidden(*_: object, **__: object) -> None:
        raise AssertionError("a model was loaded")

    monkeypatch.setattr("cropi.policy.loading.load_model", forbidden)
    cropi(
        "score", "--features", store, "--target", f"v={store}", "--out", tmp_path / "s.parquet"
    ).done()
