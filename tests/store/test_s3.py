"""Places on a real S3 server: read like local ones, also from one that fails now and then."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import fsspec
import pytest

from cropi.errors import InputError
from cropi.store import lease, object_store
from cropi.store.object_store import ObjectStore
from cropi.store.remote import local_place, upload, upload_place
from support import kept_steps
from support.kept_steps import take_steps
from support.object_stores import S3Server, questions, s3_server, store


@pytest.fixture(scope="module")
def server() -> Iterator[S3Server]:
    with s3_server() as served:
        yield served


@pytest.fixture(autouse=True)
def no_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(object_store, "LONGEST_WAIT_S", 0.01)


def test_files_folders_and_patterns_of_a_bucket(server: S3Server) -> None:
    for n in (1, 2, 10):
        store(f"s3://bucket/pool/part-{n}.jsonl", b'{"prompt": "%d+1=", "answer": "x"}\n' % n)
    made_by_a_console = {"Bucket": "bucket", "Key": "pool/", "Body": b""}
    fsspec.filesystem("s3").call_s3("put_object", **made_by_a_console)
    assert questions("s3://bucket/pool/part-2.jsonl") == ["2+1="]
    assert questions("s3://bucket/pool") == ["1+1=", "2+1=", "10+1="]
    assert questions("s3://bucket/pool/part-1*.jsonl") == ["1+1=", "10+1="]
    asked = len(server.requests)
    assert questions("s3://bucket/pool") == ["1+1=", "2+1=", "10+1="]
    assert not any(path.endswith(".jsonl") for _, path in server.requests[asked:])


def test_a_server_that_fails_for_a_moment_changes_nothing(server: S3Server) -> None:
    url = store("s3://bucket/sums.jsonl", b'{"prompt": "1+1=", "answer": "2"}\n')
    server.failures = 2
    assert questions(url) == ["1+1="]
    assert server.failures == 0


@pytest.mark.parametrize("url", ["s3://bucket/gone", "s3://no-such-bucket/x.jsonl"])
def test_what_is_not_there_is_named(server: S3Server, url: str) -> None:
    with pytest.raises(InputError, match=f"^cannot read {url}: there is no such file"):
        local_place(url)


def test_an_uploaded_folder_is_the_one_that_was_made(server: S3Server) -> None:
    place = upload_place("s3://bucket/made/out")
    (place / "deep").mkdir(parents=True)
    (place / "config.json").write_text("{}")
    (place / "deep" / "weights.bin").write_bytes(b"0" * 1000)
    server.requests.clear()
    upload(place, "s3://bucket/made/out")
    written = [path for method, path in server.requests if method == "PUT"]
    assert written == ["/bucket/made/out/deep/weights.bin", "/bucket/made/out/config.json"]
    assert not place.exists()
    copy = local_place("s3://bucket/made/out")
    assert (copy / "deep" / "weights.bin").read_bytes() == b"0" * 1000


def stored_files() -> dict[str, bytes]:
    """The files of the run in the bucket, but for wall times and the lock."""
    store = ObjectStore("s3://bucket/runs/run")
    paths = [file.path for file in store.under() if ".lease" not in file.path]
    return {path: store.read(path) or b"" for path in paths if not path.endswith("timings.jsonl")}


def test_a_run_killed_by_sigkill_goes_on_elsewhere_with_the_same_objects(
    server: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease, "LEASE_S", 0.5)
    out = "s3://bucket/runs"
    take_steps(out)
    expected = stored_files()
    store = ObjectStore(out)
    for uploads in (3, 8, 14):
        store.files.rm("bucket/runs", recursive=True)
        server.requests.clear()
        server.delay_s = 0.01
        environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path / f"machine-{uploads}")}
        script = [sys.executable, kept_steps.__file__, out]
        process = subprocess.Popen(script, env=environment, cwd=Path(__file__).parents[1])
        while sum(method == "PUT" for method, _ in server.requests) < uploads:
            assert process.poll() is None
            time.sleep(0.005)
        process.kill()
        process.wait()
        server.delay_s, server.failures = 0.0, 2
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / f"other-{uploads}"))
        with pytest.warns(UserWarning, match="is locked by process"):
            take_steps(out)
        assert stored_files() == expected


def test_one_of_several_that_start_together_gets_the_lease(server: S3Server) -> None:
    store = ObjectStore("s3://bucket/raced")
    with ThreadPoolExecutor(6) as threads:
        path = store.at("x.json")
        won = list(threads.map(lambda n: store.create(path, b"%d" % n), range(6)))
    assert won.count(True) == 1
