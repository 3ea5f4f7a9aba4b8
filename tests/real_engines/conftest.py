"""The real vLLM, where there is one: `make test-engines` builds it; `make test` does without."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from cropi.rollouts.engines.vllm import PYTHON_VARIABLE

HERE = Path(__file__).parent
OPTIONS = {"enforce-eager": True, "max-num-seqs": 64, "enable-chunked-prefill": False}
"""Compiling takes longer than these tests; chunks of a prompt end vLLM 0.32 on a CPU."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if os.environ.get(PYTHON_VARIABLE):
        return
    reason = f"no ${PYTHON_VARIABLE}; run make test-engines"
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(scope="session", autouse=True)
def small_cache() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VLLM_CPU_KVCACHE_SPACE", "1")
        yield
