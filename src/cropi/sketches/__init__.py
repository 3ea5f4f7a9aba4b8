"""Sketches: linear projections of gradients to a few thousand dimensions, one file each."""

from cropi.sketches.adaptive import AdaptiveSketch
from cropi.sketches.factorised import FactorisedSketch
from cropi.sketches.kronecker import KroneckerSketch
from cropi.sketches.registry import SKETCHES, make_sketch
from cropi.sketches.sketch import (
    FittedSketch,
    PlainSketch,
    Sketch,
    SketchBuffer,
    SketchConsumer,
)
from cropi.sketches.sparse import SparseSketch
from cropi.sketches.windowed import WindowedSketch

__all__ = [
    "SKETCHES",
    "AdaptiveSketch",
    "FactorisedSketch",
    "FittedSketch",
    "KroneckerSketch",
    "PlainSketch",
    "Sketch",
    "SketchBuffer",
    "SketchConsumer",
    "SparseSketch",
    "WindowedSketch",
    "make_sketch",
]
