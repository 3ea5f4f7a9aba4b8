"""Sketches: linear projections of gradients to a few thousand dimensions, one file each."""

from cropi.sketches.base import Sketch, SketchConsumer
from cropi.sketches.sparse import SparseSketch

__all__ = ["Sketch", "SketchConsumer", "SparseSketch"]
