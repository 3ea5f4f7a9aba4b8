"""What damage, kills and second writers do to stored work: used rightly, told, or silent?

Files of a half-finished run, a finished one, one with adapters, a study, and the outputs of single
commands are damaged one by one, in 16 ways, and used again as a user would. A run is killed at its
renames and syncs, and continued. Two processes write each output at once. The trainer and the
engine train and sample nothing (tests/support/fakes.py). Writes benchmarks/results/faults.json
after every part, and prints a table; the exit code is 1 if anything was silent, a traceback or a
hang.

    python benchmarks/faults.py --tries 40
    python benchmarks/faults.py --only outputs --seed 7
    python benchmarks/faults.py --cost curriculum.stages=2 curriculum.steps_per_stage=20

The last one runs the pocket preset with these settings, really, and says which share of its time
went into hashing, comparing and listing files.
"""

from __future__ import annotations

import argparse
import functools
import os
import random
import shutil
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from cropi.cli.printing import print_table
from cropi.policy import checkpoint_source
from cropi.store import files, ledger, policy_record
from cropi.store.files import write_json
from cropi.store.ledger import Ledger
from support.damage import (
    GOOD,
    Attempt,
    Ending,
    Reference,
    Scene,
    Use,
    attempt,
    ending_of,
    in_fork,
    possible,
    results_of,
    warm_up,
)
from support.damage_scenes import COMMANDS, finished_run, half_run, outputs, study

RESULT = Path(__file__).parent / "results" / "faults.json"
ENDINGS: tuple[Ending, ...] = (*GOOD, "unnamed", "silent", "traceback", "hang")
COLUMNS = ("what", "tries", *ENDINGS)
ADAPTERS = ("training.lora={r: 2}", "warmup.steps=1", "curriculum.refresh=all")
SCENES: dict[str, Callable[[Path], Scene]] = {
    "half run": half_run,
    "half run with adapters": lambda root: half_run(root, *ADAPTERS, name="half run with adapters"),
    "finished run": finished_run,
    "study": study,
    "outputs": outputs,
}


def main() -> int:
    """Measure, print and write; return the exit code."""
    arguments = _arguments()
    if arguments.cost is not None:
        return _print_cost(arguments.cost)
    warm_up()
    done: list[Attempt] = []
    with TemporaryDirectory() as folder:
        for part in _parts(Path(folder), arguments):
            done += part
            if not arguments.only:
                _write(done, arguments)
    print_table([*COLUMNS], [[str(cell) for cell in row] for row in _rows(done)])
    return int(any(each.ending not in GOOD for each in done))


def _parts(root: Path, arguments: argparse.Namespace) -> Iterator[Iterator[Attempt]]:
    if not arguments.only:
        yield _two_writers(root)
    for name, make in SCENES.items():
        if arguments.only in ("", name):
            yield _damaged(make(root), root, arguments)
    if not arguments.only:
        yield _killed(root, arguments)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tries", type=int, default=40, help="damaged files per use")
    parser.add_argument("--seed", type=int, default=0, help="which files, and in which ways")
    parser.add_argument("--only", choices=["", *SCENES], default="", help="one kind of work")
    parser.add_argument("--cost", nargs="*", help="settings of a pocket run to time instead")
    return parser.parse_args()


def _damaged(scene: Scene, work: Path, arguments: argparse.Namespace) -> Iterator[Attempt]:
    reference, draw = Reference(), random.Random(arguments.seed)
    for use in scene.uses:
        cases = possible(scene, use)
        for file, damage in draw.sample(cases, min(arguments.tries, len(cases))):
            done = attempt(scene, use, file, damage, work, reference)
            if done is not None:
                yield _shown(done)


def _killed(root: Path, arguments: argparse.Namespace) -> Iterator[Attempt]:
    """A run killed at a rename or sync, then continued."""
    scene = half_run(root, name="begun run", twins=False)
    shutil.rmtree(scene.place / "runs")
    use, reference = scene.uses[0], Reference()
    expected = reference.of(scene, use, root)
    work = root / "killed"
    for number in range(1, arguments.tries + 1):
        for call in ("replace", "fsync"):
            shutil.rmtree(work, ignore_errors=True)
            shutil.copytree(scene.place, work)
            killed = in_fork(_dying(use, call, 3 * number), work)
            outcome = in_fork(use.call, work)
            results = results_of(work, use.results)
            after = type(outcome)(outcome.code, outcome.printed, results)
            how = f"call {3 * number} of os.{call}"
            if killed.code == 9:
                ending = ending_of(after, expected, "")
                yield _shown(
                    Attempt("a run", "killed and continued", how, call, ending, after.printed)
                )


