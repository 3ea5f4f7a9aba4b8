"""How much faster two workers of Ray are than one: rollouts and scores of pocket, many times over.

    OMP_NUM_THREADS=1 python benchmarks/scale.py --times 20     # needs two cores; minutes

One and two workers of one core do the same work in turns, on one Ray, with workers that have been
started before. Beside the wall time, which other programs on the machine lengthen, it measures CPU
time: of every worker and of this process. From that follows what two cores of their own would give:
`by_cpu` is all CPU time with one worker over that of this process and the busier of two workers,
as if none of it overlapped. Writes benchmarks/results/scale.json.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import psutil

import cropi
from cropi.config import EngineChoice, PromptSource, RolloutsConfig
from cropi.execution import WorkUnit
from cropi.execution.on_ray import RayWorkers
from cropi.prompts import load_source
from cropi.schema import Prompt, RolloutGroup

RESULTS = Path(__file__).parent / "results" / "scale.json"
SETTINGS = RolloutsConfig(
    responses=6, max_new_tokens=8, engine=EngineChoice.of("transformers", batch_size=512)
)
Task = Callable[[Path, RayWorkers], object]


@dataclass
class Cost:
    """Seconds of a task, in all: on the clock, of each worker's CPU, of this process's CPU."""

    wall: float
    workers: list[float]
    driver: float


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--times", type=int, default=20, help="how often the pool is repeated")
    parser.add_argument("--rounds", type=int, default=1, help="turns of each number of workers")
    given = parser.parse_args()
    pool = many(load_source(PromptSource(pocket=["all"], split="pool", size=175), 0), given.times)
    target = load_source(PromptSource(pocket=["sort"], split="validation", size=60), 0)
    folder = Path(tempfile.mkdtemp(prefix="cropi-scale-"))
    try:
        tasks = tasks_of(pool, target, folder)
        results = {name: in_turns(task, given.rounds, folder) for name, task in tasks}
    finally:
        shutil.rmtree(folder)
    load = [round(each, 1) for each in psutil.getloadavg()]
    written = {"prompts": len(pool), "load_at_the_end": load, **results}
    RESULTS.write_text(json.dumps(written, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(written))


def many(prompts: Sequence[Prompt], times: int) -> list[Prompt]:
    """The prompts so many times over, each with an id of its own."""
    return [replace(p, prompt_id=f"{p.prompt_id}-{n}") for n in range(times) for p in prompts]


def tasks_of(
    pool: Sequence[Prompt], target: Sequence[Prompt], folder: Path
) -> list[tuple[str, Task]]:
    """Rollouts of the pool, and scores of what the first of them brought."""
    rollouts: list[RolloutGroup] = []
    targets = {"sort": cropi.rollout("pocket", target, folder / "t.parquet", verifier="exact")}

    def sample(place: Path, executor: RayWorkers) -> None:
        file = place / "pool.parquet"
        rollouts[:] = cropi.rollout(
            "pocket", pool, file, SETTINGS, verifier="exact", executor=executor
        )

    def score(place: Path, executor: RayWorkers) -> None:
        cropi.score("pocket", rollouts, targets, executor=executor, folder=place / "shards")

    return [("rollouts", sample), ("scoring", score)]


def in_turns(task: Task, rounds: int, folder: Path) -> dict[str, object]:
    """One and two workers by turns; the sums of what they took, and the ratios."""
    costs: dict[int, list[Cost]] = {1: [], 2: []}
    for turn in range(rounds):
        for workers in costs:
            place = folder / f"{turn}-{workers}"
            place.mkdir(exist_ok=True)
            costs[workers].append(measured(task, place, workers))
    one, two = costs[1], costs[2]
    wall = sum(each.wall for each in one) / sum(each.wall for each in two)
    alone = sum(sum(each.workers) + each.driver for each in one)
    together = sum(max(each.workers) + each.driver for each in two)
    return {
        "wall_ratio": round(wall, 2),
        "by_cpu": round(alone / together, 2),
        "one": [rounded(each) for each in one],
        "two": [rounded(each) for each in two],
    }


def measured(task: Task, place: Path, workers: int) -> Cost:
    """What a task costs with workers that are there and have imported what they need."""
    executor = RayWorkers(workers)
    with executor:
        for n in range(workers):
            executor.submit(WorkUnit(f"warm {n}", _warm))
        list(executor.completed())
    before, driver, start = _cpu_of_workers(), time.process_time(), time.perf_counter()
    task(place, executor)
    wall, driver = time.perf_counter() - start, time.process_time() - driver
    used = [seconds - before.get(pid, 0.0) for pid, seconds in _cpu_of_workers().items()]
    return Cost(wall, sorted(used)[-workers:], driver)


def rounded(cost: Cost) -> dict[str, object]:
    """For the file."""
    workers = [round(each, 1) for each in cost.workers]
    return {
        "wall": round(cost.wall, 1),
        "workers_cpu": workers,
        "driver_cpu": round(cost.driver, 1),
    }


def _warm() -> None:
    import transformers  # noqa: F401

    import cropi.influence.setup
    import cropi.rollouts.collect  # noqa: F401

    time.sleep(2)  # so that each worker takes one


def _cpu_of_workers() -> dict[int, float]:
    """CPU seconds so far of each worker below this process, with its children (verifiers)."""
    below = psutil.Process().children(recursive=True)
    workers = [each for each in below if each.name().startswith("ray::")]
    return {each.pid: sum(map(_seconds, [each, *each.children()])) for each in workers}


def _seconds(process: psutil.Process) -> float:
    times = process.cpu_times()
    return times.user + times.system


if __name__ == "__main__":
    main()
