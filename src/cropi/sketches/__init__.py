"""Sketches: linear projections of gradients to a few thousand dimensions, one file each."""

from cropi.sketches.adaptive import AdaptiveSketch
from cropi.sketches.base import (
    KeptSketches,
    LearningSketch,
    PlainSketch,
    Sketch,
    SketchConsumer,
)
from cropi.sketches.factorised import FactorisedSketch
from cropi.sketches.kronecker import KroneckerSketch
from cropi.sketches.registry import SKETCHES, make_sketch
from cropi.sketches.sparse import SparseSketch
from cropi.sketches.windowed import WindowedSketch

__all__ = [
    "SKETCHES",
    "AdaptiveSketch",
    "FactorisedSketch",
    "KeptSketches",
    "KroneckerSketch",
    "LearningSketch",
    "PlainSketch",
    "Sketch",
    "SketchConsumer",
    "SparseSketch",
    "WindowedSketch",
    "make_sketch",
]
