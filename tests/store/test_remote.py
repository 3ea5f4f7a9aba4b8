"""Files by URL read as local ones do, and errors name the URL."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import fsspec
import numpy as np
import pytest

from cropi.config import PromptSource
from cropi.errors import InputError
from cropi.prompts import load_source
from cropi.prompts.sources import source_hash
from cropi.rollouts import read_rollouts, read_side_columns, write_rollouts
from cropi.schema import Response, RolloutGroup
from cropi.store.remote import local_copy, remote_url


@pytest.fixture
def bucket() -> Iterator[str]:
    """A folder in fsspec's file system in memory."""
    memory = fsspec.filesystem("memory")
    memory.mkdirs("/bucket", exist_ok=True)
    yield "memory://bucket"
    memory.rm("/bucket", recursive=True)


def store(url: str, content: bytes) -> str:
    with fsspec.open(url, "wb") as file:
        file.write(content)
    return url


def test_prompts_of_a_url_are_those_of_the_file(bucket: str, tmp_path: Path) -> None:
    content = b'{"prompt": "1+1=", "answer": "2"}\n{"prompt": "1+2=", "answer": "3"}\n'
    local = tmp_path / "sums.jsonl"
    local.write_bytes(content)
    url = store(f"{bucket}/sums.jsonl", content)
    assert load_source(PromptSource(path=url), 0) == load_source(PromptSource(path=str(local)), 0)
    assert source_hash(url, None) == source_hash(str(local), None)


def test_rollouts_of_a_url_are_those_of_the_file(bucket: str, tmp_path: Path) -> None:
    tokens = np.array([3, 4], np.int32)
    response = Response(tokens, np.array([-1, -2], np.float32), reward=1.0)
    local = tmp_path / "r.parquet"
    write_rollouts(local, [RolloutGroup("p", tokens, [response])])
    url = store(f"{bucket}/r.parquet", local.read_bytes())
    for path in (url, Path(url)):
        assert repr(read_rollouts(path)) == repr(read_rollouts(local))
    assert read_side_columns(url) is None


def test_errors_name_the_url_and_not_the_copy(bucket: str) -> None:
    bad = store(f"{bucket}/bad.jsonl", b'{"prompt": "1+1="')
    with pytest.raises(InputError, match=r"^memory://bucket/bad\.jsonl row 1 is not valid JSON"):
        load_source(PromptSource(path=bad), 0)
    table = store(f"{bucket}/bad.parquet", b"text")
    with pytest.raises(InputError, match=r"^memory://bucket/bad\.parquet is not a readable Parq"):
        read_rollouts(table)
    with pytest.raises(InputError, match=r"cannot read memory://bucket/gone\.jsonl \(FileNotFound"):
        load_source(PromptSource(path=f"{bucket}/gone.jsonl"), 0)
    with pytest.raises(InputError, match=r"cannot read nowhere://x/y\.jsonl.*nowhere"):
        load_source(PromptSource(path="nowhere://x/y.jsonl"), 0)


def test_local_paths_are_not_urls(tmp_path: Path) -> None:
    for path in ("x.jsonl", "/a/b", "./a:b/c", "C:/prompts.jsonl", "~/x", "a b://c"):
        assert remote_url(path) is None
    assert remote_url(Path("s3://bucket/x")) == "s3://bucket/x"
    with local_copy(tmp_path / "x") as path:
        assert path == tmp_path / "x"
