"""Files that appear whole or not at all.

Every artefact is written as `NAME.part`, synced and renamed; a run that is killed leaves either the
finished file or nothing that a reader would take for it.
"""

from __future__ import annotations

import errno
import hashlib
import json
import math
import mmap
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import xxhash

from cropi.errors import InputError
from cropi.text import remote_url, shown

if TYPE_CHECKING:
    import pyarrow as pa

PART, OLD = ".part", ".old"
"""What is appended to the name of an output while it is written, and while it is replaced."""
POLICY_RECORD = "cropi_stage.json"
"""In a policy's folder: what it was made from."""
SEAL = "cropi.content"
SEAL_PREFIX = b"cropi-xxh3-128:"
"""Key, and beginning of the value, in a Parquet file's footer that hold the hash of the file."""
FOOTER_BYTES = 1 << 20
"""How far from the end of the file they are at most."""
DISK_ERRORS = frozenset(
    {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO}
    | {errno.EISDIR, errno.ENOTDIR}
)
"""Error numbers which mean that the target cannot be written."""


def file_hash(path: Path) -> str:
    """Return a short content hash of a file."""
    digest = hashlib.sha256()
    with path.open("rb") as handle:
        while block := handle.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()[:16]


def bytes_hash(content: bytes) -> str:
    """Return the hash that `file_hash` returns of a file with this content."""
    return hashlib.sha256(content).hexdigest()[:16]


def content_hash(file: Path) -> str:
    """Return a hash of a file's content; a file that has not changed is read once per process."""
    state = _file_state(file)
    if state not in _hashes:
        _hashes[state] = _hash_of(file)
    return _hashes[state]


def _file_state(file: Path) -> tuple[int, ...]:
    state = file.stat()
    return state.st_dev, state.st_ino, state.st_size, state.st_mtime_ns, state.st_ctime_ns


_hashes: dict[tuple[int, ...], str] = {}
"""By the files' state; a file that is renamed together with its folder is not read again."""


def _hash_of(file: Path) -> str:
    digest = xxhash.xxh3_128()
    with file.open("rb", buffering=0) as handle:
        while block := handle.read(1 << 24):
            digest.update(block)
    return digest.hexdigest()


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Yield a path to write to; on success it is synced and renamed to `path`.

    A link stays, and what it leads to is written. Raises InputError if `path` cannot be written.
    """
    path = _written_place(path)
    part = path.with_name(path.name + PART)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield part
        with part.open("rb") as handle:
            os.fsync(handle.fileno())
        os.replace(part, path)
        sync_folder(path.parent)
    except OSError as error:
        raise cannot_write(path, error) from error
    finally:
        # A disk that cannot be written may refuse this too; the first error is the one to report.
        with suppress(OSError):
            part.unlink()


def sync_folder(folder: Path) -> None:
    """Make the names in a folder last through a power cut, as `fsync` does a file's content."""
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError:
        return  # Windows, and folders that may be written but not read
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EBADF):
            raise
    finally:
        os.close(handle)


def cannot_write(path: Path, error: OSError) -> InputError:
    """Return the error for a path that cannot be written."""
    if url := remote_url(path):
        return InputError(
            f"cannot write {url}: only a run's `out` and the command line's --out may be URLs; "
            "write to a directory and upload it"
        )
    if error.errno in (errno.ENOTDIR, errno.EEXIST):
        file = next(
            (place for place in path.parents if place.exists() and not place.is_dir()), None
        )
        if file is not None:
            return InputError(
                f"cannot write {path}: {file} is not a directory; give a path in one that exists"
            )
    reason = error.strerror or str(error)
    return InputError(
        f"cannot write {path}: {reason}; choose a directory that exists and that you may write to, "
        "with space left on its disk"
    )


def require_local(path: Path) -> None:
    """Raise InputError for a URL, which would become a folder `s3:` here."""
    if remote_url(path):
        raise cannot_write(path, OSError())


