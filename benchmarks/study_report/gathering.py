"""From the studies' directories to the numbers of benchmarks/results/study.json and others."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from cropi import __version__
from cropi.config import load_config, to_yaml
from cropi.estimation.intervals import mean_interval
from cropi.schema import fingerprint
from cropi.study import measures
from cropi.study.comparison import BaselineComparison, StrategyResult, Study, measure_study
from cropi.study.measures import AXES, Curves
from cropi.study.output import RULES, interval_values, seed_values
from cropi.study.results import RunResult, read_yaml_mapping
from cropi.study.study_plan import STUDY_FILE, StudyPlan

METHOD = "cropi"
"""The strategy that the bar is about: this package's method with its default options."""

AHEAD_IN = {"area": "area", "final": "final_targeted"}
"""In what our method is compared with every other, and what a seed's row calls it."""

Values = dict[str, Any]


def gather(configs: list[Path], out: str) -> Values:
    """Return all numbers of the regimes whose configs are given; their studies are in `out`.

    A regime that has not been run has no strategies, and what is missing is said.
    Raises InputError for a config that is not valid.
    """
    return {
        "cropi": __version__,
        "method": METHOD,
        "rules": {**RULES, "asked_ratio": measures.REPORTED_COST_RATIO},
        "regimes": {path.stem: rounded(regime(path, out)) for path in configs},
    }


def gather_as_asked(configs: list[Path], out: str) -> Values:
    """Return the numbers of studies that say themselves which strategies and seeds were asked for.

    Regimes have their studies' names; one without a study has no strategies.
    Raises InputError for a config that is not valid.
    """
    numbers = gather([], out)
    for path in configs:
        root = StudyPlan.of(load_config(str(path), [f"out={out}"])).root
        name = root.name.removesuffix("-study")
        numbers["regimes"][name] = rounded(regime(path, out, asked_of(root)))
    return numbers


def asked_of(root: Path) -> list[str]:
    """The settings that asked a study for its strategies and seeds; none if it is absent."""
    compare = read_yaml_mapping(root / STUDY_FILE).get("compare") or {}
    keys = [key for key in ("strategies", "seeds") if key in compare]
    return [f"compare.{key}={json.dumps(compare[key])}" for key in keys]


def regime(config: Path, out: str, settings: Sequence[str] = ()) -> Values:
    """Return one regime's numbers, from the study of this config with other settings over it."""
    plan = StudyPlan.of(load_config(str(config), [f"out={out}", *settings]))
    about: Values = {
        "strategies": {},
        "planned": {"strategies": list(plan.labels), "seeds": list(plan.seeds)},
        "baseline": plan.baseline,
    }
    if not (plan.root / STUDY_FILE).is_file():
        return about | {"missing": ["not run yet"], "notes": []}
    study = measure_study(plan.root)
    notes = [*study.notes, *other_settings(plan)]
    about |= {"missing": unfinished(plan, study), "notes": notes}
    return about | measured(plan, study) if study.strategies else about


def unfinished(plan: StudyPlan, study: Study) -> list[str]:
    """Say of which strategies that the config asks for not all seeds are finished."""
    done = {label: {run.seed for run in study.runs(label)} for label in plan.labels}
    left = {label: set(plan.seeds) - seeds for label, seeds in done.items()}
    count = len(plan.seeds)
    return [f"{label} {count - len(n)} of {count} seeds" for label, n in left.items() if n]


def other_settings(plan: StudyPlan) -> list[str]:
    """Say which settings the study was run with that the config does not have now."""
    now, then = (_settings(text) for text in (to_yaml(plan.as_config()), _study_yaml(plan)))
    keys = sorted(key for key in {*now, *then} if now.get(key) != then.get(key))
    return [f"run with other settings than the config's of now: {', '.join(keys)}"] if keys else []


def _study_yaml(plan: StudyPlan) -> str:
    return (plan.root / STUDY_FILE).read_text(encoding="utf-8")


