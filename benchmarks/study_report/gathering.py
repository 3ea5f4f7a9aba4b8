"""From the studies' directories to the numbers of benchmarks/results/study.json."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from cropi import __version__
from cropi.config import load_config, to_yaml
from cropi.schema import fingerprint
from cropi.study import measures
from cropi.study.measures import AXES, Curves, Estimate
from cropi.study.measuring import Comparison, Standing, Study, measure
from cropi.study.plan import StudyPlan
from cropi.study.reading import Cell
from cropi.study.summary import RULES, seed_values

METHOD = "cropi"
"""The strategy that the bar is about: this package's method with its default options."""

Values = dict[str, Any]


def gather(configs: list[Path], out: str) -> Values:
    """Return all numbers of the regimes whose configs are given; their studies are in `out`.

    A regime that has not been run has no strategies, and what is missing is said.
    Raises InputError for a config that is not valid.
    """
    return {
        "cropi": __version__,
        "method": METHOD,
        "rules": {**RULES, "asked_ratio": measures.ASKED_RATIO},
        "regimes": {path.stem: _rounded(regime(path, out)) for path in configs},
    }


def regime(config: Path, out: str) -> Values:
    """Return one regime's numbers, from the study of this config."""
    plan = StudyPlan.of(load_config(str(config), [f"out={out}"]))
    about: Values = {
        "strategies": {},
        "planned": {"strategies": list(plan.labels), "seeds": list(plan.seeds)},
        "baseline": plan.baseline,
    }
    if not (plan.root / "study.yaml").is_file():
        return about | {"missing": ["not run yet"], "notes": []}
    study = measure(plan.root)
    notes = [*study.notes, *other_settings(plan)]
    found = about | {"missing": unfinished(plan, study), "notes": notes}
    return found | measured(plan, study) if study.standings else found


def unfinished(plan: StudyPlan, study: Study) -> list[str]:
    """Say of which strategies that the config asks for not all seeds are finished."""
    done = {label: {cell.seed for cell in study.cells(label)} for label in plan.labels}
    left = {label: set(plan.seeds) - seeds for label, seeds in done.items()}
    count = len(plan.seeds)
    return [f"{label} {count - len(n)} of {count} seeds" for label, n in left.items() if n]


def other_settings(plan: StudyPlan) -> list[str]:
    """Say which settings the study was run with that the config does not have now."""
    now, then = (_settings(text) for text in (to_yaml(plan.as_config()), _study_yaml(plan)))
    keys = sorted(key for key in {*now, *then} if now.get(key) != then.get(key))
    return [f"run with other settings than the config's of now: {', '.join(keys)}"] if keys else []


def _study_yaml(plan: StudyPlan) -> str:
    return (plan.root / "study.yaml").read_text(encoding="utf-8")


def _settings(text: str) -> dict[str, Any]:
    """A config's settings by dotted key, but for its place and for who is compared."""
    values = {k: v for k, v in yaml.safe_load(text).items() if k not in ("out", "compare")}
    return dict(_flat(values))


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def measured(plan: StudyPlan, study: Study) -> Values:
    """Return what is known of a study with finished cells."""
    cells = [cell for cell in study.files.cells if cell.finished]
    manifests = [_manifest(cell) for cell in cells]
    versions = {json.dumps(m["versions"], sort_keys=True): m["versions"] for m in manifests}
    return {
        "baseline": study.baseline,
        "config_hash": fingerprint(_settings(_study_yaml(plan))),
        "versions": list(versions.values()),
        "setting": setting(study, cells[0], manifests[0]),
        "levels": {f"{share:.2f}": vars(found) for share, found in study.levels.items()},
        "strategies": {name: strategy(study, name) for name in study.standings},
        "method_minus": ahead(study),
    }