def _written_place(path: Path) -> Path:
    """The file that is written for `path`: of a link what it leads to.

    Raises InputError for a URL, and for a device or a pipe, in whose place there would be a file.
    """
    require_local(path)
    try:
        ordinary = not path.exists() or path.is_file() or path.is_dir()
    except OSError as error:  # a name that is too long
        raise cannot_write(path, error) from error
    if not ordinary:
        raise InputError(
            f"cannot write {path}: it is a device, a pipe or a socket; give the path of a file"
        )
    return path.resolve() if path.is_symlink() else path


def remove(path: Path) -> None:
    """Remove a file, or a folder with all that is in it; nothing if there is none."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def require_writable(path: Path) -> None:
    """Raise InputError unless the file `path` can be written; call it before expensive work."""
    if path.is_dir():
        raise InputError(f"cannot write {path}: it is a directory; give the path of a file")
    path = _written_place(path)
    probe = path.with_name(path.name + PART)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise cannot_write(path, error) from error


def require_replaceable(folder: Path, record: str, writer: str) -> None:
    """Raise InputError for a folder with something in it, unless it has a `writer`'s `record`."""
    if folder.is_dir() and any(folder.iterdir()) and not (folder / record).is_file():
        raise InputError(
            f"{folder} holds files that no {writer} wrote, and everything in it would be "
            "replaced; give a new path"
        )


@contextmanager
def atomic_folder(folder: Path) -> Iterator[Path]:
    """Yield an empty folder to fill; on success it takes the name `folder` in one rename.

    Raises InputError if `folder` cannot be written, before the work that fills it.
    """
    if folder.exists() and not folder.is_dir():
        raise InputError(f"cannot write {folder}: it is a file; give the path of a directory")
    require_local(folder)
    part = folder.with_name(folder.name + PART)
    try:
        _restore_folder(folder)
        remove(part)
        part.mkdir(parents=True)
    except OSError as error:
        raise cannot_write(folder, error) from error
    try:
        yield part
        for file in part.rglob("*"):
            if file.is_file():
                with file.open("rb") as handle:
                    os.fsync(handle.fileno())
            elif file.is_dir():
                sync_folder(file)
        sync_folder(part)
        _replace_folder(part, folder)
    except OSError as error:
        if error.errno not in DISK_ERRORS:
            raise
        raise cannot_write(folder, error) from error
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _restore_folder(folder: Path) -> None:
    """Give a folder its name again if a kill came between the two renames of `_replace_folder`."""
    old = folder.with_name(folder.name + OLD)
    if old.is_dir() and not folder.exists():
        os.replace(old, folder)


def _replace_folder(part: Path, folder: Path) -> None:
    """Rename `part` to `folder`; the old folder is deleted only after that."""
    old = folder.with_name(folder.name + OLD)
    remove(old)
    if folder.exists():
        os.replace(folder, old)
    os.replace(part, folder)
    sync_folder(folder.parent)
    shutil.rmtree(old, ignore_errors=True)


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file atomically."""
    text = json.dumps(value, indent=2, ensure_ascii=False, default=str) + "\n"
    with atomic_write(path) as part:
        part.write_text(text, encoding="utf-8", newline="\n")


def strict_json(value: Any) -> Any:
    """Return a value as strict JSON has it: NaN and infinities become null, tuples lists."""
    if isinstance(value, Mapping):
        return {str(k): strict_json(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [strict_json(v) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def write_jsonl(path: Path, rows: list[dict[str, Any]]) -> None:
    """Write a JSONL file atomically."""
    text = "".join(json.dumps(r, ensure_ascii=False, default=str) + "\n" for r in rows)
    with atomic_write(path) as part:
        part.write_text(text, encoding="utf-8", newline="\n")


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """Read a JSONL file; a missing file has no lines."""
    if not path.exists():
        return []
    # Not splitlines(): a JSON string may hold U+2028, U+0085 and other marks that end a line there.
    lines = path.read_text(encoding="utf-8").split("\n")
    return [json.loads(line) for line in lines if line.strip()]


def read_partial_jsonl(path: Path) -> tuple[list[dict[str, Any]], int]:
    """Read a JSONL file that may be half written: its rows, and how many lines are no object."""
    if not path.is_file():
        return [], 0
    lines = path.read_text(encoding="utf-8", errors="replace").split("\n")
    rows = [_row(line) for line in lines if line.strip()]
    return [row for row in rows if row], rows.count(None)


def _row(line: str) -> dict[str, Any] | None:
    """The row on a line; None for what is no JSON object."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):  # also an integer of thousands of digits
        return None
    return row if isinstance(row, dict) else None


