"""Rows of one file, numbered as a person would count them, or one sentence about the first bad one.

JSON lines, JSON, CSV and TSV may be compressed, which is seen from their first bytes.
"""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import re
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, TextIO, cast

from cropi.errors import InputError
from cropi.prompts.csv_rows import read_csv
from cropi.store import files
from cropi.text import plural, shortened, shown

if TYPE_CHECKING:
    import pyarrow as pa

NumberedRow = tuple[int, Mapping[str, Any]]
"""A row with its number from 1, as somebody who reads the file would count it."""
BATCH_ROWS = 1_000
ENDINGS = (".jsonl", ".json", ".csv", ".tsv", ".parquet", ".arrow")
"""Of files with rows; all but the last two may be followed by one of `COMPRESSED`."""
COMPRESSED = (".gz", ".zst", ".bz2", ".xz")
_SAME_KIND = {".ndjson": ".jsonl", ".feather": ".arrow", ".ipc": ".arrow", ".pq": ".parquet"}
_BINARY = (".parquet", ".arrow")
_MAGIC = {b"\x1f\x8b": "gzip", b"\x28\xb5\x2f\xfd": "zstd", b"BZh": "bz2", b"\xfd7zXZ": "xz"}
_ARROW_FILE = b"ARROW1"
_BLANKS = re.compile(r"\s*")


def kind_of(path: Path) -> str:
    """The ending in `ENDINGS` that says what a file holds, whether or not it is compressed.

    Raises InputError for a file of another kind.
    """
    ending, packed = endings(path)
    if ending in ENDINGS and not (packed and ending in _BINARY):
        return ending
    raise InputError(
        f"{path} ends in {path.suffix!r}; prompts come from {', '.join(ENDINGS)} (and "
        f"{', '.join(COMPRESSED)} after the text kinds): convert it"
    )


def endings(path: Path) -> tuple[str, str]:
    """The ending for what is in a file, and the one for how it is compressed, lower case."""
    packed = path.suffix.lower() if path.suffix.lower() in COMPRESSED else ""
    inner = Path(path.stem).suffix.lower() if packed else path.suffix.lower()
    return _SAME_KIND.get(inner, inner), packed


def holds_text_rows(path: Path) -> bool:
    """Whether a file's name says that it holds rows as text, compressed or not."""
    return endings(path)[0] in ENDINGS and endings(path)[0] not in _BINARY


def base_name(path: Path) -> str:
    """A file's name without endings and shard numbers; the default `source` of its rows."""
    name = path.stem
    if endings(path)[1]:
        name = Path(name).stem
    return re.sub(r"-\d+-of-\d+$", "", name) or name


def open_rows(path: Path, torn: list[str] | None = None) -> Iterator[NumberedRow]:
    """Yield the rows of a file one by one.

    With `torn`, JSON lines may hold rows that are half written, as a program that was killed leaves
    them: they are left out, and counted there.

    Raises InputError if the file is empty, of another kind, or damaged.
    """
    lines = _read_jsonl if torn is None else partial(_read_torn_jsonl, torn=torn)
    readers: dict[str, Callable[[Path], Iterator[NumberedRow]]] = {
        ".jsonl": lines,
        ".json": _read_json,
        ".csv": _read_csv,
        ".tsv": _read_csv,
        ".parquet": _read_parquet,
        ".arrow": _read_arrow,
    }
    reader = readers[kind_of(path)]
    files.require_file(path)
    try:
        yield from reader(path)
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 text ({error.reason}); save it as UTF-8") from None
    except (OSError, EOFError, zlib.error, lzma.LZMAError) as error:
        reason = getattr(error, "strerror", None) or shortened(str(error), 200)
        raise InputError(
            f"cannot read {path}: {reason}; give a whole file that you may read"
        ) from error


def _open_text(path: Path, newline: str | None = None) -> TextIO:
    """Open a file of text, decompressed if its first bytes are those of a compressed one."""
    with path.open("rb") as file:
        start = file.read(6)
    packed = next((name for magic, name in _MAGIC.items() if start.startswith(magic)), None)
    return io.TextIOWrapper(_decompressed(path, packed), encoding="utf-8-sig", newline=newline)


def _decompressed(path: Path, packed: str | None) -> IO[bytes]:
    if packed == "gzip":
        return cast("IO[bytes]", gzip.open(path))
    if packed == "bz2":
        return bz2.open(path)
    if packed == "xz":
        return lzma.open(path)
    if packed == "zstd":
        import pyarrow as pa

        return cast("IO[bytes]", io.BufferedReader(pa.input_stream(str(path), packed)))
    return path.open("rb")


