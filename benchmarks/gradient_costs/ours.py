"""cropi's own ways to the influence of a set of prompts; the one place that touches its internals.

Directions of the targets are made once, in a pass that is reported apart: a pool is thousands of
prompts, a validation set a hundred.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from cropi.config import InfluenceConfig
from cropi.gradients.consumers import Directions, DotConsumer, NormConsumer
from cropi.gradients.extractor import GradientExtractor
from cropi.influence.scorer import Scorer
from cropi.influence.setup import make_scorer
from cropi.schema import RolloutGroup
from cropi.sketches import FittedSketch, SketchBuffer, SketchConsumer, make_sketch

Groups = Sequence[RolloutGroup]

DEFAULT_SKETCH = "adaptive"
FACTORED_SKETCH = "kronecker"
"""What is nearest to the peers': both sides of every layer projected, no dense gradient."""

SKETCHES = (DEFAULT_SKETCH, "sparse", FACTORED_SKETCH)


def exact_scorer(
    model: Any,
    share_prefix: bool,
    batch_tokens: int = 16384,
    parameters: list[str] | None = None,
    checkpointing: bool = False,
) -> Scorer:
    """A scorer of exact influence, of all parameters or those whose names match."""
    config = InfluenceConfig(
        share_prefix=share_prefix,
        batch_tokens=batch_tokens,
        parameters=parameters,
        gradient_checkpointing=checkpointing,
    )
    return make_scorer(model, config, seed=0)


def sketch_scorer(model: Any, method: str, dim: int, seed: int = 0) -> Scorer:
    """A scorer with a sketch: the default one, the paper's at ratio 0.15, or another by name."""
    extractor = exact_scorer(model, share_prefix=True).extractor
    return Scorer(extractor, make_sketch(method, extractor.shapes, seed, dim=dim))


def target_directions(scorer: Scorer, targets: Mapping[str, Groups]) -> Directions:
    """The targets' directions, in memory."""
    directions = scorer.targets(targets).values
    assert isinstance(directions, Directions)
    return directions


def exact_pass(scorer: Scorer, directions: Directions, groups: Groups) -> None:
    """Dot every prompt's gradient with every direction, and take its norm."""
    extractor = scorer.extractor
    norms = NormConsumer(len(groups), extractor.device)
    extractor.run(groups, [DotConsumer(directions, len(groups)), norms])


def timed_sketch(extractor: GradientExtractor, method: str, dim: int) -> Callable[[Groups], None]:
    """Sketching as one pass over a pool does it.

    A sketch that learns does so from a sample of the pool, once; here from noise, which gives it
    as many directions as it may have and says nothing of its precision.
    """
    sketch = make_sketch(method, extractor.shapes, 0, dim=dim)
    if isinstance(sketch, FittedSketch):
        sketch.fit(torch.randn(sketch.sample, sketch.width, device=extractor.device))

    def sketch_pass(groups: Groups) -> None:
        buffer = SketchBuffer(len(groups), sketch.dim)
        extractor.run(groups, [SketchConsumer(sketch, buffer, extractor.device)])

    return sketch_pass


@dataclass(frozen=True)
class Scorers:
    """Exact influence from rows of prompt and one response each, and with the prompt shared.

    Made once per model: each checks itself against plain autograd on its first prompt.
    """

    rows: Scorer
    shared: Scorer

    @classmethod
    def of(cls, model: Any, batch_tokens: int = 16384) -> Scorers:
        """Both scorers of a model."""
        rows, shared = (exact_scorer(model, share, batch_tokens) for share in (False, True))
        return cls(rows, shared)


def passes(
    scorers: Scorers,
    targets: Mapping[str, Groups],
    groups: Groups,
    dim: int,
    sketches: Sequence[str] = SKETCHES,
) -> dict[str, Callable[[], object]]:
    """What is timed, by name: each call does all of `groups` once. All are warm afterwards."""
    rows, shared = scorers.rows, scorers.shared
    small = next(iter(targets.values()))
    directions = target_directions(shared, targets)
    exact_pass(rows, directions, small)
    calls: dict[str, Callable[[], object]] = {
        "exact": lambda: exact_pass(rows, directions, groups),
        "exact_shared": lambda: exact_pass(shared, directions, groups),
        "targets": lambda: target_directions(shared, {"pass": groups}),
    }
    for method in sketches:
        sketch_pass = timed_sketch(shared.extractor, method, dim)
        sketch_pass(small)
        calls[f"sketch_{method}"] = partial(sketch_pass, groups)
    return calls
