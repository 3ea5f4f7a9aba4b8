"""What commands read and write may be URLs, with the same results as local paths."""

from __future__ import annotations

from pathlib import Path

import fsspec
import pytest

from cropi.pocket import model_dir
from support.command_line import Command
from support.object_stores import store
from support.rollout_files import rollouts


@pytest.fixture
def pool(bucket: str, tmp_path: Path) -> tuple[Path, str]:
    """Rollouts of a pool as a file and as a URL."""
    local = rollouts(tmp_path / "pool.parquet", 6, 0)
    return local, store(f"{bucket}/logs/pool.parquet", local.read_bytes())


def content(url: str) -> bytes:
    data: bytes = fsspec.filesystem("memory").cat_file(url.removeprefix("memory:/"))
    return data


def test_scores_and_selections_by_url_have_the_same_bytes(
    cropi: Command, bucket: str, pool: tuple[Path, str], tmp_path: Path
) -> None:
    model = f"{bucket}/pocket"
    for file in model_dir().iterdir():
        if file.is_file():
            store(f"{model}/{file.name}", file.read_bytes())
    local, url = tmp_path / "scores.parquet", f"{bucket}/scores.parquet"
    file, stored = pool
    arguments = ("--seed", 3)
    cropi("score", "--model", model, "--rollouts", file, "--target", f"v={file}", "--out", local,
          *arguments).done()  # fmt: skip
    made = cropi("score", "--model", model, "--rollouts", stored, "--target", f"v={stored}",
                 "--out", url, *arguments)  # fmt: skip
    made.done()
    assert f"uploaded: {url}" in made.out
    assert content(url) == local.read_bytes()
    chosen, chosen_url = tmp_path / "selection.parquet", f"{bucket}/selection.parquet"
    cropi("select", "--scores", local, "--ratio", 0.5, "--out", chosen).done()
    cropi("select", "--scores", url, "--ratio", 0.5, "--out", chosen_url).done()
    assert content(chosen_url) == chosen.read_bytes()
    assert not list((tmp_path / "cache" / "cropi" / "outputs").rglob("*.parquet"))


def test_a_log_by_url_is_ranked_and_exported_as_the_folder_is(
    cropi: Command, bucket: str, pool: tuple[Path, str], tmp_path: Path
) -> None:
    local, url = tmp_path / "ranked", f"{bucket}/ranked"
    cropi("rank", "--rollouts", pool[0], "--out", local).done()
    outcome = cropi("rank", "--rollouts", f"{bucket}/logs", "--out", url)
    outcome.done()
    assert f"{url}/report.html" in outcome.out
    assert "/cache/" not in outcome.out
    names = {file.relative_to(local).as_posix() for file in local.rglob("*") if file.is_file()}
    listed = fsspec.filesystem("memory").find("/bucket/ranked")
    assert {name.removeprefix("/bucket/ranked/") for name in listed} == names
    assert content(f"{url}/selection.parquet") == (local / "selection.parquet").read_bytes()
    records = [content(f"{url}/{name}") for name in names]
    assert any(f"{bucket}/logs".encode() in record for record in records)
    assert not any(b"/cache/" in record for record in records)


def test_an_output_is_not_uploaded_over_its_input(
    cropi: Command, bucket: str, pool: tuple[Path, str]
) -> None:
    before = content(pool[1])
    cropi("select", "--rollouts", pool[1], "--scores", pool[1], "--out", pool[1]).refused(
        "which would be lost"
    )
    assert content(pool[1]) == before


def test_nothing_is_uploaded_of_a_command_that_fails(cropi: Command, bucket: str) -> None:
    bad = store(f"{bucket}/bad.jsonl", b"not JSON")
    url = f"{bucket}/ranked"
    cropi("rank", "--rollouts", bad, "--out", url).refused(bad)
    cropi("rank", "--rollouts", f"{bucket}/gone", "--out", url).refused(f"{bucket}/gone")
    assert not fsspec.filesystem("memory").exists("/bucket/ranked")
