"""Tiny models, made once."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from tiny import tiny_model
from torch import nn


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Tiny matrices lose more to waiting threads than they gain."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def qwen() -> nn.Module:
    """A tiny Qwen2 with tied embeddings."""
    return tiny_model("qwen2-tied")
