"""Files behind a URL, through fsspec: what is there, whether it has changed, and how to get it.

Every failure is one `InputError`: it names the URL and says whether a package, credentials, the
object or the network is what lacks. What may pass by itself (a server's 500s, a lost connection) is
tried again first.
"""

from __future__ import annotations

import hashlib
import logging
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from importlib.metadata import metadata
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

import tenacity

from cropi.errors import InputError
from cropi.text import WILDCARD

T = TypeVar("T")
ATTEMPTS = 3
"""Of our own; s3fs and gcsfs make several in each."""
LONGEST_WAIT_S = 20.0
"""Between two attempts; the first waits are shorter."""
EXTRAS = {"s3": "s3", "s3a": "s3", "gs": "gs", "gcs": "gs"}
"""The extra of cropi that brings the package for a kind of URL."""
FSSPEC_EXTRAS = {"https": "http", "az": "abfs", "abfss": "abfs", "ssh": "sftp"}
"""The extra of fsspec that brings it, where that is not called like the kind of URL."""
WEB = ("http", "https")
"""Kinds of URLs whose folders cannot be listed, and in which `?` is not a wildcard."""
_VERSION = (
    *("ETag", "etag", "generation", "blob_id", "md5Hash", "Digest", "LastModified"),
    *("last_modified", "Last-Modified", "last_commit", "updated", "mtime", "created"),
)
"""What file systems call that which changes with a file's content."""
_NO_ACCESS = {
    *("PermissionError", "NoCredentialsError", "DefaultCredentialsError", "RefreshError"),
    *("PartialCredentialsError", "GatedRepoError", "TokenRetrievalError"),
}
_FINAL = {
    *("FileNotFoundError", "FileExistsError", "IsADirectoryError", "NotADirectoryError"),
    *("ImportError", "InputError", *_NO_ACCESS),
}
"""Exceptions that another attempt would raise again, by name: each package has its own."""
_UNREACHABLE = {"ClientConnectionError", "ConnectionError", "TimeoutError"}


@dataclass(frozen=True)
class StoredFile:
    """A file of an object store: its path there, its size, and what changes with its content."""

    path: str
    size: int
    version: str


class ObjectStore:
    """The file system of a URL, and the path in it that the URL means."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.protocol = url.partition(":")[0].lower()
        _silence_loggers()
        require_supported(url)
        with explained(url):
            import fsspec

            self.files, self.path = fsspec.core.url_to_fs(url)
            self.files.invalidate_cache()  # what was listed before may have changed

    def find(self) -> tuple[str, list[StoredFile]]:
        """The folder that everything lies in, and the files that the URL means: itself, those that
        match it where it is a pattern, or all in it.

        Raises InputError if there are none, or they cannot be listed.
        """
        alone = self._file()
        if alone is not None:
            return alone.path.rpartition("/")[0], [alone]
        if WILDCARD.search(self.path):
            listed = self._call(lambda: self.files.glob(self.path, detail=True))
            folder = WILDCARD.split(self.path)[0].rpartition("/")[0]
        else:
            listed = self._call(lambda: self.files.find(self.path, detail=True))
            folder = self.path.rstrip("/")
        files = [
            _stored(path, info)
            for path, info in listed.items()
            if _is_file(path, info) and not _is_hidden(path[len(folder) :])
        ]
        if not files:
            raise InputError(f"cannot read {self.url}: there is no such file; check the URL")
        return folder, sorted(files, key=lambda file: file.path)

    def _file(self) -> StoredFile | None:
        """The file that the URL names; None if it names a folder, a pattern, or nothing."""
        with explained(self.url):
            try:
                info = with_retries(lambda: self.files.info(self.path))
            except FileNotFoundError:
                if self.protocol in WEB:
                    raise
                return None
        return _stored(self.path, info) if info.get("type") == "file" else None

    def download(self, file: StoredFile, target: Path) -> None:
        """Copy a file of the store to `target`, which may be half written if this fails."""

        def fetch() -> None:
            self.files.get_file(file.path, str(target))
            if file.size >= 0 and target.stat().st_size != file.size:
                raise ConnectionError(f"{target.stat().st_size:,} of {file.size:,} bytes came")

        self._call(fetch)

    def under(self, folder: str = "") -> list[StoredFile]:
        """All files below a folder of the URL's, hidden ones too; none if there is none."""
        self.files.invalidate_cache()
        place = self.at(folder)
        listed = self._call(lambda: self.files.find(place, detail=True))
        return [_stored(path, info) for path, info in listed.items() if _is_file(path, info)]

    def at(self, name: str) -> str:
        """The path in the store of a name below the URL."""
        return f"{self.path.rstrip('/')}/{name}".rstrip("/")

    def read(self, path: str) -> bytes | None:
        """The content of a file; None if there is none."""

        def cat() -> bytes | None:
            try:
                content: bytes = self.files.cat_file(path)
            except FileNotFoundError:
                return None
            return content

        return self._call(cat)

    def write(self, path: str, content: bytes) -> None:
        """Write a file, which appears whole or not at all."""
        with self._writing(path):
            with_retries(lambda: self.files.pipe_file(path, content))

    def create(self, path: str, content: bytes) -> bool:
        """Write a file unless there is one; whether it was written. One of several wins."""
        with self._writing(path):
            try:
                with_retries(lambda: self.files.pipe_file(path, content, mode="create"))
            except FileExistsError:
                # An attempt whose answer was lost may have been the one that wrote it.
                return bool(self.files.cat_file(path) == content)
        return True

    def remove(self, paths: Sequence[str]) -> None:
        """Delete files; one that is already gone is not an error."""
        with self._writing(self.path):
            for path in paths:
                with suppress(FileNotFoundError):
                    with_retries(partial(self.files.rm_file, path))

    def _writing(self, path: str) -> AbstractContextManager[None]:
        return explained(f"{self.protocol}://{path.lstrip('/')}", "write")

    def upload(self, source: Path, path: str) -> None:
        """Copy a local file to `path` in the store, where it appears whole or not at all."""
        with self._writing(path):
            with_retries(lambda: self.files.put_file(str(source), path))

    def _call(self, action: Callable[[], T]) -> T:
        """What `action` returns, tried again where that may help."""
        with explained(self.url):
            return with_retries(action)


