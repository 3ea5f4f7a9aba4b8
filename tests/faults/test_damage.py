"""Whatever happens to a stored file: made again as it was, or refused by name; never used."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from cropi.curriculum.loop import run
from cropi.errors import InputError
from cropi.influence.features import FeatureStore
from cropi.influence.scorer import Scorer
from cropi.store.files import read_table
from cropi.store.ledger import LEDGER, Ledger
from cropi.training import StageOutcome, StagePlan
from support.fake_stores import contents, fill, identity, sketches, store, writer
from support.fakes import FakeEngine, FakeTrainer
from support.tiny_runs import fake_config, promised_bytes, run_in

SHORT = ("curriculum={stages: 1, steps_per_stage: 1}", "name=tiny")
Damage = Callable[[Path], None]


def flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    place = random.Random(file.name).randrange(8 * len(content))
    content[place // 8] ^= 1 << (place % 8)
    file.write_bytes(content)


def truncate(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def empty(file: Path) -> None:
    file.write_bytes(b"")


WAYS: tuple[Damage, ...] = (flip, truncate, empty, Path.unlink)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    return run_in(folder, fake_config(folder, *SHORT))


@pytest.mark.parametrize("damage", WAYS)
def test_a_run_whose_files_were_all_damaged_ends_with_the_same_bytes(
    finished: Path, tmp_path: Path, damage: Damage
) -> None:
    place = tmp_path / "runs" / "tiny"
    shutil.copytree(finished, place)
    expected = promised_bytes(finished)
    files = [place / name for name in expected if name not in (LEDGER, ".lock")]
    for file in files:
        damage(file)
    assert not Ledger(place).all_intact()
    run_in(tmp_path, fake_config(tmp_path, *SHORT))
    assert promised_bytes(place) == expected


def test_swapped_files_of_a_run_are_made_again(finished: Path, tmp_path: Path) -> None:
    place = tmp_path / "runs" / "tiny"
    shutil.copytree(finished, place)
    pool, validation = (
        place / "arms/cropi/stages/0/rollouts/pool.parquet",
        place / "rollouts/validation/sort.parquet",
    )
    other = validation.read_bytes()
    shutil.copy(pool, validation)
    pool.write_bytes(other)
    run_in(tmp_path, fake_config(tmp_path, *SHORT))
    assert promised_bytes(place) == promised_bytes(finished)


def test_a_run_that_was_moved_and_renamed_goes_on_without_any_work(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def forbidden(*_: object, **__: object) -> None:
        raise AssertionError("a finished run did work again")

    shutil.copytree(finished, tmp_path / "Läufe" / "renamed")
    for kind, method in ((FakeTrainer, "train"), (FakeEngine, "generate"), (Scorer, "score")):
        monkeypatch.setattr(kind, method, forbidden)
    moved = fake_config(tmp_path, *SHORT[:1], "name=renamed")
    run(moved.model_copy(update={"out": str(tmp_path / "Läufe")}))


ADAPTERS = ("training.lora.r=2", "warmup.steps=1", "curriculum.refresh=all")


def test_the_place_of_a_run_decides_no_byte_and_half_of_it_may_be_moved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With adapters, whose base is a folder of the run, and rollouts of their policies."""

    def go(place: str, name: str) -> dict[str, str]:
        config = fake_config(tmp_path, *SHORT[:1], *ADAPTERS, "curriculum.stages=2", f"name={name}")
        config = config.model_copy(update={"out": str(tmp_path / place)})
        files = promised_bytes(run(config))
        return {name: each for name, each in files.items() if name not in ("config.yaml", LEDGER)}

    expected = go("plain", "one")
    train = FakeTrainer.train

    def killed(self: FakeTrainer, plan: StagePlan, *others: object) -> StageOutcome:
        if plan.first_step:
            raise KeyboardInterrupt
        return train(self, plan, *others)

    monkeypatch.setattr(FakeTrainer, "train", killed)
    with pytest.raises(KeyboardInterrupt):
        go("Läufe und 走る", "zwei-ünd")
    monkeypatch.setattr(FakeTrainer, "train", train)
    shutil.copytree(tmp_path / "Läufe und 走る" / "zwei-ünd", tmp_path / "new" / "drei")
    shutil.rmtree(tmp_path / "Läufe und 走る")
    files = go("new", "drei")
    assert {n for n in files.keys() | expected.keys() if files.get(n) != expected.get(n)} == set()


@pytest.mark.parametrize("name", [LEDGER, "config.yaml", "manifest.json"])
@pytest.mark.parametrize("damage", WAYS)
def test_no_damage_of_what_describes_a_run_is_used(
    finished: Path, tmp_path: Path, name: str, damage: Damage
) -> None:
    file = tmp_path / "run" / name
    shutil.copytree(finished, tmp_path / "run")
    before = {path for path in (tmp_path / "run").rglob("*") if path in Ledger(tmp_path / "run")}
    damage(file)
    ledger = Ledger(tmp_path / "run")
    assert not ledger.all_intact() or {path for path in before if path in ledger} < before


@pytest.mark.parametrize("seed", range(200))
def test_no_flipped_bit_of_a_table_is_read(finished: Path, tmp_path: Path, seed: int) -> None:
    content = bytearray((finished / "arms/cropi/stages/0/rollouts/pool.parquet").read_bytes())
    place = random.Random(seed).randrange(8 * len(content))
    content[place // 8] ^= 1 << (place % 8)
    damaged = tmp_path / "pool.parquet"
    damaged.write_bytes(content)
    with pytest.raises(InputError, match=r"pool\.parquet"):
        read_table(damaged)


@pytest.mark.parametrize("damage", WAYS)
@pytest.mark.parametrize("name", ["shard-00000.npy", "shard-00001.parquet", "identity.json"])
def test_a_damaged_store_is_refused_by_name_and_its_shards_are_made_again(
    tmp_path: Path, name: str, damage: Damage
) -> None:
    folder, features = tmp_path / "s", sketches(21)
    fill(writer(folder, identity(21)), features)
    whole = contents(folder)
    damage(folder / name)
    with pytest.raises(InputError, match=r"identity\.json|shard-0000[01]"):
        FeatureStore(folder)
    if name != "identity.json":
        fill(writer(folder, identity(21)), features)
        assert contents(folder) == whole


def test_a_shard_of_another_seed_is_refused(tmp_path: Path) -> None:
    store(tmp_path / "s")
    store(tmp_path / "other", seed=1, sketch={"sketch": "fake", "seed": "1"})
    for suffix in ("npy", "parquet"):
        shutil.copy(tmp_path / f"other/shard-00001.{suffix}", tmp_path / "s")
    with pytest.raises(InputError, match="shard-00001"):
        FeatureStore(tmp_path / "s")


@pytest.mark.parametrize("value", [0, -1, 1.5, "x", None, [], {}, True, 10**30, float("nan")])
@pytest.mark.parametrize("field", ["dim", "prompts", "rows_per_shard", "sketch", "policy", "dtype"])
def test_no_edit_of_an_identity_is_used(tmp_path: Path, field: str, value: object) -> None:
    store(tmp_path / "s")
    path = tmp_path / "s" / "identity.json"
    fields = json.loads(path.read_text())
    path.write_text(json.dumps(fields | {field: value}))
    with pytest.raises(InputError, match=r"identity\.json|shard-00000"):
        FeatureStore(tmp_path / "s")
