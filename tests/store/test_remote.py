"""Places by URL read as local ones do, are fetched once, and errors name the URL."""

from __future__ import annotations

from pathlib import Path

import fsspec
import numpy as np
import pytest

from cropi.config import PromptSource
from cropi.errors import InputError
from cropi.prompts import load_source
from cropi.prompts.sources import source_hash
from cropi.rollouts import read_rollouts, read_side_columns, write_rollouts
from cropi.schema import InfluenceEstimate, Response, RolloutGroup, Selection
from cropi.store import object_store
from cropi.store.files import atomic_folder, atomic_write
from cropi.store.lock import exclusive_lock, exclusive_output
from cropi.store.object_store import ObjectStore
from cropi.store.remote import local_copy, local_place, with_urls
from cropi.store.tables import read_scores, read_selection, write_scores, write_selection
from cropi.text import remote_url
from support.object_stores import questions, store

ROW = b'{"prompt": "%d+1=", "answer": "%d"}\n'


@pytest.fixture
def fetched(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The paths that are downloaded from now on."""
    paths = list[str]()
    download = ObjectStore.download

    def counted(self: ObjectStore, file: object_store.StoredFile, target: Path) -> None:
        paths.append(file.path)
        download(self, file, target)

    monkeypatch.setattr(ObjectStore, "download", counted)
    return paths


def shards(bucket: str, folder: Path) -> None:
    """The same files in a bucket and in a folder; prompts, and what lies beside them."""
    contents = {f"pool/part-{n}.jsonl": ROW % (n, n + 1) for n in (10, 2, 1)}
    contents |= {"pool/deep/part-3.jsonl": ROW % (3, 4), "pool/_SUCCESS": b"", "other.txt": b"x"}
    for name, content in contents.items():
        store(f"{bucket}/{name}", content)
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)


@pytest.mark.parametrize(
    "path", ["pool", "pool/", "pool/*.jsonl", "**/*.jsonl", "pool/part-2.jsonl"]
)
def test_prompts_of_a_url_are_those_of_the_place(bucket: str, tmp_path: Path, path: str) -> None:
    shards(bucket, tmp_path / "bucket")
    url, local = f"{bucket}/{path}", str(tmp_path / "bucket" / path)
    assert load_source(PromptSource(path=url), 0) == load_source(PromptSource(path=local), 0)
    assert source_hash(url, None) == source_hash(local, None)


def test_only_what_has_changed_is_fetched_again(
    bucket: str, tmp_path: Path, fetched: list[str]
) -> None:
    shards(bucket, tmp_path)
    assert questions(f"{bucket}/pool") == ["3+1=", "1+1=", "2+1=", "10+1="]
    assert len(fetched) == 4
    assert questions(f"{bucket}/pool/*.jsonl") == ["1+1=", "2+1=", "10+1="]
    assert len(fetched) == 4
    store(f"{bucket}/pool/part-2.jsonl", ROW % (7, 8))
    store(f"{bucket}/pool/part-4.jsonl", ROW % (4, 5))
    assert questions(f"{bucket}/pool") == ["3+1=", "1+1=", "7+1=", "4+1=", "10+1="]
    assert sorted(fetched[4:]) == ["/bucket/pool/part-2.jsonl", "/bucket/pool/part-4.jsonl"]
    fsspec.filesystem("memory").rm("/bucket/pool/part-10.jsonl")
    assert questions(f"{bucket}/pool") == ["3+1=", "1+1=", "7+1=", "4+1="]


def test_a_download_that_was_cut_is_not_taken_for_the_file(
    bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = store(f"{bucket}/sums.jsonl", ROW % (1, 2))
    memory = fsspec.filesystem("memory")
    cuts = [5, 9]

    def get_file(path: str, target: str) -> None:
        content = memory.cat_file(path)
        Path(target).write_bytes(content[: cuts.pop()] if cuts else content)

    monkeypatch.setattr(memory, "get_file", get_file)
    monkeypatch.setattr(object_store, "LONGEST_WAIT_S", 0.01)
    assert questions(url) == ["1+1="]
    cuts += [3] * object_store.ATTEMPTS
    other = store(f"{bucket}/other.jsonl", ROW % (1, 2))
    with pytest.raises(InputError, match=r"cannot read memory://bucket/other.*3 of 34 bytes"):
        questions(other)
    assert questions(other) == ["1+1="]


def test_rollouts_of_a_url_are_those_of_the_file(bucket: str, tmp_path: Path) -> None:
    tokens = np.array([3, 4], np.int32)
    response = Response(tokens, np.array([-1, -2], np.float32), reward=1.0)
    local = tmp_path / "r.parquet"
    write_rollouts(local, [RolloutGroup("p", tokens, [response])])
    url = store(f"{bucket}/r.parquet", local.read_bytes())
    for path in (url, Path(url)):
        assert repr(read_rollouts(path)) == repr(read_rollouts(local))
    assert read_side_columns(url) is None


def test_scores_and_a_selection_of_a_url_are_those_of_the_file(bucket: str, tmp_path: Path) -> None:
    scores, selection = tmp_path / "scores.parquet", tmp_path / "selection.parquet"
    cosines = np.array([0.5, 0.25])
    write_scores(scores, InfluenceEstimate.from_means(["b", "a"], {"val": cosines}))
    write_selection(selection, Selection(["b", "a"], cosines))
    for local, read in ((scores, read_scores), (selection, read_selection)):
        url = store(f"{bucket}/{local.name}", local.read_bytes())
        assert repr(read(url)) == repr(read(local))


def test_errors_name_the_url_and_not_the_copy(bucket: str) -> None:
    bad = store(f"{bucket}/bad.jsonl", b'{"prompt": "1+1="')
    store(f"{bucket}/mixed/x.csv", b"prompt,answer\n1,1\n")
    store(f"{bucket}/mixed/x.jsonl", ROW % (1, 2))
    with pytest.raises(InputError, match=r"^memory://bucket/bad\.jsonl row 1 is not valid JSON"):
        questions(bad)
    with pytest.raises(InputError, match=r"^memory://bucket/mixed holds files of several kinds"):
        questions(f"{bucket}/mixed")
    table = store(f"{bucket}/bad.parquet", b"text")
    refused = r"^memory://bucket/bad\.parquet is not a readable Parq"
    for read in (read_rollouts, read_scores, read_selection):
        with pytest.raises(InputError, match=refused):
            read(table)
    assert with_urls(str(local_place(bad))) == bad


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("https://127.0.0.1/*.jsonl", "patterns do not work on https"),
        ("memory://bucket/gone.jsonl", "there is no such file"),
        ("memory://bucket/none/*.jsonl", "there is no such file"),
        ("nowhere://x/y.jsonl", "nowhere:// is not a kind of URL"),
        ("http://127.0.0.1:9/x.jsonl", "check the URL and the network"),
    ],
)
def test_what_cannot_be_read_is_said(
    bucket: str, url: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if url.startswith("http:"):
        pytest.importorskip("aiohttp", reason="web addresses need aiohttp")
    monkeypatch.setattr(object_store, "LONGEST_WAIT_S", 0.01)
    with pytest.raises(InputError, match=rf"^cannot read {url.replace('*', '.')}.*{message}"):
        load_source(PromptSource(path=url), 0)


def raised(name: str, base: type[Exception] = Exception) -> Exception:
    """An exception of a package that may not be installed."""
    return type(name, (base,), {})("as the package says")


@pytest.mark.parametrize(
    ("url", "error", "message"),
    [
        ("s3://b/x", ImportError("Install s3fs"), r"pip install 'cropi\[s3\]'"),
        ("gs://b/x", ImportError("Install gcsfs"), r"pip install 'cropi\[gs\]'"),
        ("https://b/x", ImportError("Install aiohttp"), r"pip install 'fsspec\[http\]'"),
        ("az://b/x", ImportError("Install adlfs"), r"pip install 'fsspec\[abfs\]'"),
        ("box://b/x", ImportError("Install boxfs"), r"Install boxfs.*install what it names"),
        ("s3://b/x", raised("NoCredentialsError"), "AWS_ACCESS_KEY_ID"),
        ("s3://b/x", PermissionError("Forbidden"), "FSSPEC_S3_ANON"),
        ("gs://b/x", raised("DefaultCredentialsError"), "GOOGLE_APPLICATION_CREDENTIALS"),
        ("hf://datasets/a/b", raised("GatedRepoError", OSError), "HF_TOKEN"),
        ("s3://b/x", TimeoutError("no answer"), "check the URL and the network"),
    ],
)
def test_a_failure_says_what_to_do(url: str, error: Exception, message: str) -> None:
    with (
        pytest.raises(InputError, match=f"^cannot read {url}.*{message}"),
        object_store.explained(url),
    ):
        raise error


def test_names_that_lead_out_of_their_folder_are_left_out(
    bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store(f"{bucket}/pool/in.jsonl", ROW % (1, 2))
    memory = fsspec.filesystem("memory")
    listed = memory.find("/bucket/pool", detail=True)
    (info,) = listed.values()
    listed["/bucket/pool/../../../out.jsonl"] = info
    monkeypatch.setattr(memory, "find", lambda *_, **__: listed)
    assert questions(f"{bucket}/pool") == ["1+1="]
    assert not list(tmp_path.rglob("out.jsonl"))


def test_a_copy_without_room_is_refused_before_it_is_fetched(
    bucket: str, monkeypatch: pytest.MonkeyPatch, fetched: list[str]
) -> None:
    url = store(f"{bucket}/sums.jsonl", ROW % (1, 2))
    full = type("Usage", (), {"free": 5})
    monkeypatch.setattr("shutil.disk_usage", lambda _: full)
    with pytest.raises(InputError, match=r"memory://bucket/sums.*room for.*XDG_CACHE_HOME"):
        local_place(url)
    assert fetched == []


def test_python_functions_do_not_write_into_a_folder_called_like_a_url(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    url = Path("s3://bucket/x.parquet")
    for write in (atomic_write, atomic_folder, exclusive_lock, exclusive_output):
        with pytest.raises(InputError, match=r"cannot write s3://bucket/x\.parquet"), write(url):
            pass
    assert list(tmp_path.iterdir()) == []


def test_local_paths_are_not_urls(tmp_path: Path) -> None:
    for path in ("x.jsonl", "/a/b", "./a:b/c", "C:/prompts.jsonl", "~/x", "a b://c"):
        assert remote_url(path) is None
    assert remote_url(Path("s3://bucket/x")) == "s3://bucket/x"
    with local_copy(tmp_path / "x") as path:
        assert path == tmp_path / "x"
