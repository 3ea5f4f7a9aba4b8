"""Influence: how well a prompt's gradient points where the validation sets want to go.

    U(s, V) = cos(P g(s), P gbar_V),    gbar_V = mean over v in V of g(v)        (docs/method.md)

`exact` (P the identity) takes two passes: the target directions, held in memory; then every pool
prompt's gradient, dotted with each direction, squared for its norm, and dropped. `sparse`
sketches both sides. Nothing here knows of runs, files or command lines.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from cropi.errors import InputError
from cropi.gradients.extractor import GradientExtractor
from cropi.schema import RolloutGroup, ScoreTable
from cropi.sketches import Sketch, SketchConsumer

BLOCK = 1 << 16
"""Coordinates summed in fp32 before the sum goes on in float64."""

Progress = Callable[[str, int, int], None]


def pieces(values_XC: Tensor, together: bool) -> list[Tensor]:
    """Views of BLOCK coordinates: all whole ones as one [n, X, BLOCK] and the rest, or each apart.

    Together is for GPUs, where every kernel costs a launch; apart is for CPUs, whose batched
    products of few rows are ten times slower than plain ones.
    """
    if not together:
        return list(torch.split(values_XC, BLOCK, 1))
    whole = values_XC.shape[1] // BLOCK * BLOCK
    views = [values_XC[:, :whole].view(len(values_XC), -1, BLOCK).transpose(0, 1)] if whole else []
    return [*views, values_XC[:, whole:]] if whole < values_XC.shape[1] else views


def block_dots(gradient_PC: Tensor, directions_VC: Tensor, together: bool | None = None) -> Tensor:
    """Inner products [P, V], fp32 within blocks, float64 across them.

    Written as D g^T: with few, contiguous directions this order runs at memory speed.
    """
    together = gradient_PC.is_cuda if together is None else together
    targets, prompts = len(directions_VC), len(gradient_PC)
    total = torch.zeros(targets, prompts, dtype=torch.float64, device=gradient_PC.device)
    pairs = zip(pieces(gradient_PC, together), pieces(directions_VC, together), strict=True)
    for g, d in pairs:
        total += (d @ g.mT).double().reshape(-1, targets, prompts).sum(0)
    return total.T


def block_squares(gradient_PC: Tensor, together: bool | None = None) -> Tensor:
    """Squared norms [P], summed like `block_dots`."""
    together = gradient_PC.is_cuda if together is None else together
    prompts = len(gradient_PC)
    total = torch.zeros(prompts, dtype=torch.float64, device=gradient_PC.device)
    for g in pieces(gradient_PC, together):
        squares = torch.linalg.vector_norm(g, dim=-1).double().square()
        total += squares.reshape(-1, prompts).sum(0)
    return total


class NormConsumer:
    """Keeps the L2 norm of each prompt's gradient."""

    def __init__(self, prompts: int, device: torch.device) -> None:
        self._squares = torch.zeros(prompts, dtype=torch.float64, device=device)

    def consume(self, name: str, index_P: Tensor, gradient: Tensor) -> None:
        """Add the squares of one parameter."""
        self._squares.index_add_(0, index_P, block_squares(gradient.flatten(1)))

    @property
    def norms(self) -> np.ndarray:
        """Norms, float64 [n]."""
        return self._squares.sqrt().cpu().numpy()


