"""The feature store: small, complete or absent, equal bytes after a kill, never silently wrong."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from cropi.errors import InputError
from cropi.influence.features import FeatureStore, FeatureWriter, ShardSink
from cropi.store.files import bytes_hash, file_hash
from support.fake_stores import DIM, contents, fill, identity, ids, sketches, store, writer


@pytest.mark.parametrize(("dtype", "error"), [("float16", 2**-11), ("float32", 2**-22)])
def test_rows_come_back_as_unit_sketches_to_the_dtypes_precision(
    tmp_path: Path, dtype: str, error: float
) -> None:
    stored = store(tmp_path / "s", dtype=dtype)
    expected, norms = sketches(21)
    lengths = expected.double().norm(dim=1)
    units = expected.double() / lengths.where(lengths > 0, 1)[:, None]
    rows = torch.cat([block.clone() for _, block in stored.blocks()]).double() / DIM**0.5
    assert stored.prompt_ids == ids(21)
    assert (rows - units).abs().max() <= error * units.abs().max()
    assert stored.norms.tolist() == norms.tolist()
    assert stored.lengths == pytest.approx(lengths.numpy(), rel=1e-6)
    assert stored.tokens.tolist() == list(range(21))
    assert not rows[2].any()


@pytest.mark.parametrize("dim", [2048, 8192, 40_000])
def test_no_coordinate_that_matters_is_subnormal_in_float16(tmp_path: Path, dim: int) -> None:
    """Unit vectors as they are would lose precision: their coordinates are near 1/sqrt(dim)."""
    values, norms = torch.randn(4, dim), torch.ones(4, dtype=torch.float64)
    values[0, 0] = 1e6  # nearly all of a prompt's energy in one coordinate: the largest value
    writing = writer(tmp_path / "s", identity(4, dim=dim))
    fill(writing, (values, norms))
    rows = torch.cat([block.clone() for _, block in FeatureStore(tmp_path / "s").blocks()])
    units = values.double() / values.double().norm(dim=1, keepdim=True)
    relative = (rows.double() / dim**0.5 - units).norm(dim=1)
    assert relative.max() < 2**-11


def test_a_prompt_costs_at_most_2_1_bytes_per_dimension(tmp_path: Path) -> None:
    store(tmp_path / "s", 300, dim=2048, rows_per_shard=256)
    held = sum(path.stat().st_size for path in (tmp_path / "s").iterdir())
    assert held <= 2.1 * 2048 * 300


def test_a_killed_writer_continues_and_ends_with_the_same_bytes(tmp_path: Path) -> None:
    features = sketches(21)
    fill(writer(tmp_path / "whole", identity(21)), features)
    for shards in range(3):
        folder = tmp_path / f"killed-{shards}"
        fill(writer(folder, identity(21)), features, shards)
        (folder / "shard-00002.npy").write_bytes(b"the kill came before its table")
        (folder / "shard-00002.npy.part").write_bytes(b"half a")
        (folder / "identity.json.part").write_bytes(b"{")
        again = writer(folder, identity(21))
        assert again.done == set(ids(21)[: 8 * shards])
        assert not list(folder.glob("*.part"))
        fill(again, features)
        assert contents(folder) == contents(tmp_path / "whole")


def test_a_shard_with_a_missing_prompt_is_not_written(tmp_path: Path) -> None:
    writing = writer(tmp_path / "s", identity(21))
    values, norms = sketches(21)

    def killed() -> None:
        with writing.shard(0) as sink:
            sink(torch.arange(3), values[:3], norms[:3])
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        killed()
    assert writing.done == set()
    assert not list((tmp_path / "s").glob("shard-*"))
    with pytest.raises(AssertionError, match="is missing"), writing.shard(0) as sink:
        sink(torch.arange(3), values[:3], norms[:3])
    sink = ShardSink(ids(8), identity(21))
    sink(torch.tensor([0, 1]), values[:2], norms[:2])
    with pytest.raises(AssertionError, match="was sketched twice"):
        sink(torch.tensor([1]), values[:1], norms[:1])


@pytest.mark.parametrize("damage", ["cut", "table", "ids", "gone"])
def test_a_writer_makes_damaged_shards_again(tmp_path: Path, damage: str) -> None:
    features = sketches(21)
    folder = tmp_path / "s"
    fill(writer(folder, identity(21)), features)
    whole = contents(folder)
    spoil(folder, damage)
    again = writer(folder, identity(21))
    assert again.done == set(ids(21)) - set(ids(21)[8:16])
    fill(again, features)
    assert contents(folder) == whole


def spoil(folder: Path, damage: str) -> Path:
    """Damage the second shard; return the file that an error should name."""
    matrix, rows = folder / "shard-00001.npy", folder / "shard-00001.parquet"
    if damage == "cut":
        matrix.write_bytes(matrix.read_bytes()[:-100])
    elif damage == "header":
        matrix.write_bytes(b"\x93NUMPY" + matrix.read_bytes()[6:40])
    elif damage == "empty":
        matrix.write_bytes(b"")
    elif damage == "longer":
        matrix.write_bytes(matrix.read_bytes() + b"1234")
    elif damage == "shape":
        np.save(matrix, np.zeros((8, DIM - 1), np.float16))
    elif damage == "dtype":
        np.save(matrix, np.zeros((8, DIM), np.float32))
    elif damage == "gone":
        matrix.unlink()
    elif damage == "table":
        rows.write_bytes(rows.read_bytes()[:-20])
    elif damage == "rows":
        shutil.copy(folder / "shard-00002.parquet", rows)
    elif damage == "ids":
        shutil.copy(folder / "shard-00000.parquet", rows)
    return rows if damage in ("table", "rows", "ids") else matrix


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ("cut", "cut off or damaged"),
        ("header", "cut off or damaged"),
        ("empty", "empty"),
        ("longer", "damaged .hash mismatch"),
        ("shape", "damaged .hash mismatch"),
        ("dtype", "damaged .hash mismatch"),
        ("gone", "does not exist"),
        ("table", "not a readable Parquet"),
        ("rows", "is not shard 1 of the store"),
        ("ids", "is not shard 1 of the store"),
    ],
)
def test_a_damaged_shard_is_refused_by_name(tmp_path: Path, damage: str, message: str) -> None:
    store(tmp_path / "s")
    path = spoil(tmp_path / "s", damage)
    with pytest.raises(InputError, match=message) as caught:
        FeatureStore(tmp_path / "s")
    assert str(path) in str(caught.value)


def test_an_unfinished_store_says_how_to_finish_it(tmp_path: Path) -> None:
    fill(writer(tmp_path / "s", identity(21)), sketches(21), 1)
    with pytest.raises(InputError, match=r"2 of 3 shards .* shard-00001.parquet; run the same"):
        FeatureStore(tmp_path / "s")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sketch": {"sketch": "fake", "seed": "1"}}, "sketch.seed '0', not '1'"),
        ({"policy": "others"}, "policy 'weights', not 'others'"),
        ({"rollouts": "newer"}, "rollouts 'rows', not 'newer'"),
        ({"dtype": "float32"}, "dtype 'float16', not 'float32'"),
        (
            {"settings": {"objective": {"ratio": "sequence", "clip": None}}},
            "settings.objective.ratio 'token', not 'sequence'",
        ),
    ],
)
def test_a_store_of_another_identity_is_not_continued(
    tmp_path: Path, change: dict[str, object], message: str
) -> None:
    store(tmp_path / "s")
    before = contents(tmp_path / "s")
    with pytest.raises(InputError, match=message):
        writer(tmp_path / "s", identity(21, **change))
    assert contents(tmp_path / "s") == before


def test_a_folder_of_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("text")
    with pytest.raises(InputError, match="do not belong to a feature store; give a new"):
        writer(tmp_path, identity(21))
    assert (tmp_path / "thesis.txt").read_text() == "text"
    with pytest.raises(InputError, match="cannot write"):
        writer(tmp_path / "thesis.txt", identity(21))
    with pytest.raises(InputError, match="is not a feature store"):
        FeatureStore(tmp_path)


@pytest.mark.parametrize("text", ["{", "[]", '{"version": 2}', '{"version": 2, "other": 2}'])
def test_a_damaged_identity_is_refused(tmp_path: Path, text: str) -> None:
    store(tmp_path / "s")
    (tmp_path / "s" / "identity.json").write_text(text)
    with pytest.raises(InputError, match=r"identity.json is damaged"):
        FeatureStore(tmp_path / "s")


def test_another_version_is_refused(tmp_path: Path) -> None:
    store(tmp_path / "s")
    path = tmp_path / "s" / "identity.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "version": 99}))
    with pytest.raises(InputError, match="version 99, and this cropi reads 2"):
        FeatureStore(tmp_path / "s")


def test_a_store_carries_the_state_of_its_fitted_sketch(tmp_path: Path) -> None:
    state = b"which coordinates are heavy"
    adaptive = identity(21, sketch_file=bytes_hash(state))
    writing = FeatureWriter(tmp_path / "s", adaptive, ids(21), [0] * 21, state)
    fill(writing, sketches(21))
    stored = FeatureStore(tmp_path / "s")
    assert stored.sketch_file is not None
    assert stored.sketch_file.read_bytes() == state
    assert file_hash(stored.sketch_file) == stored.identity.sketch_file
    assert writer(tmp_path / "s", adaptive, sketch_file=state).pending() == []
    (tmp_path / "killed").mkdir()
    (tmp_path / "killed" / "sketch.npz").write_bytes(b"before the identity came")
    fill(writer(tmp_path / "killed", adaptive, sketch_file=state), sketches(21))
    FeatureStore(tmp_path / "killed")
    stored.sketch_file.write_bytes(b"something else")
    with pytest.raises(InputError, match=r"sketch.npz is missing or damaged"):
        FeatureStore(tmp_path / "s")


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_gradient_that_is_not_finite_names_its_prompt(tmp_path: Path, bad: float) -> None:
    values, norms = sketches(21)
    values[11, 5] = bad
    writing = writer(tmp_path / "s", identity(21))
    with pytest.raises(InputError, match="prompt 'p000011' is not finite"):
        fill(writing, (values, norms))
    assert writing.done == set(ids(21)[:8])