def _settings(text: str) -> dict[str, Any]:
    """A config's settings by dotted key, but for where it runs and for who is compared."""
    apart = ("out", "compare", "scale")
    values = {k: v for k, v in yaml.safe_load(text).items() if k not in apart}
    return dict(_flat(values))


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def measured(plan: StudyPlan, study: Study) -> Values:
    """Return the numbers of a study with finished runs."""
    runs = [run for run in study.files.runs if run.finished]
    manifests = [_manifest(run) for run in runs]
    versions = {json.dumps(m["versions"], sort_keys=True): m["versions"] for m in manifests}
    strategies = {name: strategy(study, name) for name in study.strategies}
    return {
        "baseline": study.baseline,
        "config_hash": fingerprint(_settings(_study_yaml(plan))),
        "versions": list(versions.values()),
        "setting": setting(study, runs[0], manifests[0]),
        "levels": {f"{share:.2f}": vars(level) for share, level in study.levels.items()},
        "strategies": strategies,
        "method_minus": ahead(strategies),
    }


def _manifest(run: RunResult) -> Values:
    """What is used of a finished run's manifest."""
    try:
        manifest = json.loads((run.path / "manifest.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        manifest = {}
    model = manifest.get("model") or {}
    return {"versions": manifest.get("versions") or {}, "parameters": model.get("parameters")}


def setting(study: Study, run: RunResult, manifest: Values) -> Values:
    """Return the sizes of a study, from its config and from what its first run really had."""
    config = study.files.config
    sections = [config.get(name) or {} for name in ("curriculum", "training")]
    selection = config.get("selection") or {}
    wanted = ("stages", "steps_per_stage", "prompts_per_step", "responses", "learning_rate")
    return {
        "parameters": manifest["parameters"],
        "pool": sum(run.selected.pool.values()),
        "pool_by_source": run.selected.pool,
        "test": {s.name: {"targeted": s.targeted, "prompts": s.prompts} for s in run.sets},
        "ratio": selection.get("ratio"),
        **{key: section[key] for key in wanted for section in sections if key in section},
    }


def strategy(study: Study, name: str) -> Values:
    """Return one strategy's numbers, by itself and against the baseline."""
    result, runs = study.strategies[name], study.runs(name)
    comparison = study.comparisons.get(name)
    return {
        "seeds": [run.seed for run in runs],
        **estimates(result),
        "per_seed": [of_seed(study, run) for run in runs],
        "costs": result.costs,
        "costs_by_phase": result.phases,
        "curves": curves(result.curves),
        "selected": chosen(runs),
        "reliability": reliability(runs),
        "compared": compared(study, comparison) if comparison else None,
    }


def of_seed(study: Study, run: RunResult) -> Values:
    """Return one seed's measures, and how many prompts a sample of its own has, if it took one."""
    values = {"seed": run.seed, **seed_values(study, run)}
    sampled = run.selected.sampled
    return values if sampled is None else values | {"sampled": sampled}


def estimates(result: StrategyResult) -> Values:
    """Return a strategy's measures with their intervals."""
    return {
        "start": result.start,
        "final": interval_values(result.final),
        "area": interval_values(result.area),
        "untargeted": interval_values(result.untargeted),
        "change": interval_values(result.change),
    }


def curves(mean: Curves) -> Values:
    """Return mean curves over seeds with the targeted one's 95% band, and mean cumulative costs."""
    edges = measures.band(mean.targeted)
    low, high = (None, None) if edges is None else (edge.tolist() for edge in edges)
    others = mean.untargeted
    return {
        "steps": mean.steps.tolist(),
        "targeted": mean.targeted.mean(axis=0).tolist(),
        "targeted_low": low,
        "targeted_high": high,
        "untargeted": None if others is None else others.mean(axis=0).tolist(),
        "training": {axis: cost.mean(axis=0).tolist() for axis, cost in mean.training.items()},
        "selection": {axis: cost.mean(axis=0).tolist() for axis, cost in mean.selection.items()},
    }


def chosen(runs: list[RunResult]) -> list[Values]:
    """Return prompts by source that each stage selected, and their pass rate: means over seeds."""
    stages: dict[int, list[Any]] = {}
    for run in runs:
        for selection in run.selected.stages:
            stages.setdefault(selection.stage, []).append(selection)
    return [
        {
            "stage": stage,
            "sources": {
                source: float(np.mean([s.sources.get(source, 0) for s in selections]))
                for source in sorted({name for s in selections for name in s.sources})
            },
            "pass_rate": _mean([s.pass_rate for s in selections if s.pass_rate is not None]),
        }
        for stage, selections in sorted(stages.items())
    ]


def reliability(runs: list[RunResult]) -> dict[str, list[float]]:
    """Return by target the split-half cosine of its direction at every stage: means over seeds."""
    values: dict[str, dict[int, list[float]]] = {}
    for run in runs:
        for stage, by_target in run.split_half.items():
            for target, cosine in by_target.items():
                values.setdefault(target, {}).setdefault(stage, []).append(cosine)
    return {
        target: [float(np.mean(stages[stage])) for stage in sorted(stages)]
        for target, stages in values.items()
    }


def _mean(values: list[float]) -> float | None:
    return float(np.mean(values)) if values else None


def compared(study: Study, comparison: BaselineComparison) -> Values:
    """Return a strategy's differences from the baseline, its accelerations, and its break-even."""
    ratios: dict[str, Values] = {axis: {} for axis in AXES}
    for (axis, share), ratio in comparison.accelerations.items():
        ratios[axis][f"{share:.2f}"] = vars(ratio)
    return {
        "seeds": list(comparison.seeds),
        "read_coarsely": read_coarsely(study, comparison),
        "final": interval_values(comparison.final),
        "area": interval_values(comparison.area),
        "untargeted": interval_values(comparison.untargeted),
        "oracle_share": interval_values(comparison.oracle_share),
        "accelerations": ratios,
        "break_even": {
            f"{share:.2f}": vars(point)
            | {
                "acceleration": point.at(point.measured),
                "at_asked_ratio": point.at(measures.REPORTED_COST_RATIO),
            }
            for share, point in comparison.break_even.items()
        },
    }


def read_coarsely(study: Study, comparison: BaselineComparison) -> Values:
    """Return the accelerations at the main level as every second evaluation alone shows them."""
    names = (study.baseline, comparison.strategy)
    baseline, coarse = (
        study.strategies[n].curves.for_seeds(comparison.seeds).every(2) for n in names
    )
    share = measures.MAIN_LEVEL
    ratios = {axis: measures.acceleration(baseline, coarse, share, axis) for axis in AXES}
    return {axis: vars(ratio) for axis, ratio in ratios.items() if ratio}


def ahead(strategies: Mapping[str, Values]) -> Values:
    """Return our method's area and final accuracy minus every other strategy's, seeds paired."""
    gaps = {}
    for name, other in strategies.items():
        if name != METHOD and METHOD in strategies:
            rows = strategies[METHOD]["per_seed"], other["per_seed"]
            pairs = {measure: _gaps(*rows, column) for measure, column in AHEAD_IN.items()}
            if pairs["area"]:
                gaps[name] = {n: interval_values(mean_interval(v)) for n, v in pairs.items()}
    return gaps


def _gaps(method: Sequence[Values], other: Sequence[Values], column: str) -> list[float]:
    """The method's values minus another strategy's, of the seeds that both have."""
    values = {row["seed"]: row[column] for row in other if row[column] is not None}
    return [
        row[column] - values[row["seed"]]
        for row in method
        if row["seed"] in values and row[column] is not None
    ]


def rounded(value: Any) -> Any:
    """The same values with six significant digits; what is not a number is null."""
    if isinstance(value, Mapping):
        return {str(key): rounded(v) for key, v in value.items()}
    if isinstance(value, list | tuple):
        return [rounded(v) for v in value]
    if isinstance(value, float):
        return float(f"{value:.6g}") if math.isfinite(value) else None
    return value
