"""Reading by URL (`s3://`, `gs://`, `hf://`, `https://` and everything else that fsspec opens).

What a URL means is copied to a cache on this machine and read there: a file, all files of a folder,
or those that match a pattern. A copy is named by the URL and by what the store says of each file
(etag, generation, size, time): what has changed is fetched again, and what has not is not. It
appears whole or not at all, and processes may fetch the same at the same time.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar
from urllib.parse import unquote, urlsplit

from cropi.errors import InputError
from cropi.schema import fingerprint
from cropi.store.files import PART, cannot_write, remove
from cropi.store.ledger import LEDGER
from cropi.store.object_store import WEB, ObjectStore, StoredFile
from cropi.text import remote_url

T = TypeVar("T")
CONCURRENT_TRANSFERS = 8
"""Files that are fetched or uploaded at the same time."""
_origins: dict[str, str] = {}
"""What copies are called in this process: the beginning of a local path, and that of the URL."""
_outputs: dict[str, str] = {}
"""The same of what is made here and will be uploaded."""


def cache_directory(kind: str) -> Path:
    """A folder below XDG_CACHE_HOME, or ~/.cache, for what can be made or fetched again."""
    home = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(home).expanduser().absolute() / "cropi" / kind


def local_place(path: str | Path) -> Path:
    """The local file, folder or pattern with the content of `path`: itself, or a copy of a URL.

    Raises InputError if the URL cannot be read, or the copy has no room.
    """
    url = remote_url(path)
    return Path(path) if url is None else _fetched(url)


@contextmanager
def local_copy(path: str | Path) -> Iterator[Path]:
    """Yield `local_place(path)`; errors raised in the block name the URL."""
    try:
        yield local_place(path)
    except InputError as error:
        text = with_urls(str(error))
        if text == str(error):
            raise
        raise InputError(text) from error


def with_urls(text: str) -> str:
    """A text that names copies, such as an error, with the URLs that they are copies of."""
    for place, url in _origins.items():
        text = text.replace(place, url)
    return with_output_urls(text)


def with_output_urls(text: str) -> str:
    """A text that names outputs, with the URLs that they will have."""
    for place, url in _outputs.items():
        text = text.replace(place, url)
    return text


def upload_place(url: str) -> Path:
    """Where the file or folder that `url` will name is made; what an earlier call left is there."""
    top, _, name = url.rstrip("/").rpartition("/")
    folder = cache_directory("outputs") / fingerprint(url.rstrip("/"))
    _outputs[f"{folder}/"] = f"{top}/"
    return folder / name


def upload(place: Path, url: str) -> None:
    """Upload a finished file or folder, and delete it here. What describes a folder comes last.

    Raises InputError if the URL cannot be written; `place` stays then.
    """
    store = ObjectStore(url)
    if place.is_file():
        store.upload(place, store.path)
    files = [file for file in place.rglob("*") if file.is_file() and file.suffix != ".lock"]
    for file in sorted(files, key=lambda file: (file.suffix == ".json", file)):
        inside = file.relative_to(place).as_posix()
        store.upload(file, f"{store.path.rstrip('/')}/{inside}")
    remove(place)


@dataclass(frozen=True)
class _Names:
    """How a URL is divided: `top` is above the folder that all its files lie in, and `rest` is what
    follows that folder: a file's name, a pattern, or nothing."""

    top: str
    folder: str
    rest: str

    @classmethod
    def of(cls, store: ObjectStore, folder: str) -> _Names:
        rest = store.path.rstrip("/")[len(folder) :].lstrip("/")
        whole = store.url.rstrip("/").removesuffix(rest)
        top, _, name = whole.rstrip("/").rpartition("/")
        if not top:  # `memory://`, where nothing is above the file
            top, name = whole.removesuffix("/"), ""
        if store.protocol in WEB:
            rest = unquote(Path(urlsplit(store.url).path).name) or "index"
        return cls(f"{top}/", name, rest)


def _fetched(url: str) -> Path:
    """Copy what a URL means to the cache, as far as it is not there, and return its place."""
    store = ObjectStore(url)
    folder, files = store.find()
    files = _without_weights(folder, files)
    names = _Names.of(store, folder)
    root = cache_directory("remote")
    key = fingerprint(url, [[file.path, file.size, file.version] for file in files])
    place = root / "copies" / key
    try:
        contents = _contents(store, files, root / "contents")
        for file, content in zip(files, contents, strict=True):
            inside = names.rest if store.protocol in WEB else file.path[len(folder) :].lstrip("/")
            _link(content, place / names.folder / inside)
    except OSError as error:
        raise _no_place(root, error) from error
    _origins[f"{place}/"] = names.top
    return place / names.folder / names.rest


def _without_weights(folder: str, files: list[StoredFile]) -> list[StoredFile]:
    """A run's files but for its policies' weights, which nobody reads who gives the whole run."""
    if all(file.path != f"{folder}/{LEDGER}" for file in files):
        return files
    return [f for f in files if "/policy/" not in f.path or f.path.endswith(".json")]


def _contents(store: ObjectStore, files: Sequence[StoredFile], folder: Path) -> list[Path]:
    """The content of each file, fetched where it is not there yet."""
    folder.mkdir(parents=True, exist_ok=True)
    places = [folder / fingerprint(store.protocol, file.path, file.version) for file in files]
    pairs = zip(files, places, strict=True)
    lacking = [(file, place) for file, place in pairs if not _is_there(file, place)]
    _require_room(folder, store.url, sum(max(file.size, 0) for file, _ in lacking))
    at_once(lambda pair: _fetch(store, *pair), lacking)
    return places


def at_once(action: Callable[[T], None], items: Iterable[T]) -> None:
    """Call for each item, AT_ONCE of them at the same time. Raises what the first failure does."""
    with ThreadPoolExecutor(CONCURRENT_TRANSFERS) as threads:
        for done in [threads.submit(action, item) for item in items]:
            done.result()


def _is_there(file: StoredFile, place: Path) -> bool:
    return bool(file.version) and place.is_file() and file.size in (-1, place.stat().st_size)


def _fetch(store: ObjectStore, file: StoredFile, place: Path) -> None:
    handle, part = tempfile.mkstemp(prefix=f"{place.name}.", suffix=PART, dir=place.parent)
    os.close(handle)
    try:
        store.download(file, Path(part))
        os.replace(part, place)
    finally:
        Path(part).unlink(missing_ok=True)


def _link(content: Path, name: Path) -> None:
    """Give a content the name that it has in the store; the same link may be there already."""
    name.parent.mkdir(parents=True, exist_ok=True)
    with suppress(FileExistsError):
        name.symlink_to(content)


def _require_room(folder: Path, url: str, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise InputError(
            f"cannot fetch {url}: it has {needed / 1e9:,.1f} GB and {folder} has room for "
            f"{free / 1e9:,.1f} GB; give a part of it (a file or a pattern), or set XDG_CACHE_HOME "
            "to a folder on a larger disk"
        )


def _no_place(root: Path, error: OSError) -> InputError:
    return InputError(f"{cannot_write(root, error)}: set XDG_CACHE_HOME to one")