class DirectionConsumer:
    """Sums gradients, weighted, into two halves (even and odd prompts): their sum is gbar.

    The halves cost one more copy of the parameters and tell how far the direction can be trusted.
    """

    def __init__(
        self, shapes: Mapping[str, tuple[int, ...]], weights: np.ndarray, device: torch.device
    ) -> None:
        self.weights = torch.from_numpy(weights).float().to(device)
        self.halves = {
            name: torch.zeros(2, math.prod(s), device=device) for name, s in shapes.items()
        }

    def consume(self, name: str, index_P: Tensor, gradient: Tensor) -> None:
        """Add one parameter's gradients to the halves they belong to."""
        flat_PC = gradient.flatten(1)
        weights_P = self.weights[index_P]
        even_P = (index_P % 2 == 0).to(weights_P.dtype)
        weights_2P = torch.stack([weights_P * even_P, weights_P * (1 - even_P)])
        self.halves[name].addmm_(weights_2P, flat_PC)

    def write_direction(self, row: int, directions: Mapping[str, Tensor]) -> None:
        """Put gbar into row `row` of fp32 `directions` [V, coordinates]."""
        for name, halves in self.halves.items():
            torch.sum(halves, 0, out=directions[name][row])

    def split_half(self) -> float:
        """Cosine of the two halves; NaN if one is empty or zero."""
        gram = np.zeros((2, 2))
        for halves in self.halves.values():
            gram += block_dots(halves, halves).cpu().numpy()
        return cosine(gram[0, 1], gram[0, 0], gram[1, 1])


class DotConsumer:
    """Keeps each prompt's inner product with V directions, fp32 [V, coordinates] by name."""

    def __init__(self, directions: Mapping[str, Tensor], prompts: int) -> None:
        self._directions = directions
        some = next(iter(directions.values()))
        self._dots = torch.zeros(prompts, len(some), dtype=torch.float64, device=some.device)

    def consume(self, name: str, index_P: Tensor, gradient: Tensor) -> None:
        """Add one parameter's inner products."""
        part = block_dots(gradient.flatten(1), self._directions[name])
        self._dots.index_add_(0, index_P, part)

    @property
    def dots(self) -> np.ndarray:
        """Inner products, float64 [n, V]."""
        return self._dots.cpu().numpy()


def cosine(dot: float, square_a: float, square_b: float) -> float:
    """Cosine from an inner product and two squared norms; NaN where one is zero."""
    if square_a <= 0 or square_b <= 0:
        return math.nan
    return float(dot / math.sqrt(square_a * square_b))


@dataclass(frozen=True)
class TargetTrust:
    """How far a target direction can be trusted.

    `split_half` is the cosine between the directions of two halves of the set, `effective` the
    number of prompts that carry it, (sum n)^2 / sum n^2 over the norms, `largest_share` the
    largest prompt's norm over the sum.
    """

    informative: int
    split_half: float
    effective: float
    largest_share: float

    def warnings(self, name: str) -> list[str]:
        """Sentences about a direction that deserves doubt."""
        found = []
        if self.informative >= 4 and self.largest_share > 0.5:
            found.append(
                f"validation set {name}: one prompt carries {self.largest_share:.0%} of the "
                "direction; consider influence.target=unit_mean"
            )
        if self.informative >= 8 and self.split_half < 0.2:
            found.append(
                f"validation set {name}: its two halves barely agree (cosine "
                f"{self.split_half:.2f}); more validation prompts or responses would help"
            )
        return found


@dataclass(frozen=True)
class Influence:
    """The scores of a pool, with what they rest on and what they cost."""

    table: ScoreTable
    trust: dict[str, TargetTrust]
    tokens: int
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Pass:
    """Informative prompts of a set, and what was left out."""

    groups: list[RolloutGroup]
    skipped: dict[str, int]


def informative_only(groups: Sequence[RolloutGroup]) -> Pass:
    """Keep the prompts that have a gradient; count the others by reason."""
    kept, skipped = [], {"rewards all equal": 0, "fewer than two usable responses": 0}
    for group in groups:
        if group.informative:
            kept.append(group)
        elif len(group.usable) < 2:
            skipped["fewer than two usable responses"] += 1
        else:
            skipped["rewards all equal"] += 1
    return Pass(kept, {reason: n for reason, n in skipped.items() if n})


