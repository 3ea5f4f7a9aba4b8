"""The real vLLM and verl, where they are: `make test-engines` and `make test-verl` build them.

`make test` does without.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from cropi.rollouts.engines.vllm import PYTHON_VARIABLE as VLLM
from cropi.training.verl_settings import PYTHON_VARIABLE as VERL

HERE = Path(__file__).parent
OPTIONS = {"enforce-eager": True, "max-num-seqs": 64, "enable-chunked-prefill": False}
"""Compiling takes longer than these tests; chunks of a prompt end vLLM 0.32 on a CPU."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if HERE in item.path.parents:
            name = "verl" if "verl" in item.path.name else "engines"
            variable = VERL if name == "verl" else VLLM
            if not os.environ.get(variable):
                reason = f"no ${variable}; run make test-{name}"
                item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(scope="session", autouse=True)
def small_cache() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VLLM_CPU_KVCACHE_SPACE", "1")
        yield
