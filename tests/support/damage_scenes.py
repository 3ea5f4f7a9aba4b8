"""Folders in which cropi has worked: a run, half and finished, a study, a store, single outputs."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import yaml

from support.damage import Scene, Use, in_fork
from support.fakes import ENGINE, TRAINER
from support.tiny_runs import FAKE, TINY, untrained

RUN = ("run", "tiny.yaml")
STAGES = "curriculum={stages: 2, steps_per_stage: 1}"
POLICY = "runs/tiny/arms/cropi/stages/1/policy"


def _settings(folder: Path, seed: int, *more: str) -> None:
    """A tiny config in the folder, and a model beside it."""
    from cropi.config import load_config, to_yaml

    folder.mkdir(parents=True)
    shutil.copytree(untrained(), folder / "model")
    (folder / "plain.yaml").write_text(yaml.safe_dump({**TINY, "out": "runs", "seed": seed}))
    changes = [*FAKE, "model.path=model", STAGES, *more]
    config = load_config(str(folder / "plain.yaml"), changes)
    (folder / "plain.yaml").unlink()
    (folder / "tiny.yaml").write_text(to_yaml(config))


def _made(folder: Path, call: Sequence[str] | Callable[[], object], code: int = 0) -> None:
    outcome = in_fork(call, folder)
    assert outcome.code == code, outcome.printed


def _twins(
    root: Path, name: str, make: Callable[[Path, int], None], uses: Sequence[Use], twins: bool
) -> Scene:
    """The same work with two seeds, or with one."""
    for seed, folder in enumerate((root / name, root / f"{name}, other seed")[: 1 + twins]):
        make(folder, seed)
    return Scene(name, root / name, root / f"{name}, other seed", uses)


def half_run(root: Path, *settings: str, name: str = "half run", twins: bool = True) -> Scene:
    """A run that was killed before it trained its second stage."""

    def killed() -> None:
        from cropi.cli import main
        from cropi.curriculum.stage_training import StageRun

        train = StageRun.train

        def train_first(self: StageRun, *arguments: object) -> None:
            if self.stage.index == 1:
                os._exit(9)
            train(self, *arguments)

        StageRun.train = train_first
        sys.argv = ["cropi", *RUN]
        main()

    def make(folder: Path, seed: int) -> None:
        _settings(folder, seed, *settings)
        _made(folder, killed, 9)

    return _twins(root, name, make, [Use("cropi run", RUN, files=("runs/**/*",))], twins)


def finished_run(root: Path, *settings: str, name: str = "finished run") -> Scene:
    """A finished run, continued and shown."""

    def make(folder: Path, seed: int) -> None:
        _settings(folder, seed, *settings)
        _made(folder, RUN)

    uses = [
        Use("cropi run", RUN, files=("runs/**/*",)),
        Use("cropi report", ("report", "runs/tiny"), ("runs/tiny/report.html",), ("runs/**/*",)),
        Use(
            "cropi diagnose",
            (
                *("diagnose", "staleness", "runs/tiny/arms/cropi/stages/0/rollouts/pool.parquet"),
                *("--model", POLICY, "--out", "look"),
            ),
            ("look/*",),
            ("runs/tiny/arms/cropi/stages/0/rollouts/pool.parquet", f"{POLICY}/*"),
        ),
    ]
    return _twins(root, name, make, uses, True)


def study(root: Path) -> Scene:
    """A finished study of two runs, continued and shown."""

    def compare() -> None:
        from cropi.cli.report import report_study
        from cropi.config import load_config
        from cropi.execution import Inline
        from cropi.report import write_run_report
        from cropi.study.runner import run_study
        from cropi.study.study_plan import StudyPlan

        plan = StudyPlan.of(load_config("tiny.yaml", []), ["cropi", "full"], [0])
        run_study(plan, executor=Inline(), draw=write_run_report)
        report_study(plan.root)

    def make(folder: Path, seed: int) -> None:
        _settings(folder, seed, "curriculum={stages: 1, steps_per_stage: 1}")
        _made(folder, compare)

    page = ("runs/tiny-study/report.html", "runs/tiny-study/study.json")
    uses = [
        Use("cropi compare", compare, ("runs/tiny-study/cells/**/*",), ("runs/**/*",)),
        Use("cropi report", ("report", "runs/tiny-study"), page, ("runs/**/*",)),
    ]
    return _twins(root, "study", make, uses, True)


def outputs(root: Path, twins: bool = True) -> Scene:
    """What each command leaves on its own, given to the commands that take it."""

    def make(folder: Path, seed: int) -> None:
        _settings(folder, seed)
        _made(folder, _prompts)
        for arguments in COMMANDS.values():
            _made(folder, [*arguments, "--seed", str(seed)])

    return _twins(root, "outputs", make, OUTPUT_USES, twins)


def _prompts() -> None:
    from cropi.config import load_config
    from cropi.prompts import load_source
    from cropi.store.files import write_jsonl

    sets = load_config("tiny.yaml", []).prompts
    named = {"pool": sets.pool, "val": sets.validation["sort"]}
    for name, sources in named.items():
        prompts = [p for source in sources for p in load_source(source, 0)]
        rows = [{"prompt": p.prompt, "answer": p.answer, "source": p.source} for p in prompts]
        write_jsonl(Path(f"{name}.jsonl"), rows)


def _rollout(name: str) -> list[str]:
    return [
        *("rollout", "--model", "model", "--prompts", f"{name}.jsonl", "--verifier", "exact"),
        *("--responses", "4", "--max-new-tokens", "8", f"engine={ENGINE}"),
        *("--out", f"{name}.parquet"),
    ]


def _features(name: str, *more: str) -> list[str]:
    return [
        *("features", f"{name}.parquet", "--model", "model", "--out", f"{name}.features"),
        *("--sketch", "adaptive", "sketch.dim=64", *more),
    ]


def _score_by(model: str) -> list[str]:
    targets = ("--rollouts", "pool.parquet", "--target", "v=val.parquet")
    return ["score", "--model", model, *targets, "--out", "s.parquet"]


_SCORE = ["score", "--model", "model", "--rollouts", "pool.parquet", "--target", "v=val.parquet"]
_TRAIN = [
    *("train", "--prompts", "pool.jsonl", "--verifier", "exact", "--steps", "1"),
    *("--responses", "4", "prompts_per_step=4", f"engine={TRAINER}"),
]
COMMANDS: dict[str, list[str]] = {
    "rollout": _rollout("pool"),
    "rollout val": _rollout("val"),
    "features": _features("pool"),
    "features val": _features("val", "--like", "pool.features"),
    "score": [*_SCORE, "--out", "scores.parquet"],
    "select": ["select", "--scores", "scores.parquet", "--ratio", "0.2", "--out", "chosen.parquet"],
    "train": [*_TRAIN, "--model", "model", "--selection", "chosen.parquet", "--out", "next"],
}
COMMANDS["train adapters"] = [
    *_TRAIN[:1],
    *("--model", "model", "--selection", "chosen.parquet", "--out", "adapted", "lora={r: 2}"),
    *_TRAIN[1:],
]

OUTPUT_USES = [
    Use("rollout again", COMMANDS["rollout"], ("pool.parquet",), ("pool.parquet",)),
    Use("features again", COMMANDS["features"], ("pool.features/*",), ("pool.features/*",)),
    Use(
        "score features",
        (
            *("score", "--features", "pool.features", "--target", "v=val.features"),
            *("--out", "s.parquet"),
        ),
        ("s.parquet",),
        ("*.features/*",),
    ),
    Use("score", (*_SCORE, "--out", "s.parquet"), ("s.parquet",), ("pool.parquet",), True),
    Use(
        "select",
        ("select", "--scores", "scores.parquet", "--ratio", "0.2", "--out", "c.parquet"),
        ("c.parquet",),
        ("scores.parquet",),
        True,
    ),
    Use(
        "train",
        (*_TRAIN, "--model", "model", "--selection", "chosen.parquet", "--out", "n"),
        ("n/*",),
        ("chosen.parquet",),
        True,
    ),
    Use(
        "train on",
        (
            *(*_TRAIN, "--model", "next", "--selection", "chosen.parquet", "--out", "n"),
            "--carry-optimizer",
        ),
        ("n/*",),
        ("next/*",),
    ),
    Use("score next", _score_by("next"), ("s.parquet",), ("next/*",)),
    Use("score adapted", _score_by("adapted"), ("s.parquet",), ("adapted/*",)),
    Use(
        "evaluate",
        (
            *("evaluate", "--model", "next", "--set", "v=val.jsonl", "--verifier", "exact"),
            *(f"engine={ENGINE}", "--max-new-tokens", "8", "--out", "e.json"),
        ),
        ("e.json",),
        ("next/*",),
    ),
]
