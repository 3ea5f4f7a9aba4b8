"""The study: every strategy in every regime of benchmarks/study/, and the page that reports it.

    python benchmarks/study.py run --jobs 2                 # hours on 2 cores; continues if stopped
    python benchmarks/study.py run --only clean,shifted
    python benchmarks/study.py run --only smollm2           # days: a language model on a CPU
    python benchmarks/study.py report                       # also while studies are unfinished
    python benchmarks/study.py report --of smollm2
    python benchmarks/study.py report --of default          # the default strategy, in every suite
    python benchmarks/study.py report --of baselines        # beside baselines without gradients
    python benchmarks/study.py redraw                       # from the committed numbers alone

`run` is `cropi compare` on one file after another, with the strategies and seeds of the file's own
`compare` section; language models only where they are named. `report` reads what is finished into
benchmarks/results/study.json (regimes of pocket), smollm2.json, default.json or baselines.json, and
redraws; a regime without a study in --out keeps the numbers that it had, and so does a strategy
that the study of an unchanged regime has not run. The studies of default.json and baselines.json
are of the configs here, in benchmarks/chain/ and in benchmarks/puzzles/, made by `cropi compare`
with any strategies and seeds. `redraw` makes docs/figures/ and the tables of docs/results.md from
these numbers alone.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cropi.errors import InputError
from cropi.store.files import atomic_write
from study_report.bar import rows_of
from study_report.earlier import keep_unmeasured
from study_report.gathering import gather, gather_as_asked
from study_report.page import fill
from study_report.results import APART, BASELINES, DEFAULT, LANGUAGE_MODELS, Results

HERE = Path(__file__).resolve().parent
CONFIGS = HERE / "study"
RESULTS = HERE / "results" / "study.json"
PAGE = HERE.parent / "docs" / "results.md"
OTHER_SUITES = (HERE / "chain", HERE / "puzzles")
FIRST = "clean"
"""The regime that the others differ from."""


def main(arguments: list[str] | None = None) -> None:
    """Run or report; a user's error ends with its message alone."""
    options = parse_arguments(arguments)
    try:
        options.work(options)
    except InputError as error:
        sys.exit(f"error: {error}")


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    commands = parser.add_subparsers(required=True, metavar="run|report|redraw")
    running = commands.add_parser("run", help="train what is not finished")
    running.add_argument("--jobs", type=int, default=1, help="cells that run at once")
    running.add_argument("--only", default="", help="regimes, with commas; default: all")
    running.set_defaults(work=run)
    reporting = commands.add_parser("report", help="write numbers, figures and tables")
    reporting.add_argument(
        "--of",
        choices=("pocket", APART, DEFAULT, BASELINES),
        default="pocket",
        help="whose numbers",
    )
    reporting.set_defaults(work=report)
    redrawing = commands.add_parser("redraw", help="write figures and tables from the numbers")
    redrawing.set_defaults(work=redraw)
    for command in (reporting, redrawing):
        command.add_argument("--results", type=Path, default=RESULTS, help="the file of numbers")
        command.add_argument("--page", type=Path, default=PAGE, help="the page with the tables")
    for command in (running, reporting):
        command.add_argument("--out", default="runs", help="where the studies' folders are")
        command.add_argument("--configs", type=Path, default=CONFIGS, help="the regimes' folder")
    return parser.parse_args(arguments)


def regimes(folder: Path, only: str = "") -> list[Path]:
    """Return the regimes' configs, the first one before the others; language models if named.

    Raises InputError for a name that is no regime, or a folder without any.
    """
    configs = {path.stem: path for path in sorted(folder.glob("*.yaml"))}
    if not configs:
        raise InputError(f"{folder} holds no regime (*.yaml); give a folder that does")
    wanted = [name.strip() for name in only.split(",") if name.strip()]
    wanted = wanted or [name for name in configs if name not in LANGUAGE_MODELS]
    for name in wanted:
        if name not in configs:
            raise InputError(f"--only {name!r} is not a regime; allowed: {', '.join(configs)}")
    return [configs[name] for name in sorted(set(wanted), key=lambda name: (name != FIRST, name))]


