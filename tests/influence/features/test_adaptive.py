"""A fitted sketch: its store carries its state, and a target's store uses the same state."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import cropi
from cropi.config import InfluenceConfig, SketchChoice
from cropi.errors import InputError
from cropi.gradients.extractor import GradientExtractor
from cropi.influence.features import FeatureStore, score_features
from cropi.influence.features.extraction import Extraction, write_features
from cropi.rollouts import read_rollouts
from cropi.sketches import AdaptiveSketch, SparseSketch
from cropi.store.files import file_hash
from support.fake_stores import contents
from support.rollout_files import rollouts


def extract(
    path: Path, out: Path, like: FeatureStore | None = None, stop_after: int | None = None
) -> Extraction:
    extractor = GradientExtractor(cropi.load_model("pocket"))
    base = SparseSketch(extractor.shapes, 0, 1.0, 512)

    def progress(done: int, total: int) -> None:
        if stop_after is not None and done > stop_after:
            raise KeyboardInterrupt

    return write_features(
        extractor,
        AdaptiveSketch(base, 64, 0, directions=8, sample=6),
        read_rollouts(path),
        out,
        rollouts=file_hash(path),
        like=like,
        progress=progress,
    )


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("rollouts")
    sizes = {"pool": (16, 0), "v": (8, 1)}
    return {n: rollouts(folder / f"{n}.parquet", *size) for n, size in sizes.items()}


def test_targets_use_the_state_of_the_pools_sketch(files: dict[str, Path], tmp_path: Path) -> None:
    pool = extract(files["pool"], tmp_path / "pool").store
    like = extract(files["v"], tmp_path / "like", like=pool).store
    assert pool.sketch_file is not None
    assert like.sketch_file is not None
    assert like.sketch_file.read_bytes() == pool.sketch_file.read_bytes()
    cosines = score_features(pool, {"v": like}).estimate.scored().mean["v"]
    assert np.isfinite(cosines).all()
    alone = extract(files["v"], tmp_path / "alone").store
    with pytest.raises(InputError, match=r"sketch.fitted .* --like"):
        score_features(pool, {"v": alone})


def test_an_interrupted_call_fits_once_and_ends_with_the_same_bytes(
    files: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    small_shards: None,
) -> None:
    whole = extract(files["pool"], tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        extract(files["pool"], tmp_path / "killed", stop_after=6)

    def forbidden(*_: object) -> None:
        raise AssertionError("it was fitted before")

    with monkeypatch.context() as patch:
        patch.setattr(AdaptiveSketch, "fit", forbidden)
        again = extract(files["pool"], tmp_path / "killed")
    assert 0 < again.tokens < whole.tokens
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")
    (tmp_path / "killed" / "sketch.npz").write_bytes(b"damaged")
    extract(files["pool"], tmp_path / "killed")
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")


def test_features_unlike_the_pools_are_refused_before_any_gradient(
    files: dict[str, Path], tmp_path: Path
) -> None:
    settings = InfluenceConfig(sketch=SketchChoice.of("sparse", dim=64))
    pool = cropi.extract_features("pocket", files["pool"], tmp_path / "pool", settings=settings)
    with pytest.raises(InputError, match=r"would not match .* sketch.seed '1', not '0'"):
        cropi.extract_features(
            "pocket", files["v"], tmp_path / "v", settings=settings, seed=1, like=pool.store
        )
    assert [file.name for file in (tmp_path / "v").glob("*")] == [".lock"]