def _read_jsonl(path: Path) -> Iterator[NumberedRow]:
    if (spread := _rows_over_lines(path)) is not None:
        yield from spread
        return
    # Iterating the file splits at newlines only; str.splitlines would also cut inside strings.
    with _open_text(path) as lines:
        for number, line in enumerate(lines, 1):
            if line.strip():
                yield number, _object(_json(line, f"{path} row {number}"), f"{path} row {number}")


def _read_torn_jsonl(path: Path, torn: list[str]) -> Iterator[NumberedRow]:
    """JSON lines but those that are not whole, such as the last of a program that was killed."""
    if (spread := _rows_over_lines(path)) is not None:
        yield from spread
        return
    broken: list[int] = []
    number = 0
    with _open_text(path) as lines:
        try:
            for number, line in enumerate(lines, 1):
                where = f"{path} row {number}"
                try:
                    row = _object(_json(line, where), where) if line.strip() else None
                except InputError:
                    broken.append(number)
                    continue
                if row is not None:
                    yield number, row
        except (EOFError, zlib.error, lzma.LZMAError) as error:
            torn.append(f"{path.name} breaks off after row {number} ({error}): the rest is missing")
    if broken:
        torn.append(
            f"{path.name}: {plural(len(broken), 'row')} half written or no JSON, left out (the "
            f"first: row {broken[0]})"
        )


def _rows_over_lines(path: Path) -> list[NumberedRow] | None:
    """The rows of a file called .jsonl whose JSON is not one object a line; None for JSON lines.

    It is a list of rows, or row after row, each over several lines, as `jq` and editors write it.
    """
    try:
        with _open_text(path) as lines:
            first = next((line for line in lines if line.strip()), "").strip()
        if not first.startswith(("{", "[")) or (first.endswith("}") and _is_object(first)):
            return None
        with _open_text(path) as file:
            values = _json_values(file.read())
    except (ValueError, RecursionError, OSError, EOFError, zlib.error, lzma.LZMAError):
        return None  # half written lines, say, of which the reader of lines knows more
    if len(values) == 1 and isinstance(values[0], list):
        (values,) = values
    is_rows = values and all(isinstance(value, dict) for value in values)
    return list(enumerate(values, 1)) if is_rows else None


def _read_json(path: Path) -> Iterator[NumberedRow]:
    """A list of rows, an object with one, or row after row, as of JSON lines called .json."""
    with _open_text(path) as file:
        text = file.read()
    if _is_json_lines(text):
        yield from _read_jsonl(path)
        return
    values = _json(text, str(path), _json_values)
    rows = values if len(values) > 1 else _row_list(values[0], path)
    for number, row in enumerate(rows, 1):
        yield number, _object(row, f"{path} row {number}")


def _is_json_lines(text: str) -> bool:
    """Whether the first line with something on it is an object, and another line follows."""
    first, _, rest = text.lstrip().partition("\n")
    return first.startswith("{") and bool(rest.strip()) and _is_object(first)


def _is_object(text: str) -> bool:
    try:
        return isinstance(json.loads(text), dict)
    except (ValueError, RecursionError):
        return False


def _row_list(value: Any, path: Path) -> list[Any]:
    """The rows in a JSON file: the list that it is, or the one list of objects in its object.

    A table of columns and data, as Weights & Biases and pandas write them, is its rows.
    """
    if isinstance(value, list):
        return value
    if isinstance(value, dict) and _is_table(value.get("columns"), value.get("data")):
        return [dict(zip(value["columns"], row, strict=True)) for row in value["data"]]
    lists = {k: v for k, v in value.items() if _is_rows(v)} if isinstance(value, dict) else {}
    lists = {key: rows for key, rows in lists.items() if rows} or lists
    if len(lists) == 1:
        return list(*lists.values())
    if lists:
        raise InputError(
            f"{path} holds several lists of rows ({shortened(', '.join(lists), 200)}); write each "
            "to a file of its own"
        )
    raise InputError(
        f"{path} holds JSON of type {type(value).__name__} without a list of rows; give a list of "
        'objects, {"data": [...]}, or one object per line in a .jsonl file'
    )


def _is_table(columns: Any, data: Any) -> bool:
    """Whether there are names, each once, and lists of as many cells."""
    return (
        isinstance(columns, list)
        and all(isinstance(name, str) for name in columns)
        and len(set(columns)) == len(columns)
        and isinstance(data, list)
        and all(isinstance(row, list) and len(row) == len(columns) for row in data)
    )


def _is_rows(value: Any) -> bool:
    return isinstance(value, list) and (not value or any(isinstance(row, dict) for row in value))


def _read_csv(path: Path) -> Iterator[NumberedRow]:
    with _open_text(path, newline="") as lines:
        yield from read_csv(lines, str(path), "\t" if kind_of(path) == ".tsv" else None)


