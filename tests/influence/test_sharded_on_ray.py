"""On Ray, any number of workers gives the same bits, whoever is killed meanwhile."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from cropi.execution.on_ray import RayWorkers
from cropi.influence.cosines import Influence
from cropi.influence.setup import score
from support.pocket_groups import pocket_groups

ray = pytest.importorskip("ray", reason="the extra ray is not installed")
POOL, TARGETS = pocket_groups(24, 1), {"sums": pocket_groups(7, 2)}


@pytest.fixture(scope="module", autouse=True)
def one_cluster() -> Iterator[None]:
    with RayWorkers(2):
        yield
    ray.shutdown()


def scored(
    folder: Path, executor: RayWorkers, at: Callable[[str, int], None] | None = None
) -> Influence:
    return score(
        "pocket",
        POOL,
        TARGETS,
        executor=executor,
        folder=folder,
        progress=lambda phase, done, total: at(phase, done) if at else None,
    )


@pytest.fixture(scope="module")
def expected() -> Influence:
    return score("pocket", POOL, TARGETS)


def test_killed_workers_and_drivers_change_no_bit(tmp_path: Path, expected: Influence) -> None:
    two, killed = RayWorkers(2), []

    def kill_a_worker(phase: str, done: int) -> None:
        if phase.startswith("pool, ") and not killed:
            busy = [attempt.worker for attempt in two._running.values()]
            killed.append([*busy, *two._idle][0])  # an idle one is found dead by its next unit
            ray.kill(killed[0])

    with pytest.warns(UserWarning, match="its worker died.* trying again"):
        first = scored(tmp_path / "a", two, kill_a_worker)
    assert killed
    for worker in two._idle:  # they are kept for the next time, and the next executor needs room
        ray.kill(worker)

    def stop(phase: str, done: int) -> None:
        if phase.startswith("pool, ") and done > 12:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        scored(tmp_path / "b", RayWorkers(1), stop)
    seen: list[int] = []
    second = scored(tmp_path / "b", RayWorkers(1), lambda phase, done: seen.append(done))
    assert any(done > 12 for done in seen[:2]), "it began again"
    one, other = first.estimate.mean["sums"], second.estimate.mean["sums"]
    np.testing.assert_array_equal(one, other)
    np.testing.assert_allclose(one, expected.estimate.mean["sums"], rtol=0, atol=1e-6)
    assert first.estimate.identity == expected.estimate.identity
    assert first.tokens == second.tokens == expected.tokens