class InfluenceScorer:
    """Scores pools against validation sets under one policy.

    `sketch` None means exact. `target` "unit_mean" averages unit gradients, so that one loud
    prompt does not own the direction.
    """

    def __init__(
        self,
        extractor: GradientExtractor,
        sketch: Sketch | None = None,
        target: Literal["mean", "unit_mean"] = "mean",
        progress: Progress | None = None,
    ) -> None:
        self.extractor = extractor
        self.sketch = sketch
        self.target = target
        self.progress = progress or (lambda phase, done, total: None)
        self.tokens = 0

    def score(
        self, pool: Sequence[RolloutGroup], targets: Mapping[str, Sequence[RolloutGroup]]
    ) -> Influence:
        """Return one cosine a target for each informative prompt of `pool`.

        Raises InputError if a target set or the pool has no informative prompt.
        """
        self.tokens = 0
        kept = _require_informative("the pool", pool)
        informative = {
            n: _require_informative(f"validation set {n}", g) for n, g in targets.items()
        }
        score = self._exact if self.sketch is None else self._sketched
        cosines_PV, norms_P, trust = score(kept.groups, informative)
        table = ScoreTable(
            prompt_ids=[g.prompt_id for g in kept.groups],
            cosines={n: cosines_PV[:, v].astype(np.float32) for v, n in enumerate(targets)},
            norms=norms_P.astype(np.float32),
            pool_size=len(pool),
            skipped=kept.skipped,
            identity=self.identity,
        )
        notes = [w for name, t in trust.items() for w in t.warnings(name)]
        return Influence(table, trust, self.tokens, notes)

    @property
    def identity(self) -> dict[str, str]:
        """What defines the scores beside policy and rollouts."""
        method = {"method": "exact"} if self.sketch is None else {"method": "sketch"}
        sketch = {} if self.sketch is None else self.sketch.identity
        return {**method, **sketch, "target": self.target}

    def _stream(self, phase: str, groups: Sequence[RolloutGroup], *consumers: object) -> None:
        done = 0

        def advance(prompts: int) -> None:
            nonlocal done
            done += prompts
            self.progress(phase, done, len(groups))

        report = self.extractor.run(groups, consumers, advance)  # type: ignore[arg-type]
        self.tokens += report.tokens

    def _weights(self, norms: np.ndarray) -> np.ndarray:
        """Weight of each validation prompt in gbar, from the norms of their gradients [n]."""
        if self.target == "mean":
            return np.full(len(norms), 1 / len(norms))
        # A gradient that cancels exactly has no direction: it adds nothing, and is not 0/0.
        return 1 / (len(norms) * np.where(norms > 0, norms, np.inf))

    def _norms_ahead(self, name: str, groups: list[RolloutGroup]) -> np.ndarray:
        """Norms [n] that must be known before gradients are summed: a pass of its own, or none."""
        if self.target == "mean":
            return np.ones(len(groups))
        norms = NormConsumer(len(groups), self.extractor.device)
        self._stream(f"norms of {name}", groups, norms)
        return norms.norms

    def _exact(
        self, pool: list[RolloutGroup], targets: Mapping[str, Pass]
    ) -> tuple[np.ndarray, np.ndarray, dict[str, TargetTrust]]:
        shapes, device = self.extractor.shapes, self.extractor.device
        directions = {
            name: torch.zeros(len(targets), math.prod(shape), device=device)
            for name, shape in shapes.items()
        }
        trust = {}
        for row, (name, target) in enumerate(targets.items()):
            weights = self._weights(self._norms_ahead(name, target.groups))
            direction = DirectionConsumer(shapes, weights, device)
            norms = NormConsumer(len(target.groups), device)
            self._stream(f"target {name}", target.groups, direction, norms)
            direction.write_direction(row, directions)
            trust[name] = _trust(weights * norms.norms, direction.split_half())
            del direction  # its two halves must not wait beside the next target's
        dots, norms = DotConsumer(directions, len(pool)), NormConsumer(len(pool), device)
        self._stream("pool", pool, dots, norms)
        lengths = _lengths(directions)
        return _cosines(dots.dots, norms.norms, lengths, list(targets)), norms.norms, trust

    def _sketched(
        self, pool: list[RolloutGroup], targets: Mapping[str, Pass]
    ) -> tuple[np.ndarray, np.ndarray, dict[str, TargetTrust]]:
        means, trust = [], {}
        for name, target in targets.items():
            sketches, norms = self._sketches(f"target {name}", target.groups)
            weights = self._weights(norms)
            halves = [(weights[h::2, None] * sketches[h::2]).sum(0) for h in (0, 1)]
            means.append(halves[0] + halves[1])
            agreement = cosine(halves[0] @ halves[1], halves[0] @ halves[0], halves[1] @ halves[1])
            trust[name] = _trust(weights * norms, agreement)
        sketches, norms = self._sketches("pool", pool)
        dots = sketches @ np.stack(means, 1)
        lengths = np.linalg.norm(sketches, axis=1)
        target_norms = [float(np.linalg.norm(m)) for m in means]
        return _cosines(dots, lengths, target_norms, list(targets)), norms, trust

    def _sketches(self, phase: str, groups: list[RolloutGroup]) -> tuple[np.ndarray, np.ndarray]:
        """Sketches float64 [n, dim] and full norms [n]."""
        assert self.sketch is not None
        sketcher = SketchConsumer(self.sketch, len(groups), self.extractor.device)
        norms = NormConsumer(len(groups), self.extractor.device)
        self._stream(phase, groups, sketcher, norms)
        return sketcher.sketches.double().cpu().numpy(), norms.norms