def _json_value(text: str) -> Any:
    return json.loads(text, object_pairs_hook=_single_keys)


def _json_values(text: str) -> list[Any]:
    """All values of a text, one after the other. Raises ValueError if it is anything else."""
    decoder = json.JSONDecoder(object_pairs_hook=_single_keys)
    values, place = list[Any](), _after_blanks(text, 0)
    while place < len(text) or not values:
        value, end = decoder.raw_decode(text, place)
        values.append(value)
        place = _after_blanks(text, end)
    return values


def _after_blanks(text: str, place: int) -> int:
    blanks = _BLANKS.match(text, place)
    return place if blanks is None else blanks.end()


def _json(text: str, where: str, read: Callable[[str], Any] = _json_value) -> Any:
    try:
        return read(text)
    except RecursionError:
        raise InputError(f"{where} is nested too deep; flatten it") from None
    except ValueError as error:  # JSON that is none, a key twice, an integer of thousands of digits
        raise InputError(
            f"{where} is not valid JSON ({shortened(str(error), 200)}); fix it"
        ) from None


def _single_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """The object of these pairs. Raises ValueError for a key that appears twice."""
    values = dict(pairs)
    if len(values) < len(pairs):
        (twice, _), *_ = Counter(key for key, _ in pairs).most_common(1)
        raise ValueError(f"the key {shown(twice, 60)} appears twice")
    return values


def _object(value: Any, where: str) -> Mapping[str, Any]:
    if isinstance(value, dict):
        return value
    raise InputError(
        f"{where} is of type {type(value).__name__}; give an object with a question and an answer"
    )


def _read_parquet(path: Path) -> Iterator[NumberedRow]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            _require_single_columns(file.schema_arrow.names, path)
            yield from rows_of(file.iter_batches(batch_size=BATCH_ROWS), path)
    except (pa.ArrowException, OSError) as error:
        raise _unreadable(path, "Parquet", error) from error


def _read_arrow(path: Path) -> Iterator[NumberedRow]:
    """Arrow's file format, or its stream format, which `datasets` saves."""
    import pyarrow as pa

    try:
        with pa.memory_map(str(path)) as source:
            is_file = source.read(len(_ARROW_FILE)) == _ARROW_FILE
            source.seek(0)
            reader = pa.ipc.open_file(source) if is_file else pa.ipc.open_stream(source)
            _require_single_columns(reader.schema.names, path)
            whole = map(reader.get_batch, range(reader.num_record_batches)) if is_file else reader
            batches = (
                batch.slice(start, BATCH_ROWS)
                for batch in whole
                for start in range(0, batch.num_rows, BATCH_ROWS)
            )
            yield from rows_of(batches, path)
    except (pa.ArrowException, OSError) as error:
        raise _unreadable(path, "Arrow", error) from error


def _unreadable(path: Path, kind: str, error: Exception) -> InputError:
    reason = shortened(str(error).splitlines()[0] if str(error) else "damaged", 200)
    return InputError(f"{path} is not a readable {kind} file: {reason}")


def rows_of(batches: Iterable[pa.RecordBatch], path: Path) -> Iterator[NumberedRow]:
    """Yield the rows of a file's batches. Raises InputError naming a cell that cannot be read."""
    first = 1
    for batch in batches:
        yield from enumerate(_batch_rows(batch, path, first), first)
        first += batch.num_rows


def _require_single_columns(names: list[str], path: Path) -> None:
    if twice := [name for name, count in Counter(names).items() if count > 1]:
        raise InputError(f"{path} has the column {shown(twice[0], 60)} twice; rename one")


def _batch_rows(batch: pa.RecordBatch, path: Path, first: int) -> list[dict[str, Any]]:
    """The rows of a batch whose first has the number `first`; maps become dicts."""
    try:
        rows: list[dict[str, Any]] = batch.to_pylist(maps_as_pydicts="strict")
        return rows
    except Exception as error:  # noqa: BLE001  dates past 9999, text that is not UTF-8, unknown time zones, ...
        place = _unreadable_cell(batch, first)
        reason = shortened(" ".join(f"{type(error).__name__}: {error}".split()), 200)
        raise InputError(
            f"{path} {place} holds a value that cannot be read ({reason}); fix or remove it"
        ) from None


def _unreadable_cell(batch: pa.RecordBatch, first: int) -> str:
    """Say which cell of a batch is the first that Python cannot hold."""
    for row in range(batch.num_rows):
        for name in batch.schema.names:
            try:
                batch.column(name).slice(row, 1).to_pylist(maps_as_pydicts="strict")
            except Exception:  # noqa: BLE001  whatever it is, this is the cell
                return f"row {first + row}, column {shown(name, 60)},"
    return f"rows {first} to {first + batch.num_rows - 1}"