def _manifest(cell: Cell) -> Values:
    """A finished cell's manifest, with what is used of it."""
    try:
        found = json.loads((cell.path / "manifest.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        found = {}
    model = found.get("model") or {}
    return {"versions": found.get("versions") or {}, "parameters": model.get("parameters")}


def setting(study: Study, cell: Cell, manifest: Values) -> Values:
    """Return the sizes of a study, from its config and from what its first cell really had."""
    config = study.files.config
    sections = [config.get(name) or {} for name in ("curriculum", "training")]
    selection = config.get("selection") or {}
    wanted = ("stages", "steps_per_stage", "prompts_per_step", "responses", "learning_rate")
    return {
        "parameters": manifest["parameters"],
        "pool": sum(cell.selected.pool.values()),
        "pool_by_source": cell.selected.pool,
        "test": {s.name: {"targeted": s.targeted, "prompts": s.prompts} for s in cell.sets},
        "ratio": selection.get("ratio"),
        **{key: section[key] for key in wanted for section in sections if key in section},
    }


def strategy(study: Study, name: str) -> Values:
    """Return one strategy's numbers, by itself and against the baseline."""
    own, cells = study.standings[name], study.cells(name)
    found = study.comparisons.get(name)
    return {
        "seeds": [cell.seed for cell in cells],
        **estimates(own),
        "per_seed": [{"seed": cell.seed, **seed_values(study, cell)} for cell in cells],
        "costs": own.costs,
        "costs_by_phase": own.phases,
        "curves": curves(own.curves),
        "selected": chosen(cells),
        "compared": compared(study, found) if found else None,
    }


def estimates(own: Standing) -> Values:
    """Return a strategy's measures with their intervals."""
    return {
        "start": own.start,
        "final": vars(own.final),
        "area": vars(own.area),
        "untargeted": own.untargeted and vars(own.untargeted),
        "change": own.change and vars(own.change),
    }


def curves(found: Curves) -> Values:
    """Return mean curves over seeds with the targeted one's 95% band, and mean cumulative costs."""
    edges = measures.band(found.targeted)
    low, high = (None, None) if edges is None else (edge.tolist() for edge in edges)
    others = found.untargeted
    return {
        "steps": found.steps.tolist(),
        "targeted": found.targeted.mean(axis=0).tolist(),
        "targeted_low": low,
        "targeted_high": high,
        "untargeted": None if others is None else others.mean(axis=0).tolist(),
        "training": {axis: cost.mean(axis=0).tolist() for axis, cost in found.training.items()},
        "selection": {axis: cost.mean(axis=0).tolist() for axis, cost in found.selection.items()},
    }


def chosen(cells: list[Cell]) -> list[Values]:
    """Return prompts by source that each stage selected, and their pass rate: means over seeds."""
    stages: dict[int, list[Any]] = {}
    for cell in cells:
        for choice in cell.selected.choices:
            stages.setdefault(choice.stage, []).append(choice)
    return [
        {
            "stage": stage,
            "sources": {
                source: float(np.mean([c.sources.get(source, 0) for c in found]))
                for source in sorted({s for c in found for s in c.sources})
            },
            "pass_rate": _mean([c.pass_rate for c in found if c.pass_rate is not None]),
        }
        for stage, found in sorted(stages.items())
    ]


def _mean(values: list[float]) -> float | None:
    return float(np.mean(values)) if values else None


def compared(study: Study, found: Comparison) -> Values:
    """Return a strategy's differences from the baseline, its accelerations, and its break-even."""
    speeds: dict[str, Values] = {axis: {} for axis in AXES}
    for (axis, share), speed in found.speeds.items():
        speeds[axis][f"{share:.2f}"] = vars(speed)
    return {
        "seeds": list(found.seeds),
        "read_coarsely": read_coarsely(study, found),
        "final": vars(found.final),
        "area": vars(found.area),
        "untargeted": found.untargeted and vars(found.untargeted),
        "accelerations": speeds,
        "break_even": {
            f"{share:.2f}": vars(even)
            | {
                "acceleration": even.at(even.measured),
                "at_asked_ratio": even.at(measures.ASKED_RATIO),
            }
            for share, even in found.break_even.items()
        },
    }


def read_coarsely(study: Study, found: Comparison) -> Values:
    """Return the accelerations at the main level as every second evaluation alone shows them."""
    base, own = (study.standings[n].curves for n in (study.baseline, found.strategy))
    base, own = (c.of(found.seeds).every(2) for c in (base, own))
    speeds = {axis: measures.speed(base, own, measures.MAIN_LEVEL, axis) for axis in AXES}
    return {axis: vars(speed) for axis, speed in speeds.items() if speed}


def ahead(study: Study) -> Values:
    """Return our method's area and final accuracy minus every other strategy's, seeds paired."""
    mine = study.standings.get(METHOD)
    if mine is None:
        return {}
    found = {}
    for name, other in study.standings.items():
        shared = tuple(s for s in mine.curves.seeds if s in other.curves.seeds)
        if name != METHOD and shared:
            pair = mine.curves.of(shared), other.curves.of(shared)
            found[name] = {"area": vars(_area_gap(*pair)), "final": vars(_final_gap(*pair))}
    return found


def _area_gap(mine: Curves, other: Curves) -> Estimate:
    areas = (measures.area(c.steps, c.targeted) for c in (mine, other))
    return measures.estimate(np.subtract(*areas))


def _final_gap(mine: Curves, other: Curves) -> Estimate:
    return measures.estimate(mine.targeted[:, -1] - other.targeted[:, -1])


def _rounded(value: Any) -> Any:
    """The same values with six significant digits; what is no number is null."""
    if isinstance(value, Mapping):
        return {str(key): _rounded(v) for key, v in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(v) for v in value]
    if isinstance(value, float):
        return float(f"{value:.6g}") if math.isfinite(value) else None
    return value