def write_table(path: Path, table: pa.Table, metadata: Mapping[str, str] | None = None) -> None:
    """Write a Parquet file atomically, `metadata` added to the schema's."""
    import pyarrow.parquet as pq

    schema_metadata = dict(table.schema.metadata or {})
    schema_metadata |= {k.encode(): v.encode() for k, v in (metadata or {}).items()}
    table = table.replace_schema_metadata(schema_metadata)
    with atomic_write(path) as part:
        with pq.ParquetWriter(part, table.schema, compression="zstd") as writer:
            writer.write_table(table)
            writer.add_key_value_metadata({SEAL: SEAL_PREFIX.decode() + "0" * 32})
        _seal(part)


def _seal(path: Path) -> None:
    """Put the hash of a Parquet file, itself left out, in the place that its footer keeps free."""
    with path.open("r+b") as handle, mmap.mmap(handle.fileno(), 0) as content:
        place = _seal_place(content)
        assert place is not None, "the footer has no place for the hash"
        content[place] = _hash_without(content, place)
        content.flush()


def _seal_place(content: mmap.mmap) -> slice | None:
    """Where a Parquet file has its hash; None if it has none."""
    start = content.rfind(SEAL_PREFIX, max(0, len(content) - FOOTER_BYTES))
    first = start + len(SEAL_PREFIX)
    return slice(first, first + 32) if start >= 0 else None


def _hash_without(content: mmap.mmap, place: slice) -> bytes:
    with memoryview(content) as view, view[: place.start] as head, view[place.stop :] as tail:
        digest = xxhash.xxh3_128(head)
        digest.update(tail)
        return digest.hexdigest().encode()


def _has_written_content(path: Path) -> bool:
    """Whether a Parquet file is as it was written, if it was cropi that wrote it."""
    with (
        path.open("rb") as handle,
        mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_READ) as content,
    ):
        place = _seal_place(content)
        if place is None:
            return content.rfind(SEAL.encode(), max(0, len(content) - FOOTER_BYTES)) < 0
        return content[place] == _hash_without(content, place)


def read_table(path: Path) -> pa.Table:
    """Read a Parquet file.

    Raises InputError if it is missing, empty or not Parquet, or if it is one that cropi wrote and
    its content has changed since.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    require_intact_table(path)
    try:
        names = pq.read_schema(path).names
        if twice := next((name for name in names if names.count(name) > 1), None):
            raise InputError(f"{path} has the column {shown(twice, 60)} twice; rename one")
        return pq.read_table(path, partitioning=None)
    except (pa.ArrowException, OSError) as error:
        reason = str(error).splitlines()[0].removesuffix(".")
        raise InputError(f"{path} is not a readable Parquet file: {reason}") from error


def require_intact_table(path: Path) -> None:
    """Raise InputError for a Parquet file that is missing, empty, or not what cropi wrote."""
    require_file(path)
    if not _has_written_content(path):
        raise InputError(
            f"{path} is not a readable Parquet file: it is damaged, its content is not what was "
            "written; make it again or restore it from a copy"
        )


def require_file(path: Path) -> None:
    """Raise InputError unless `path` is a file with something in it."""
    if not path.is_file():
        raise InputError(
            f"{path} does not exist or is not a file; give the path of an existing file"
        )
    if path.stat().st_size == 0:
        raise InputError(f"{path} is empty (0 bytes); give a file with at least one row")


def table_metadata(table: pa.Table) -> dict[str, str]:
    """Return the table's metadata that cropi wrote, decoded."""
    metadata = (table.schema.metadata or {}).items()
    ours = {key: value for key, value in metadata if key.startswith(b"cropi.")}
    return {k.decode(errors="replace"): v.decode(errors="replace") for k, v in ours.items()}