def require_supported(url: str, doing: str = "read") -> None:
    """Raise InputError for a kind of URL whose package is missing, or that there is not, and for a
    pattern on the web. The network is not asked."""
    protocol = url.partition(":")[0].lower()
    if protocol in WEB and "*" in urlsplit(url).path:
        raise InputError(
            f"cannot {doing} {url}: patterns do not work on {protocol}, where files cannot be "
            "listed; give each file as a source of its own (a star in a name is %2A)"
        )
    with explained(url, doing):
        from fsspec import get_filesystem_class

        get_filesystem_class(protocol)


def _silence_loggers() -> None:
    """Keep packages from logging what is tried again, or becomes an error of ours anyway."""
    for name in ("s3fs", "gcsfs", "fsspec"):
        logger = logging.getLogger(name)
        if logger.level == logging.NOTSET:
            logger.setLevel(logging.CRITICAL)


def with_retries(action: Callable[[], T]) -> T:
    """Call until it succeeds, at most `ATTEMPTS` times; a final error is raised at once."""
    again = tenacity.Retrying(
        stop=tenacity.stop_after_attempt(ATTEMPTS),
        wait=tenacity.wait_random_exponential(0.25, LONGEST_WAIT_S),
        retry=tenacity.retry_if_exception(lambda error: not _is_final(error)),
        reraise=True,
    )
    return again(action)


def _is_final(error: BaseException) -> bool:
    return not isinstance(error, Exception) or bool(_names(_actual(error)) & _FINAL)


def _actual(error: Exception) -> Exception:
    """What went wrong: fsspec calls a file of the web not found, whatever the server said."""
    cause = error.__cause__
    if not isinstance(error, FileNotFoundError) or not isinstance(cause, Exception):
        return error
    refused = getattr(cause, "status", 404) not in (404, 410)
    return cause if refused or _names(cause) & _UNREACHABLE else error


def _names(error: BaseException) -> set[str]:
    """The names of an exception's classes, and of those that it was raised from."""
    names = {each.__name__ for each in type(error).__mro__}
    cause = error.__cause__
    return names | (_names(cause) if cause is not None else set())


def _is_file(path: str, info: dict[str, Any]) -> bool:
    """Whether an entry is a file; consoles leave empty objects where they made a folder."""
    return info.get("type") == "file" and not path.endswith("/")


def _is_hidden(path: str) -> bool:
    """Whether a name is one of a hidden file, or leads out of its folder: names here are free."""
    return any(part.startswith((".", "_")) for part in path.split("/"))


def _stored(path: str, info: dict[str, Any]) -> StoredFile:
    """An entry of a listing. Without anything that tells a new content, it always counts as new."""
    size = info.get("size")
    named = [str(info[key]) for key in _VERSION if info.get(key) is not None]
    lfs = info.get("lfs")
    named += [str(lfs)] if lfs else []
    version = hashlib.sha256(repr([size, named]).encode()).hexdigest() if named else ""
    return StoredFile(path, -1 if size is None else int(size), version)


@contextmanager
def explained(url: str, doing: str = "read") -> Iterator[None]:
    """Turn what file systems raise into an InputError that says what to do about it."""
    try:
        yield
    except InputError:
        raise
    # Each file system has exceptions of its own.
    except Exception as error:
        raise InputError(f"cannot {doing} {url}{_advice(url, _actual(error))}") from error


def _advice(url: str, error: Exception) -> str:
    """The rest of the sentence: what is wrong, and what to do."""
    names, protocol = _names(error), url.partition(":")[0].lower()
    reason = " ".join(f"{type(error).__name__} {error}".split())[:200]
    if "FileNotFoundError" in names:
        return ": there is no such file; check the URL"
    if "ImportError" in names:
        return f": a package is missing ({error}); {_installing(protocol)}"
    if isinstance(error, ValueError) and "rotocol not known" in str(error):
        usual = "s3://, gs://, hf:// or https://"
        return f": {protocol}:// is not a kind of URL that fsspec knows; use {usual}"
    if names & _NO_ACCESS or re.search(r"\b(401|403)\b|Forbidden|Unauthorized", str(error)):
        return f": no access ({reason}); give credentials that may, {_credentials(protocol)}"
    return f" ({reason}); check the URL and the network"


def _installing(protocol: str) -> str:
    """How the package for a kind of URL is installed: by an extra of cropi, or one of fsspec."""
    if extra := EXTRAS.get(protocol):
        return f"pip install 'cropi[{extra}]'"
    name = FSSPEC_EXTRAS.get(protocol, protocol)
    if name in (metadata("fsspec").get_all("Provides-Extra") or ()):
        return f"pip install 'fsspec[{name}]'"
    return "install what it names with pip"


def _credentials(protocol: str) -> str:
    """Where credentials for a kind of URL are looked for."""
    if EXTRAS.get(protocol) == "s3":
        return (
            "such as AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY or a profile (AWS_PROFILE), or "
            "FSSPEC_S3_ANON=true for a public bucket"
        )
    if EXTRAS.get(protocol) == "gs":
        return "such as GOOGLE_APPLICATION_CREDENTIALS, or FSSPEC_GS_TOKEN=anon for a public bucket"
    return "such as HF_TOKEN" if protocol == "hf" else "in fsspec's configuration"
