"""Sketches: linear projections of gradients to a few thousand dimensions, one file each.

Importing this package loads no torch: its settings are read where nothing is computed.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from cropi.sketches.settings import SketchChoice

if TYPE_CHECKING:
    from cropi.sketches.adaptive import AdaptiveSketch
    from cropi.sketches.factorised import FactorisedSketch
    from cropi.sketches.kronecker import KroneckerSketch
    from cropi.sketches.sketch import (
        FittedSketch,
        PlainSketch,
        Sketch,
        SketchBuffer,
        SketchConsumer,
        make_sketch,
    )
    from cropi.sketches.sparse import SparseSketch
    from cropi.sketches.windowed import WindowedSketch

__all__ = [
    "AdaptiveSketch",
    "FactorisedSketch",
    "FittedSketch",
    "KroneckerSketch",
    "PlainSketch",
    "Sketch",
    "SketchBuffer",
    "SketchChoice",
    "SketchConsumer",
    "SparseSketch",
    "WindowedSketch",
    "make_sketch",
]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    has_file = name.endswith("Sketch") and name not in ("Sketch", "FittedSketch", "PlainSketch")
    module = name.removesuffix("Sketch").lower() if has_file else "sketch"
    return getattr(importlib.import_module(f"{__name__}.{module}"), name)
