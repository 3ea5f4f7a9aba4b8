"""Files that appear whole or not at all.

Every artefact is written as `NAME.part`, synced and renamed; a run that is killed leaves either the
finished file or nothing that a reader would take for it.
"""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cropi.errors import InputError
from cropi.schema import fingerprint

if TYPE_CHECKING:
    import pyarrow as pa

POLICY_RECORD = "cropi_stage.json"
"""In a policy's folder: what it was made from."""
DISK_ERRORS = frozenset(
    {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO}
)
"""Error numbers which mean that the target cannot be written."""


def file_hash(path: Path) -> str:
    """Return a short content hash of a file."""
    digest = hashlib.sha256()
    with path.open("rb") as handle:
        while block := handle.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()[:16]


def folder_hash(folder: Path, patterns: tuple[str, ...]) -> str:
    """Return a short hash over the names and contents of the files that match."""
    files = sorted({f for p in patterns for f in folder.glob(p)})
    return fingerprint([(f.relative_to(folder).as_posix(), file_hash(f)) for f in files])


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Yield a path to write to; on success it is synced and renamed to `path`.

    Raises InputError if `path` cannot be written.
    """
    part = path.with_name(path.name + ".part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield part
        with part.open("rb") as handle:
            os.fsync(handle.fileno())
        os.replace(part, path)
    except OSError as error:
        raise cannot_write(path, error) from error
    finally:
        # A disk that cannot be written may refuse this too; the first error is the one to report.
        with suppress(OSError):
            part.unlink()


def cannot_write(path: Path, error: OSError) -> InputError:
    """Return the error for a path that cannot be written."""
    reason = error.strerror or str(error)
    return InputError(
        f"cannot write {path}: {reason}; choose a directory that exists and that you may write to, "
        "with space left on its disk"
    )


def require_writable(path: Path) -> None:
    """Raise InputError unless the file `path` can be written; call it before expensive work."""
    if path.is_dir():
        raise InputError(f"cannot write {path}: it is a directory; give the path of a file")
    probe = path.with_name(path.name + ".part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise cannot_write(path, error) from error


@contextmanager
def atomic_folder(folder: Path) -> Iterator[Path]:
    """Yield an empty folder to fill; on success it takes the name `folder` in one rename.

    Raises InputError if `folder` cannot be written, before the work that fills it.
    """
    if folder.exists() and not folder.is_dir():
        raise InputError(f"cannot write {folder}: it is a file; give the path of a directory")
    part = folder.with_name(folder.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    try:
        part.mkdir(parents=True)
    except OSError as error:
        raise cannot_write(folder, error) from error
    try:
        yield part
        for file in part.rglob("*"):
            if file.is_file():
                with file.open("rb") as handle:
                    os.fsync(handle.fileno())
        _replace_folder(part, folder)
    except OSError as error:
        if error.errno not in DISK_ERRORS:
            raise
        raise cannot_write(folder, error) from error
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _replace_folder(part: Path, folder: Path) -> None:
    """Rename `part` to `folder`; the old folder is deleted only after that."""
    old = folder.with_name(folder.name + ".old")
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        os.replace(folder, old)
    os.replace(part, folder)
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
    """Read a JSONL file that may be half written: its rows, and how many lines are not JSON."""
    if not path.is_file():
        return [], 0
    lines = path.read_text(encoding="utf-8", errors="replace").split("\n")
    rows = [_row(line) for line in lines if line.strip()]
    return [row for row in rows if row], rows.count(None)


def _row(line: str) -> dict[str, Any] | None:
    """The row on a line; empty for JSON that is not an object, None for what is not JSON."""
    try:
        row = json.loads(line)
    except json.JSONDecodeError:
        return None
    return row if isinstance(row, dict) else {}


def write_table(path: Path, table: pa.Table, metadata: Mapping[str, str] | None = None) -> None:
    """Write a Parquet file atomically, `metadata` added to the schema's."""
    import pyarrow.parquet as pq

    schema_metadata = dict(table.schema.metadata or {})
    schema_metadata |= {k.encode(): v.encode() for k, v in (metadata or {}).items()}
    with atomic_write(path) as part:
        pq.write_table(table.replace_schema_metadata(schema_metadata), part, compression="zstd")


def read_table(path: Path) -> pa.Table:
    """Read a Parquet file.

    Raises InputError if it is missing, empty or not Parquet.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    require_file(path)
    try:
        return pq.read_table(path, partitioning=None)
    except (pa.ArrowException, OSError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"{path} is not a readable Parquet file: {reason}") from error


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
    metadata = table.schema.metadata or {}
    return {k.decode(): v.decode() for k, v in metadata.items() if k.startswith(b"cropi.")}
