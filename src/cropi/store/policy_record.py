"""The record in a policy's folder: what it was made from, and the content of its files.

A run's ledger knows its policies too; the record goes with the folder wherever it is copied. Files
that were added afterwards are not looked at, and a folder without a record is one of another
program.
"""

from __future__ import annotations

from collections.abc import Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from cropi.errors import InputError
from cropi.schema import fingerprint
from cropi.store.cached import read_record
from cropi.store.files import POLICY_RECORD, content_hash, write_json

FILES, RECORD_HASH = "files", "record_hash"
OPTIMIZERS = {
    "": ("optimizer.pt",),
    "FSDP": ("optimizer.bin", "optimizer_[0-9]*"),
    "DEEPSPEED": ("global_step[0-9]*",),
    "VERL": ("verl",),
}
"""What the optimizer's state is saved as, by what shards it."""
TRAINING_STATE = (
    *("scheduler.pt", "rng_state*.pth", "pytorch_model_fsdp*", "latest", "zero_to_fp32.py"),
    *(pattern for patterns in OPTIMIZERS.values() for pattern in patterns),
)
"""Files that training continues from, and nothing else reads; they may be deleted."""


def write_policy_record(folder: Path, values: Mapping[str, Any]) -> None:
    """Write the record of a folder whose other files are all there: `values`, and their hashes."""
    files = [file for file in sorted(folder.rglob("*")) if file.is_file()]
    hashes = {
        file.relative_to(folder).as_posix(): content_hash(file)
        for file in files
        if file.name != POLICY_RECORD
    }
    record = {**values, FILES: hashes}
    write_json(folder / POLICY_RECORD, {**record, RECORD_HASH: fingerprint(record)})


def is_training_state(name: str) -> bool:
    """Whether a file, named by its path in a policy's folder, is only read by training."""
    return any(fnmatchcase(name.partition("/")[0], pattern) for pattern in TRAINING_STATE)


def weights_deleted(folder: Path) -> bool:
    """Whether a policy's record is all that is left of it (`curriculum.keep_checkpoints`)."""
    return folder.is_dir() and [file.name for file in folder.iterdir()] == [POLICY_RECORD]


def require_intact(folder: Path, training_state: bool = False) -> None:
    """Raise InputError, naming the file, if a policy that cropi wrote is not as it was written.

    `training_state` asks for the optimizer's state and the like too.
    """
    path = folder / POLICY_RECORD
    if not path.exists():
        return
    record = read_record(path)
    expected = record.pop(RECORD_HASH, None)
    if expected != fingerprint(record) or not isinstance(record.get(FILES), dict):
        raise InputError(
            f"{path} is damaged: it is not what was written; restore it from a copy or train again "
            "(or remove it, to use the folder's files unchecked)"
        )
    for name, content in record[FILES].items():
        if training_state or not is_training_state(name):
            _require_content(folder / name, content, path)


def _require_content(file: Path, content: str, record: Path) -> None:
    if not file.is_file() or content_hash(file) != content:
        raise InputError(
            f"{file} is {'damaged or changed' if file.is_file() else 'missing'}: {record.name} "
            "beside it lists other content; restore the file from a copy or train again (or, if "
            f"the change is meant, remove {record})"
        )
