"""Small pools have as many shards as large ones here."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from cropi.influence.sharded import shard_files


@pytest.fixture(autouse=True, scope="package")
def shards_of_any_size() -> Iterator[None]:
    """Let the few tokens of a test's pool fill shards; also in fixtures that tests share."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shard_files, "LEAST_TOKENS", 1)
        yield