def run(options: argparse.Namespace) -> None:
    """Run `cropi compare` for one regime after another; one that fails does not stop the others.

    Raises InputError naming those that failed.
    """
    failed = []
    for config in regimes(options.configs, options.only):
        command = [sys.executable, "-m", "cropi", "compare", str(config), f"out={options.out}"]
        if subprocess.run([*command, "--jobs", str(options.jobs)], check=False).returncode:
            failed.append(config.stem)
    if failed:
        raise InputError(f"{', '.join(failed)} did not finish (see above); run again to continue")


def report(options: argparse.Namespace) -> None:
    """Write the numbers of a suite, its figures and tables, and for pocket's print the bar.

    Raises InputError if no regime has a finished cell: what was reported before is kept.
    """
    numbers = numbers_of(options.of, options.configs, options.out)
    if not any(regime["strategies"] for regime in numbers["regimes"].values()):
        raise InputError(
            f"no study in {options.out!r} has a finished cell; start with "
            "`python benchmarks/study.py run`, or name the folder of the studies with --out"
        )
    pocket = options.of == "pocket"
    path = options.results if pocket else beside(options.results, options.of)
    keep_unmeasured(numbers, read_numbers(path)["regimes"] if path.exists() else {})
    write_numbers(path, numbers)
    results = Results(numbers)
    redraw(options)
    for row in rows_of(results) if pocket else []:
        print(f"{row.verdict:<12} {row.regime:<16} {row.asked}: {row.measured}")
    for name, regime in results.regimes.items():
        for line in [*regime.missing, *regime.notes]:
            print(f"{name}: {line}")
    print(f"written to {path}")


def numbers_of(suite: str, configs: Path, out: str) -> dict[str, Any]:
    """Read the numbers of a suite from its studies in `out`."""
    if suite in (DEFAULT, BASELINES):
        others = [path for folder in OTHER_SUITES for path in regimes(folder)]
        return gather_as_asked([*regimes(configs), *others], out)
    named = [name for name in LANGUAGE_MODELS if (configs / f"{name}.yaml").exists()]
    return gather(regimes(configs, ",".join(named) if suite == APART else ""), out)


def beside(results: Path, suite: str) -> Path:
    """The file of another suite's numbers."""
    return results.with_name(f"{suite}.json")


def redraw(options: argparse.Namespace) -> None:
    """Write the figures and the tables from the files of numbers; no study has to be there.

    Raises InputError if a file cannot be read. Those beside pocket's may be absent.
    """
    files = {name: beside(options.results, name) for name in (APART, DEFAULT, BASELINES)}
    others = {n: Results(read_numbers(file)) for n, file in files.items() if file.exists()}
    publish(Results(read_numbers(options.results)), others, options.page)
    print(f"written to {options.page} and {options.page.parent / 'figures'}")


def read_numbers(path: Path) -> dict[str, Any]:
    """Read a file of numbers. Raises InputError if it cannot be read."""
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:
        raise InputError(f"cannot read {path}: {error}") from error


def publish(results: Results, others: Mapping[str, Results], page: Path) -> None:
    """Draw every regime and the overview, and fill the tables of the page.

    `others` are those beside pocket's, by name. The overview is of the default where it is there.
    Raises InputError if the figures cannot be drawn or the page cannot be filled.
    """
    try:
        from study_report.figures import draw, draw_overview
    except ModuleNotFoundError as error:
        raise InputError(f"the figures need {error.name}: pip install -e '.[dev]'") from error
    figures = page.parent / "figures"
    apart = others[APART].regimes.values() if APART in others else ()
    for regime in [*results.regimes.values(), *apart]:
        if regime.strategies:
            draw(regime, figures / f"{regime.name}.svg")
    first = others.get(DEFAULT, results).regimes.get(FIRST)
    if first is not None and {first.baseline, first.method} <= set(first.strategies):
        draw_overview(first, figures / "overview.svg")
    fill(page, results, others)


def write_numbers(path: Path, numbers: dict[str, Any]) -> None:
    """Write JSON with the innermost lists and objects on a line each: smaller, and readable."""
    text = json.dumps(numbers, indent=1, ensure_ascii=False, allow_nan=False)
    # A raw line break is never part of a JSON string, so that joining lines changes no value.
    joined = re.sub(r"[\[{][^\[\]{}]+[\]}]", lambda m: re.sub(r"\n\s*", " ", m[0]), text)
    with atomic_write(path) as part:
        part.write_text(joined + "\n", encoding="utf-8", newline="\n")


if __name__ == "__main__":
    main()
