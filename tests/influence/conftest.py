"""What the tests of influence share."""

from __future__ import annotations

import pytest

from cropi.influence.sharded import shard_files


@pytest.fixture(autouse=True)
def _pools_in_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have pools of a few prompts cut into as many shards as large ones are."""
    monkeypatch.setattr(shard_files, "LEAST_TOKENS", 1)
