"""Reading files by URL (`s3://`, `hf://`, `https://` and everything else that fsspec opens)."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cropi.errors import InputError

# Path collapses the two slashes of a URL; a drive of Windows has a single letter.
_URL = re.compile(r"([a-zA-Z][a-zA-Z0-9+.-]+):/{1,2}(?!/)(.+)")


def remote_url(path: str | Path) -> str | None:
    """Return the URL that `path` is, with both slashes restored; None for a local path."""
    match = _URL.fullmatch(str(path))
    return f"{match[1]}://{match[2]}" if match else None


@contextmanager
def local_copy(path: str | Path) -> Iterator[Path]:
    """Yield a local file with the content of `path`: itself, or a temporary copy of a URL.

    Errors raised in the block name the URL. Raises InputError if the URL cannot be read.
    """
    url = remote_url(path)
    if url is None:
        yield Path(path)
        return
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / url.rpartition("/")[2]
        _download(url, copy)
        try:
            yield copy
        except InputError as error:
            raise InputError(str(error).replace(str(copy), url)) from error


def _download(url: str, target: Path) -> None:
    import fsspec

    try:
        filesystem, name = fsspec.core.url_to_fs(url)
        filesystem.get_file(name, str(target))
    except ImportError as error:
        raise InputError(f"cannot read {url}: {error}; install that package") from error
    # Each file system has exceptions of its own.
    except Exception as error:
        reason = " ".join(f"{type(error).__name__} {error}".split())[:200]
        raise InputError(
            f"cannot read {url} ({reason}); check the URL, your credentials and the network"
        ) from error
    if not target.is_file():
        raise InputError(f"cannot read {url}: it is not a file; give the URL of a file")
