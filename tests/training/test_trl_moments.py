"""The checkpoints that our own stages leave give their second moments by name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from cropi.influence.preconditioner import Preconditioner
from cropi.policy.loading import load_policy
from cropi.policy.optimizer_state import second_moments
from cropi.training import StageOutcome, StagePlan, find_trainer, trl_stage
from cropi.verifiers import Judge


def test_a_stage_of_trl_leaves_second_moments_by_name(
    make_plan: Callable[..., StagePlan],
    judge: Judge,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    live = {}

    def watch(trainer: trl_stage.GRPOTrainer, *rest: object) -> None:
        state = getattr(trainer.optimizer, "optimizer", trainer.optimizer).state
        live.update({n: state[p]["exp_avg_sq"] for n, p in trainer.model.named_parameters()})

    monkeypatch.setattr(trl_stage, "_require_steps", watch)
    plan, outcome = make_plan("pocket", 2, weight_decay=0.1), StageOutcome()
    find_trainer(plan.training.engine).train(plan, judge, tmp_path, outcome=outcome)
    model = load_policy(str(tmp_path), dtype="float32", device="cpu").model
    moments = second_moments(tmp_path, model)
    assert set(moments) == set(live) == {n for n, _ in model.named_parameters()}
    assert all(torch.equal(moments[name], moment) for name, moment in live.items())
    assert moments.step == 2
    assert Preconditioner(moments).scale(next(iter(moments))).isfinite().all()
