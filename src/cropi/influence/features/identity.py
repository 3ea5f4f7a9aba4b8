"""What a feature store was made from, and what two stores must share to be compared."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from cropi.errors import InputError
from cropi.store.files import write_json

IDENTITY = "identity.json"
VERSION = 1
COMPARABLE = ("version", "sketch", "sketch_file", "policy", "settings", "dim")
"""Fields that make inner products between two stores mean something. The others say how much is
in a store and how it lies on the disk."""

Dtype = Literal["float16", "float32"]


@dataclass(frozen=True)
class StoreIdentity:
    """What a store holds, as far as it is known before any gradient is computed.

    `sketch` is the sketch's own identity, `sketch_file` the hash of what an adaptive one learnt
    (empty: it learnt nothing), `policy` a hash of the weights, `settings` the objective and
    whatever else defines a gradient, `preconditioner` that of Adam's scales on a target's gradients
    (empty: plain ones), `rollouts` the hash of the rollout file. `prompts` counts the
    rows to come; `pool_size` and `skipped` remember the prompts without a gradient.
    """

    sketch: Mapping[str, str]
    policy: str
    rollouts: str
    dim: int
    prompts: int
    pool_size: int
    settings: Mapping[str, Any] = field(default_factory=dict)
    skipped: Mapping[str, int] = field(default_factory=dict)
    preconditioner: Mapping[str, str] = field(default_factory=dict)
    sketch_file: str = ""
    dtype: Dtype = "float16"
    rows_per_shard: int = 256
    version: int = VERSION

    def shard_places(self) -> list[range]:
        """Places in the list of informative prompts that each shard holds, in order."""
        starts = range(0, self.prompts, self.rows_per_shard)
        return [range(s, min(s + self.rows_per_shard, self.prompts)) for s in starts]


def write_identity(folder: Path, identity: StoreIdentity) -> None:
    """Write the identity, atomically."""
    write_json(folder / IDENTITY, asdict(identity))


def read_identity(folder: Path) -> StoreIdentity:
    """Read a store's identity.

    Raises InputError if there is no store, or one that this version cannot read.
    """
    path = folder / IDENTITY
    if not path.is_file():
        raise InputError(
            f"{folder} is no feature store (it has no {IDENTITY}); make one with `cropi features`"
        )
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        if found["version"] != VERSION:
            raise InputError(
                f"{path} is of version {found['version']}, and this cropi reads {VERSION}; make "
                "the features again"
            )
        return StoreIdentity(**found)
    except (ValueError, TypeError, KeyError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(
            f"{path} is damaged ({type(error).__name__}: {error}); make the features again in an "
            "empty directory"
        ) from error


def differences(
    one: StoreIdentity, other: StoreIdentity, names: tuple[str, ...] | None = None
) -> list[str]:
    """Fields in which two identities differ, as "field a, not b"; `names` None means all."""
    flat = [
        _flat("", {k: v for k, v in asdict(i).items() if not names or k in names})
        for i in (one, other)
    ]
    keys = dict.fromkeys([*flat[0], *flat[1]])
    return [
        f"{key} {flat[0].get(key)!r}, not {flat[1].get(key)!r}"
        for key in keys
        if flat[0].get(key) != flat[1].get(key)
    ]


def require_comparable(pool: StoreIdentity, other: StoreIdentity, what: str) -> None:
    """Raise InputError, saying `what` and which fields differ, unless both share a sketch space."""
    found = differences(other, pool, COMPARABLE)
    if found:
        raise InputError(
            f"{what}: {'; '.join(found)}; make both with the same model, sketch, seed and "
            "settings, and a target's with --like and the pool's features if the sketch learns"
        )


def _flat(prefix: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """Nested mappings as one, with dotted keys."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            found |= _flat(f"{prefix}{key}.", value)
        else:
            found[prefix + key] = value
    return found
