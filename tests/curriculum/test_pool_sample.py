"""How much of a pool is rolled out and scored, where a strategy can predict the rest."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from cropi.curriculum.loop import run
from cropi.curriculum.pool_sample import portions
from cropi.errors import InputError
from cropi.policy.hidden_states import prompt_hidden_states
from cropi.rollouts import read_rollouts
from cropi.schema import NOT_SAMPLED, RolloutGroup
from cropi.selection import Needs
from cropi.selection.draw import Cropi
from cropi.store.files import read_jsonl
from cropi.store.run_directory import pool_rollouts
from cropi.store.tables import read_scores, read_selection
from support.tiny_runs import fake_config, promised_bytes

SMALL = "selection.strategy={name: cropi, sample: 6, most: 16}"
LARGE_POOL = "prompts.pool=[{pocket: [sort, shift], split: pool, size: 20}]"


@pytest.mark.parametrize(
    ("size", "sample", "most", "ends"),
    [
        (100, 10, None, [10, 20, 40, 80, 100]),
        (100, 100, None, [100]),
        (100, 300, None, [100]),
        (100, 10, 35, [10, 20, 35]),
        (7, 1, 5, [1, 2, 4, 5]),
    ],
)
def test_a_sample_is_doubled_to_the_end(
    size: int, sample: int, most: int | None, ends: list[int]
) -> None:
    bounds = list(portions(size, Needs("once", sample=sample, most=most)))
    assert [end for _, end in bounds] == ends
    assert [begin for begin, _ in bounds] == [0, *ends[:-1]]


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose pool of 40 prompts is sampled up to 16."""
    return run(fake_config(tmp_path_factory.mktemp("sampled"), SMALL, LARGE_POOL))


def test_no_more_than_the_most_is_sampled_scored_and_paid_for(done: Path) -> None:
    first = done / "arms/cropi/stages/0"
    groups = read_rollouts(first / "rollouts/pool.parquet")
    assert len(groups) == 16
    scores = read_scores(first / "scores.parquet")
    assert len(scores.prompt_ids) == 40
    unsampled = {
        i for i, s in zip(scores.prompt_ids, scores.status, strict=True) if s == NOT_SAMPLED
    }
    assert unsampled == set(scores.prompt_ids) - {group.prompt_id for group in groups}
    costs = [r for r in read_jsonl(done / "metrics.jsonl") if r["kind"] == "cost"]
    (paid,) = [r for r in costs if r["phase"] == "rollouts" and r["arm"] == "cropi"]
    assert paid["tokens_generated"] == sum(group.tokens for group in groups)
    assert not (done / "rollouts/pool.parquet").exists()
    assert pool_rollouts(done) == first / "rollouts/pool.parquet"


def test_portions_leave_one_file_and_no_folder(done: Path) -> None:
    left = sorted(f.name for f in (done / "arms/cropi/stages/0/rollouts").iterdir())
    assert left == ["pool.parquet", "training.parquet"]


def test_prompts_that_were_never_sampled_are_selected_too(done: Path) -> None:
    groups = read_rollouts(done / "arms/cropi/stages/0/rollouts/pool.parquet")
    chosen = {
        prompt_id
        for stage in (0, 1)
        for prompt_id in read_selection(
            done / f"arms/cropi/stages/{stage}/selection.parquet"
        ).prompt_ids
    }
    assert chosen - {group.prompt_id for group in groups}


def test_a_damaged_score_file_is_made_again_bit_for_bit_without_sampling(
    done: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = promised_bytes(done)
    (done / "arms/cropi/stages/0/scores.parquet").write_bytes(b"torn")

    def forbidden(*_: object, **__: object) -> None:
        raise AssertionError("responses that are there were sampled again")

    monkeypatch.setattr("support.fakes.FakeEngine.generate", forbidden)
    run(fake_config(done.parent.parent, SMALL, LARGE_POOL))
    assert promised_bytes(done) == before


def test_what_is_enough_stops_the_sampling(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = []

    def second_time(_: Cropi, context: object) -> bool:
        sizes.append(int(np.sum(context.statistics.statuses["ok"] > 0)))
        return len(sizes) == 2

    monkeypatch.setattr(Cropi, "enough", second_time)
    strategy = "selection.strategy={name: cropi, sample: 12}"
    finished = run(fake_config(tmp_path, strategy, LARGE_POOL, "curriculum.stages=1"))
    assert sizes == [12, 24]
    sampled = read_rollouts(finished / "arms/cropi/stages/0/rollouts/pool.parquet")
    assert len(sampled) == 24


def test_hidden_states_are_read_once_for_all_stages_and_again_only_if_their_file_is_damaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = []

    def counting(model: object, groups: list[RolloutGroup]) -> np.ndarray:
        read.append(len(groups))
        return prompt_hidden_states(model, groups)

    monkeypatch.setattr("cropi.curriculum.pool_forward_passes.prompt_hidden_states", counting)
    finished = run(fake_config(tmp_path, SMALL, LARGE_POOL))
    before = promised_bytes(finished)
    assert read == [40]
    (finished / "arms/cropi/stages/1/selection.parquet").unlink()
    run(fake_config(tmp_path, SMALL, LARGE_POOL))
    assert (read, promised_bytes(finished)) == ([40], before)
    (finished / "arms/cropi/stages/1/selection.parquet").unlink()
    (finished / "arms/cropi/stages/0/hidden_states.parquet").write_bytes(b"torn")
    run(fake_config(tmp_path, SMALL, LARGE_POOL))
    assert (read, promised_bytes(finished)) == ([40, 40], before)


def test_another_arm_that_needs_the_whole_pool_changes_nothing_for_this_one(
    done: Path, tmp_path: Path
) -> None:
    beside = run(fake_config(tmp_path, SMALL, LARGE_POOL, "baselines=[learnability]"))
    assert len(read_rollouts(beside / "rollouts/pool.parquet")) == 40
    scores = "arms/cropi/stages/0/scores.parquet"
    one, other = read_scores(done / scores), read_scores(beside / scores)
    np.testing.assert_array_equal(one.norms, other.norms)


def test_a_sample_without_a_gradient_names_the_setting_that_bounds_it(tmp_path: Path) -> None:
    rows = [json.dumps({"prompt": f"s{number}=", "answer": "never"}) for number in range(40)]
    (tmp_path / "hopeless.jsonl").write_text("\n".join(rows), encoding="utf-8")
    pool = f"prompts.pool=[{{path: {tmp_path / 'hopeless.jsonl'}}}]"
    expected = r"\(most=16 of 40; raise most\) has no informative prompt among 16"
    with pytest.raises(InputError, match=expected):
        run(fake_config(tmp_path, SMALL, pool))


def test_a_bound_on_a_sample_that_is_not_drawn_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"most 5 has no effect with sample 0"):
        fake_config(tmp_path, "selection.strategy={name: cropi, sample: 0, most: 5}")
