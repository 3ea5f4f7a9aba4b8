"""How much of the true top 10% sketches find, ours and the peers', on the pocket model's rollouts.

The truth is exact influence over all parameters. Peers see the linear layers of the body alone, so
they are also held against exact influence over just those: that is their projection's own error.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from torch import nn

from cropi.schema import RolloutGroup
from gradient_costs import ours, peers
from gradient_costs.plan import Run
from gradient_costs.rollouts import pocket_pool
from gradient_costs.setting import Setting, load_setting

Groups = Sequence[RolloutGroup]


def cosines(scorer: Any, pool: Groups, targets: Mapping[str, Groups]) -> dict[str, np.ndarray]:
    """Influence [n] of each prompt on each target."""
    return dict(scorer.score(pool, targets).estimate.mean)


def linear_layers(model: Any) -> list[str]:
    """Names of the body's linear weights."""
    inside = {id(m.weight) for m in model.base_model.modules() if isinstance(m, nn.Linear)}
    return [name for name, p in model.named_parameters() if id(p) in inside]


def top_overlap(truth: np.ndarray, estimate: np.ndarray, share: float = 0.1) -> float:
    """Share of the true top 10% that the estimate's top 10% holds."""
    count = max(1, int(share * len(truth)))
    top = [set(np.argsort(-values, kind="stable")[:count]) for values in (truth, estimate)]
    return len(top[0] & top[1]) / count


def overlap(truth: Mapping[str, np.ndarray], estimate: Mapping[str, np.ndarray]) -> float:
    """Mean over the targets."""
    return float(np.mean([top_overlap(truth[name], estimate[name]) for name in truth]))


def ours_precision(
    model: Any,
    pool: Groups,
    targets: Mapping[str, Groups],
    truth: Mapping[str, np.ndarray],
    methods: Mapping[str, Sequence[int]],
    seeds: int,
) -> dict[str, dict[str, float]]:
    """Precision of each sketch and dimension: mean and deviation over the seeds."""
    precision = {}
    for method, dims in methods.items():
        for dim in dims:
            scorers = [ours.sketch_scorer(model, method, dim, seed) for seed in range(seeds)]
            values = [overlap(truth, cosines(s, pool, targets)) for s in scorers]
            precision[f"{method}@{dim}"] = {
                "mean": float(np.mean(values)),
                "std": float(np.std(values, ddof=1)) if seeds > 1 else 0.0,
                "seeds": seeds,
            }
    return precision


def peer_cosines(
    rows: np.ndarray, pool: Groups, targets: Mapping[str, Groups]
) -> dict[str, np.ndarray]:
    """Influence from a peer's index: the rows of pool and targets, a document each, in order."""
    groups = [*pool, *(g for members in targets.values() for g in members)]
    ends = np.cumsum([len(g.responses) for g in groups])[:-1]
    sums = np.stack([part.sum(0) for part in np.split(rows.astype(np.float64), ends)])
    pool_sums, start, by_target = sums[: len(pool)], len(pool), {}
    for name, members in targets.items():
        mean = sums[start : start + len(members)].mean(0)
        lengths = np.linalg.norm(pool_sums, axis=1) * np.linalg.norm(mean)
        by_target[name] = pool_sums @ mean / np.where(lengths > 0, lengths, 1.0)
        start += len(members)
    return by_target


def precisions(this: Run) -> dict[str, Any]:
    """Precision@10% on the pocket model's rollouts: our sketches, the paper's, and the peers'."""
    pocket, plan = load_setting(None, True, "cpu"), this.plan
    pool, targets = pocket_pool(plan.precision_prompts, plan.validation, this.options.cache)
    this.say(f"precision on {len(pool)} informative prompts of the pocket model")
    truth = cosines(ours.exact_scorer(pocket.model, True), pool, targets)
    methods = {
        ours.DEFAULT_SKETCH: sorted({this.options.dim, *plan.dims}),
        ours.FACTORED_SKETCH: [this.options.dim],
    }
    if not this.options.quick:
        methods["sparse"] = [this.options.dim]
    sketches = ours_precision(pocket.model, pool, targets, truth, methods, plan.seeds)
    return {
        "model": "pocket",
        "prompts": len(pool),
        "sketches": sketches,
        "peers": peer_precisions(this, pocket, pool, targets, truth),
    }


def peer_precisions(
    this: Run,
    pocket: Setting,
    pool: list[RolloutGroup],
    targets: Mapping[str, list[RolloutGroup]],
    truth: Mapping[str, np.ndarray],
) -> dict[str, Any]:
    """Precision of the peers' indexes of the same documents at the same total dimension."""
    groups = [*pool, *(g for members in targets.values() for g in members)]
    checkpoint = this.folder / "pocket"
    peers.save(pocket.model, checkpoint)
    request = peers.request(
        checkpoint, pocket.dtype, groups, this.options.dim, this.options.threads
    )
    linear = ours.exact_scorer(pocket.model, True, parameters=linear_layers(pocket.model))
    narrow = cosines(linear, pool, targets)
    by_peer: dict[str, Any] = {}
    for name in this.plan.peers:
        indexes = [
            peer_index(this, name, {**request, "batches": [], "seed": seed})
            for seed in range(1 if this.options.quick else this.plan.seeds)
        ]
        there = [rows for rows in indexes if rows is not None]
        estimates = [peer_cosines(rows, pool, targets) for rows in there]
        by_peer[name] = estimates and {
            "dim": int(there[0].shape[1]),
            "against_all_parameters": mean_overlap(truth, estimates),
            "against_its_own_layers": mean_overlap(narrow, estimates),
            "seeds": len(estimates),
        }
    return {name: value or None for name, value in by_peer.items()}


def peer_index(this: Run, name: str, request: dict[str, Any]) -> np.ndarray | None:
    """The rows of one index; None without the peer."""
    rows = this.folder / f"{name}-{request['seed']}.npy"
    peer = peers.open_peer(name, {**request, "rows": str(rows)}, this.folder, compiled=False)
    if peer.process is None:
        return None
    peer.build()
    peer.close()
    return np.asarray(np.load(rows))


def mean_overlap(
    truth: Mapping[str, np.ndarray], estimates: Sequence[Mapping[str, np.ndarray]]
) -> float:
    """Mean over the seeds."""
    return float(np.mean([overlap(truth, estimate) for estimate in estimates]))
