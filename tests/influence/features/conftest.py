"""Stores of few prompts have several shards here."""

from __future__ import annotations

import pytest

from cropi.influence.features.feature_files import StoreIdentity


@pytest.fixture
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    """Five rows per shard, so that few prompts make several shards."""

    def small(**fields: object) -> StoreIdentity:
        return StoreIdentity(**fields, rows_per_shard=5)  # type: ignore[arg-type]

    monkeypatch.setattr("cropi.influence.features.extraction.StoreIdentity", small)
