"""Tiny models, made once."""

from __future__ import annotations

import pytest
from torch import nn

from support.tiny_models import tiny_model


@pytest.fixture
def qwen() -> nn.Module:
    """A tiny Qwen2 with tied embeddings."""
    return tiny_model("qwen2-tied")