def _dying(use: Use, call: str, number: int) -> Callable[[], None]:
    """The same command, in a process that ends right before a call of an os function."""

    def run() -> None:
        from cropi.cli import main as command

        original, left = getattr(os, call), iter(range(number - 1, -1, -1))

        def counted(*given: object, **named: object) -> object:
            if next(left, 0) == 0:
                os._exit(9)
            return original(*given, **named)

        setattr(os, call, counted)
        assert not callable(use.call)
        sys.argv = ["cropi", *use.call]
        command()

    return run


def _two_writers(root: Path) -> Iterator[Attempt]:
    """Two processes with one output: one writes it, the other is refused or comes too late."""
    scene = outputs(root / "writers", twins=False)
    for name, arguments in COMMANDS.items():
        out = arguments[arguments.index("--out") + 1]
        expected = results_of(scene.place, (out, f"{out}/*"))
        for path in (scene.place / out,):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        other = os.fork()
        if other == 0:
            os._exit(in_fork([*arguments, "--seed", "0"], _twin(scene.place)).code or 0)
        first = in_fork([*arguments, "--seed", "0"], scene.place)
        second_code = os.waitstatus_to_exitcode(os.waitpid(other, 0)[1])
        same = results_of(scene.place, (out, f"{out}/*")) == expected
        ending: Ending = "told" if same and {first.code, second_code} <= {0, 2} else "silent"
        if "Traceback" in first.printed or {first.code, second_code} - {0, 2}:
            ending = "traceback"
        yield _shown(Attempt("outputs", "two writers", out, name, ending, first.printed))


def _twin(place: Path) -> Path:
    """The same folder under another name, so that two processes print to files of their own."""
    twin = place.with_name(place.name + " again")
    twin.unlink(missing_ok=True)
    twin.symlink_to(place, target_is_directory=True)
    return twin


CHECKS = {
    Ledger: ("is_current", "damaged", "record", "repair", "all_intact", "notes"),
    files: ("_seal", "_has_written_content", "content_hash"),
    policy_record: ("write_policy_record", "require_intact"),
    checkpoint_source: ("require_intact",),
    ledger: ("content_hash",),
}
"""Everything that hashes or compares stored files, where it is looked up."""


def _print_cost(settings: list[str]) -> int:
    """Run pocket with a clock around every check; print the share of the time."""
    import cropi

    spent, depth, places_of = [0.0], [0], [(owner, n) for owner, ns in CHECKS.items() for n in ns]
    for owner, name in places_of:
        setattr(owner, name, _clocked(getattr(owner, name), spent, depth))
    with TemporaryDirectory() as folder:
        config = cropi.load_config("pocket", [*settings, f"out={folder}"])
        began = time.perf_counter()
        cropi.run(config)
        wall = time.perf_counter() - began
    print(f"checking took {spent[0]:.2f} s of {wall:.1f} s: {spent[0] / wall:.2%}")
    return 0


def _clocked(
    check: Callable[..., object], spent: list[float], depth: list[int]
) -> Callable[..., object]:
    """The same function; the time of the outermost call is added to `spent`."""

    @functools.wraps(check)
    def timed(*given: object, **named: object) -> object:
        began = time.perf_counter()
        depth[0] += 1
        try:
            return check(*given, **named)
        finally:
            depth[0] -= 1
            if depth[0] == 0:
                spent[0] += time.perf_counter() - began

    return timed


def _shown(done: Attempt) -> Attempt:
    if done.ending not in GOOD:
        print(
            f"{done.ending}: {done.scene}, {done.use}: {done.file}, {done.damage}\n{done.printed}\n"
        )
    return done


def _rows(done: list[Attempt]) -> list[list[str | int]]:
    counts: dict[tuple[str, str], Counter[Ending]] = {}
    for each in done:
        counts.setdefault((each.scene, each.use), Counter())[each.ending] += 1
    return [
        [f"{scene}: {use}", endings.total(), *(endings[ending] for ending in ENDINGS)]
        for (scene, use), endings in counts.items()
    ]


def _write(done: list[Attempt], arguments: argparse.Namespace) -> None:
    table = [dict(zip(COLUMNS, row, strict=True)) for row in _rows(done)]
    bad = [asdict(each) for each in done if each.ending not in GOOD]
    write_json(RESULT, {"arguments": vars(arguments), "table": table, "bad": bad})


if __name__ == "__main__":
    sys.exit(main())