def _require_informative(what: str, groups: Sequence[RolloutGroup]) -> Pass:
    kept = informative_only(groups)
    if not kept.groups:
        reasons = ", ".join(f"{n} with {r}" for r, n in kept.skipped.items()) or "no prompt at all"
        raise InputError(
            f"{what} has no informative prompt among {len(groups)} ({reasons}); it needs a prompt "
            "with both better and worse responses: add prompts, sample more responses, or choose "
            "tasks the policy sometimes solves"
        )
    return kept


def _trust(loudness: np.ndarray, split_half: float) -> TargetTrust:
    total, squares = float(loudness.sum()), float((loudness**2).sum())
    effective = total * total / squares if squares > 0 else 0.0
    largest = float(loudness.max()) / total if total > 0 else math.nan
    return TargetTrust(len(loudness), split_half, effective, largest)


def _lengths(directions: Mapping[str, Tensor]) -> list[float]:
    """L2 norm of each direction, over all parameters."""
    squares = torch.stack([block_squares(rows) for rows in directions.values()]).sum(0)
    return [float(value) for value in squares.sqrt()]


def _cosines(
    dots_PV: np.ndarray, norms_P: np.ndarray, target_norms: Sequence[float], names: Sequence[str]
) -> np.ndarray:
    """Divide inner products by norms.

    Raises InputError where a gradient is not finite or a target direction vanishes.
    """
    if not np.isfinite(dots_PV).all() or not np.isfinite(norms_P).all():
        bad = int((~np.isfinite(dots_PV).all(1) | ~np.isfinite(norms_P)).sum())
        raise InputError(
            f"{bad} of {len(norms_P)} gradients are not finite (NaN or infinity); check the "
            "checkpoint's weights and the rollouts' log-probs, or compute in float32"
        )
    for name, norm in zip(names, target_norms, strict=True):
        if norm == 0:
            raise InputError(
                f"the gradients of validation set {name} sum to zero, which points nowhere; add "
                "prompts to it or sample more responses"
            )
    # A prompt whose gradient cancels exactly helps nobody and harms nobody: cosine 0.
    safe_P = np.where(norms_P > 0, norms_P, 1.0)
    cosines_PV = dots_PV / (safe_P[:, None] * np.array(target_norms)[None])
    return np.asarray(np.clip(cosines_PV, -1.0, 1.0))
