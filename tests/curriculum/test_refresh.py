"""Rollouts sampled again where the policy has moved on: what, when, and at whose cost."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

from cropi.config import RunConfig
from cropi.curriculum.loop import run
from cropi.curriculum.pool_forward_passes import freshest_groups
from cropi.curriculum.stage_rollouts import replace_groups
from cropi.errors import InputError
from cropi.rollouts import read_rollouts
from cropi.rollouts.current_rates import tokens_read
from cropi.rollouts.statistics import PassHistory
from cropi.schema import Response, RolloutGroup, Selection
from cropi.selection import SelectionContext
from cropi.selection.history_baselines import Information
from cropi.store.files import read_jsonl
from cropi.store.tables import read_scores
from support.tiny_runs import fake_config, promised_bytes

SAMPLED = (
    "model.path=pocket",
    "rollouts.engine=transformers",
    "rollouts.responses=8",
    "training.learning_rate=0.1",
)
"""Responses of pocket itself, and a learning rate at which random steps ruin it."""
SHORT = (
    *("selection.strategy=ranking", "curriculum.steps_per_stage=2"),
    *("evaluation.every=10", "training.learning_rate=3e-4"),
)


def group(name: str, reward: float) -> RolloutGroup:
    one = np.ones(1)
    response = Response(one.astype(np.int32), one.astype(np.float32), reward=reward)
    return RolloutGroup(name, one.astype(np.int32), [response])


def stage(run_directory: Path, index: int, arm: str = "ranking") -> Path:
    return run_directory / "arms" / arm / "stages" / str(index)


def sampled(run_directory: Path, index: int) -> list[str]:
    """The rollout files of a stage; training leaves its own."""
    folder = stage(run_directory, index) / "rollouts"
    return sorted(f.relative_to(folder).as_posix() for f in folder.rglob("*.parquet"))


def costs(run_directory: Path, phase: str = "rollouts") -> list[dict[str, Any]]:
    rows = read_jsonl(run_directory / "metrics.jsonl")
    return [r for r in rows if r["kind"] == "cost" and r["phase"] == phase and r["arm"]]


@pytest.fixture(scope="module")
def refreshed(tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    """A finished run; a test that damages it lets it be made again, and wants the same bytes."""
    config = fake_config(
        tmp_path_factory.mktemp("refreshed"), *SHORT, "curriculum.refresh=validation"
    )
    run(config)
    return config


@pytest.fixture(scope="module")
def without_checkpoints(tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    """A finished run that has kept the last weights alone."""
    folder = tmp_path_factory.mktemp("last")
    config = fake_config(folder, *SHORT, "curriculum.keep_checkpoints=last")
    run(config)
    return config


def test_newer_rollouts_replace_those_of_their_prompt_and_no_others() -> None:
    replaced = replace_groups(
        [group("a", 0), group("b", 0), group("c", 0)], [group("c", 1), group("a", 1)]
    )
    assert [(g.prompt_id, g.rewards.tolist()) for g in replaced] == [
        ("a", [1.0]),
        ("b", [0.0]),
        ("c", [1.0]),
    ]


def test_the_papers_recipe_samples_once(tmp_path: Path) -> None:
    done = run(fake_config(tmp_path, *SHORT, "curriculum.refresh=never"))
    for index in (0, 1):
        assert sampled(done, index) == ["training.parquet"]
    assert costs(done) == []


def test_validation_alone_is_sampled_again_from_the_stages_policy(refreshed: RunConfig) -> None:
    done = refreshed.directory
    assert sampled(done, 0) == ["training.parquet"]
    assert sampled(done, 1) == ["training.parquet", "validation/sort.parquet"]
    first = read_rollouts(done / "rollouts/validation/sort.parquet")
    second = read_rollouts(stage(done, 1) / "rollouts/validation/sort.parquet")
    assert [g.prompt_id for g in first] == [g.prompt_id for g in second]
    assert [g.seed for g in first] != [g.seed for g in second]
    (row,) = costs(done)
    assert row["stage"] == 1
    assert row["tokens_generated"] == sum(g.tokens for g in second)


def test_a_set_without_an_informative_prompt_left_keeps_its_last_direction(tmp_path: Path) -> None:
    """A learning rate that ruins the policy leaves no right response to any validation prompt."""
    done = run(fake_config(tmp_path, *SHORT, *SAMPLED, "curriculum.refresh=validation"))
    fresh = read_rollouts(stage(done, 1) / "rollouts/validation/sort.parquet")
    assert not any(g.informative for g in fresh)
    assert (stage(done, 1) / "scores.parquet").exists()


def test_gradalign_scores_every_later_stage_on_rollouts_of_its_own(tmp_path: Path) -> None:
    done = run(fake_config(tmp_path, *SHORT, "selection.strategy=gradalign"))
    fresh = read_rollouts(stage(done, 1, "gradalign") / "rollouts/pool.parquet")
    assert len(fresh) == len(read_rollouts(done / "rollouts/pool.parquet"))
    scores = read_scores(stage(done, 1, "gradalign") / "scores.parquet")
    assert list(scores.mean) == ["validation"]
    assert scores.prompt_ids == [g.prompt_id for g in fresh]
    assert scores.is_scored.tolist() == [g.informative for g in fresh]
    assert sum(row["tokens_generated"] for row in costs(done)) > sum(g.tokens for g in fresh)


def test_only_stale_prompts_of_the_pool_are_sampled_again(tmp_path: Path) -> None:
    """A learning rate that moves the policy far leaves rollouts behind; a tiny one leaves none."""
    far = run(fake_config(tmp_path, *SHORT, *SAMPLED, "curriculum.refresh=stale", "name=far"))
    near = run(
        fake_config(
            tmp_path,
            *SHORT,
            *SAMPLED,
            "curriculum.refresh=stale",
            "training.learning_rate=1e-9",
            "name=near",
        )
    )
    pool = read_rollouts(far / "rollouts/pool.parquet")
    fresh = read_rollouts(stage(far, 1) / "rollouts/pool.parquet")
    assert 0 < len(fresh) <= len(pool)
    assert {g.prompt_id for g in fresh} <= {g.prompt_id for g in pool}
    assert not (stage(near, 1) / "rollouts/pool.parquet").exists()
    validation = read_rollouts(stage(near, 1) / "rollouts/validation/sort.parquet")
    assert [c["tokens_generated"] for c in costs(near)] == [sum(g.tokens for g in validation)]
    reading, *scoring = [c for c in costs(near, "scoring") if c["stage"] == 1]
    assert reading["tokens_backward"] == 0
    assert reading["tokens_forward"] > sum(g.tokens for g in pool)
    assert len(scoring) == 1


def test_learnalign_looks_once_at_the_pool_and_at_no_validation_set(tmp_path: Path) -> None:
    done = run(fake_config(tmp_path, *SHORT, "selection.strategy=learnalign"))
    scores = read_scores(stage(done, 0, "learnalign") / "scores.parquet")
    assert list(scores.mean) == ["pool"]
    assert scores.identity["target"] == "unit_mean"
    assert not (stage(done, 1, "learnalign") / "scores.parquet").exists()
    shared = [r for r in read_jsonl(done / "costs.jsonl") if r["phase"] == "rollouts"]
    assert {r["set"]: r["arms"] for r in shared} == {"pool": ["learnalign"]}
    assert not (done / "rollouts/validation").exists()


def test_the_default_measures_whitened_influence_once_and_pays_for_reading_prompts(
    tmp_path: Path,
) -> None:
    """Beside what a ranking pays at the first stage: a forward pass over every prompt."""
    strategy = "selection.strategy={name: cropi, sample: 0}"
    settings = ("baselines=[ranking]", strategy, "prompts.limit=24")
    done = run(fake_config(tmp_path, *SHORT, *settings))
    arms = ("cropi", "ranking")
    scores = {arm: read_scores(stage(done, 0, arm) / "scores.parquet") for arm in arms}
    assert scores["cropi"].identity["metric"] == "whitened"
    assert "metric" not in scores["ranking"].identity
    assert [(stage(done, 1, arm) / "scores.parquet").exists() for arm in arms] == [False, True]
    paid = {c["arm"]: c for c in costs(done, "scoring") if c["stage"] == 0}
    read = sum(len(g.prompt_ids) for g in read_rollouts(done / "rollouts/pool.parquet"))
    assert paid["cropi"]["tokens_backward"] == paid["ranking"]["tokens_backward"]
    assert paid["cropi"]["tokens_forward"] == paid["ranking"]["tokens_forward"] + read


class Remembering(Information):
    """Notes what history it was given, by the number of rounds."""

    given: ClassVar[dict[int, PassHistory]] = {}

    def select(self, context: SelectionContext) -> Selection:
        assert context.history is not None
        self.given[context.stage] = context.history
        return super().select(context)


REMEMBERING = f"selection.strategy={__name__}:Remembering"


def responses_in(file: Path, ids: list[str]) -> list[int]:
    sampled = {g.prompt_id: len(g.responses) for g in read_rollouts(file)}
    return [sampled.get(i, 0) for i in ids]


def test_a_history_is_every_rollout_of_the_pool_training_included_in_order(tmp_path: Path) -> None:
    settings = (REMEMBERING, "curriculum.refresh=all", "curriculum.stages=3")
    done = run(fake_config(tmp_path, *SHORT, *settings))
    pool = done / "rollouts/pool.parquet"
    ids = [g.prompt_id for g in read_rollouts(pool)]
    (arm,) = (done / "arms").iterdir()
    parts = [arm / "stages" / str(index) / "rollouts" for index in range(3)]
    files = [pool, parts[0] / "training.parquet", parts[1] / "pool.parquet"]
    files += [parts[1] / "training.parquet", parts[2] / "pool.parquet"]
    for index, rounds in ((0, 1), (1, 3), (2, 5)):
        expected = [responses_in(file, ids) for file in files[:rounds]]
        assert Remembering.given[index].responses.tolist() == expected
    assert Remembering.given[1].responses[1].sum() == 2 * 4 * 4  # steps, prompts, responses


def test_a_bandit_over_clusters_pays_for_reading_the_prompts(tmp_path: Path) -> None:
    done = run(fake_config(tmp_path, *SHORT, "selection.strategy={name: bandit, clusters: 3}"))
    read = sum(len(g.prompt_ids) for g in read_rollouts(done / "rollouts/pool.parquet"))
    paid = [(c["tokens_forward"], c["tokens_backward"]) for c in costs(done, "scoring")]
    assert paid == [(read, 0)]  # before the first stage


def test_dare_reads_the_freshest_rollouts_under_the_stages_policy_and_pays_for_it(
    tmp_path: Path,
) -> None:
    done = run(fake_config(tmp_path, *SHORT, "selection.strategy=dare"))
    pool = read_rollouts(done / "rollouts/pool.parquet")
    trained = stage(done, 0, "dare") / "rollouts/training.parquet"
    freshest = freshest_groups(pool, [trained])
    newer = {g.prompt_id: g.tokens for g in read_rollouts(trained)}
    assert [g.tokens for g in freshest] == [newer.get(g.prompt_id, g.tokens) for g in pool]
    paid = [(c["tokens_forward"], c["tokens_backward"]) for c in costs(done, "scoring")]
    assert paid == [(tokens_read(groups), 0) for groups in (pool, freshest)]


@pytest.mark.parametrize("refresh", ["validation", "stale"])
def test_a_stage_that_is_repeated_samples_the_same(
    refreshed: RunConfig, tmp_path: Path, refresh: str
) -> None:
    config = refreshed
    if refresh != "validation":
        config = fake_config(tmp_path, *SHORT, f"curriculum.refresh={refresh}")
    before = promised_bytes(run(config))
    last = stage(config.directory, 1)
    for file in (last / "rollouts.json", last / "scores.parquet", last / "selection.parquet"):
        file.unlink()
    assert promised_bytes(run(config)) == before


def test_a_retrained_stage_makes_the_next_one_sample_again_and_leftovers_are_not_read(
    refreshed: RunConfig,
) -> None:
    config, done = refreshed, refreshed.directory
    before = promised_bytes(done)
    last = stage(config.directory, 1)
    facts = json.loads((last / "rollouts.json").read_text())
    # Made from another policy, and beside it a file that no finished attempt has listed.
    (last / "rollouts.json").write_text(
        json.dumps({**facts, "inputs_fingerprint": "another policy"})
    )
    shutil.copy(done / "rollouts/pool.parquet", last / "rollouts/pool.parquet")
    run(config)
    assert json.loads((last / "rollouts.json").read_text()) == facts
    (last / "rollouts/pool.parquet").unlink()
    assert promised_bytes(done) == before


def test_checkpoints_that_nothing_needs_are_removed(without_checkpoints: RunConfig) -> None:
    config, done = without_checkpoints, without_checkpoints.directory
    assert [f.name for f in (stage(done, 0) / "policy").iterdir()] == ["cropi_stage.json"]
    left = {f.name for f in (stage(done, 1) / "policy").iterdir()}
    assert "model.safetensors" in left
    assert "optimizer.pt" not in left
    before = promised_bytes(done)
    assert promised_bytes(run(config)) == before


def test_removed_weights_that_are_needed_again_are_named(without_checkpoints: RunConfig) -> None:
    config = without_checkpoints
    scores = stage(config.directory, 1) / "scores.parquet"
    scores.write_bytes(b"PAR1 torn")
    with pytest.raises(InputError, match=r"keep_checkpoints=last.*remove .*0/policy/cropi_stage"):
        run(config)
    (stage(config.directory, 0) / "policy" / "cropi_stage.json").unlink()
    run(config)
    assert read_scores(scores).is_scored.any()
