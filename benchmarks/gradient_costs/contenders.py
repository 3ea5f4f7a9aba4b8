"""Everybody who computes on the same synthetic rollouts, and the rounds they take turns in."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from cropi.schema import RolloutGroup
from gradient_costs import ours, peers, report
from gradient_costs.floor import Floor
from gradient_costs.naive import Naive
from gradient_costs.peers import Peer
from gradient_costs.plan import SMALL, Run
from gradient_costs.profiles import profiled
from gradient_costs.rollouts import synthetic, unpacked_tokens
from gradient_costs.setting import Matmul
from gradient_costs.timing import Contender, fastest, interleave

Contenders = dict[str, Contender]


def costs(this: Run) -> dict[str, Any]:
    """Seconds of everybody, with what is needed to read them."""
    groups = synthetic(this.model, this.plan.prompts, this.sizes, seed=0)
    candidates = [(rows, kind) for rows in this.plan.micro_batches for kind in ("sdpa", "eager")]
    tried = groups[:1] if this.options.quick else groups
    micro, attention = fastest(candidates, lambda each: Floor(this.model, tried, *each).run)
    this.say(f"the floor has {micro} rows a micro-batch and {attention} attention")
    floor, matmul = Floor(this.model, groups, micro, attention), Matmul(this.setting.device)
    playing = {
        "matmul": Contender("matmul", matmul.run, this.plan.rounds),
        "floor": Contender("floor", floor.run, this.plan.rounds, len(groups)),
    }
    playing |= our_contenders(this, groups) | naive_contenders(this, groups[0], micro)
    opened = open_peers(this, groups[: this.plan.peer_prompts])
    playing |= peer_contenders(this, opened, groups[: this.plan.peer_prompts])
    interleave(list(playing.values()), this.say, this.late)
    for peer in opened.values():
        peer.close()
    profiles = {} if this.late() else missed_profiles(playing)
    this.model.zero_grad(set_to_none=True)
    return {
        "micro_batch": micro,
        "floor_attention": attention,
        "profiles": profiles,
        "times": {name: contender.spread for name, contender in playing.items()},
        "flops": {
            "floor": this.setting.flops(floor.lengths, floor.predicting) / len(groups),
            "matmul": matmul.flops,
        },
        "tokens": tokens_a_prompt(groups, floor),
        "peers": {name: peer.about or {"missing": peer.missing} for name, peer in opened.items()},
    }


def our_contenders(this: Run, groups: list[RolloutGroup]) -> Contenders:
    """Exact influence on the floor's rows and with shared prompts, the targets' pass, sketches."""
    targets = {f"target {n}": synthetic(this.model, 1, SMALL, seed=1 + n) for n in range(2)}
    contenders = {}
    dim, sketches = this.options.dim, this.plan.sketches
    for name, call in ours.passes(this.scorers, targets, groups, dim, sketches).items():
        exact = name.startswith("exact")
        compared = name in (f"sketch_{ours.DEFAULT_SKETCH}", f"sketch_{ours.FACTORED_SKETCH}")
        rounds = this.plan.rounds if exact else this.plan.others if compared else this.plan.asides
        contenders[name] = Contender(name, call, rounds, len(groups), may_miss=not exact)
    return contenders


def naive_contenders(this: Run, group: RolloutGroup, micro: int) -> Contenders:
    """One prompt the naive way, and the projection of one gradient."""
    naive = Naive(this.model, micro, this.options.dim)
    naive.prepare()
    vector = torch.randn(this.setting.coordinates, device=this.setting.device)
    calls = {"naive": lambda: naive.run(group), "naive_projection": lambda: naive.project(vector)}
    return {
        name: Contender(name, call, this.plan.others, may_miss=True) for name, call in calls.items()
    }


def open_peers(this: Run, groups: list[RolloutGroup]) -> dict[str, Peer]:
    """Start every peer whose environment is named, on the same weights and rollouts."""
    checkpoint = this.folder / "model"
    peers.save(this.model, checkpoint)
    options = this.options
    asked = peers.request(checkpoint, this.setting.dtype, groups, options.dim, options.threads)
    opened = {}
    for name in this.plan.peers:
        opened[name] = peers.open_peer(name, asked, this.folder, compiled=not options.quick)
        this.say(f"{name}: {opened[name].about or opened[name].missing}")
    return opened


def peer_contenders(
    this: Run, opened: Mapping[str, Peer], groups: list[RolloutGroup]
) -> Contenders:
    """The peers that are there, by the unpacked prompt+response token."""
    rounds = {"bergson": this.plan.others, "dattri": this.plan.asides}
    return {
        name: Contender(name, peer.build, rounds[name], unpacked_tokens(groups), may_miss=True)
        for name, peer in opened.items()
        if peer.process is not None
    }


def missed_profiles(playing: Contenders) -> dict[str, Any]:
    """Profiles of whatever costs more than its bar, next to the floor's."""
    floor = playing["floor"]
    bars = {"exact": "exact_over_floor", "exact_shared": "shared_prefix_over_floor"}
    missed = [
        name
        for name, bar in bars.items()
        if playing[name].median > report.BARS[bar][1] * floor.median
    ]
    return {n: profiled(playing[n].run) for n in [*missed, "floor"]} if missed else {}


def tokens_a_prompt(groups: list[RolloutGroup], floor: Floor) -> dict[str, float]:
    """Tokens of one prompt: rows as the floor feeds them, and unpacked prompt+response tokens."""
    return {
        "rows": sum(floor.lengths) / len(groups),
        "unpacked": unpacked_tokens(groups) / len(groups),
    }
