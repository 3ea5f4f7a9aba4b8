"""What cropi tells verl, and reads of it, held to the real verl: its config, data, rewards, shards.

Training itself needs GPUs (docs/integrations/verl.md lists what is to be tried there).
"""

from __future__ import annotations

import json
import os
import subprocess
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import cropi
from cropi.config import ModelConfig, RolloutsConfig, TrainerChoice, TrainingConfig, VerifiersConfig
from cropi.errors import InputError
from cropi.execution.program import environment_for
from cropi.policy.loading import load_policy
from cropi.prompts import encode
from cropi.schema import Prompt
from cropi.training import StagePlan, verl_check
from cropi.training.verl_files import read_verdicts, write_files
from cropi.training.verl_requirements import require_merged, require_shards
from cropi.training.verl_settings import PYTHON_VARIABLE, VerlSettings
from cropi.training.verl_stage import VerlRun
from cropi.verifiers import Judge
from support import inside_verl
from support.chat_model import chat_model

GRADER = """
def graded(data_source, solution_str, ground_truth, extra_info=None):
    if ground_truth == "5":
        raise ValueError("no idea")
    return 0.5 if solution_str == ground_truth else -1.0
"""
ODD = "it's a \\ ${home} [1, 2] = \\"
QUESTIONS = {"p0": ("2+2?", "4"), "p1": ("2+3?", "5"), "p2": ("4+0?", "4")}


@pytest.fixture(scope="module")
def python() -> str:
    return os.environ[PYTHON_VARIABLE]


@pytest.fixture(scope="module")
def run(python: str, tmp_path_factory: pytest.TempPathFactory) -> VerlRun:
    """A later stage of three steps with everything that our config can say."""
    folder = tmp_path_factory.mktemp("it's a run")
    model = str(chat_model(folder / "model"))
    prompts = [
        Prompt(name, answer, "sums", messages=({"role": "user", "content": question},))
        for name, (question, answer) in QUESTIONS.items()
    ]
    overrides = {"trainer.project_name": ODD, "+data.mine.key": [1, "a"]}
    engine = TrainerChoice.of("verl", python=python, overrides=overrides)
    plan = StagePlan(
        start=model,
        prompts=[prompts[n] for n in (2, 0, 1)],
        steps=3,
        first_step=3,
        horizon=6,
        seed=7,
        model=ModelConfig(path=model, attention="sdpa", trust_remote_code=False),
        training=TrainingConfig(
            prompts_per_step=1, responses=2, temperature=0.7, dtype="bfloat16", engine=engine
        ),
        rollouts=RolloutsConfig(max_new_tokens=8, top_k=5, top_p=0.9),
        template_kwargs={"mark": "!"},
    )
    (work := folder / "policy.part" / "work").mkdir(parents=True)
    settings = engine.settings
    assert isinstance(settings, VerlSettings)
    return VerlRun(plan, settings, work, [30])


def inside(python: str, *command: str) -> subprocess.CompletedProcess[str]:
    """Run a program in verl's interpreter, where it can import this cropi."""
    source = str(Path(cropi.__file__).parents[1])
    paths = os.pathsep.join([source, str(Path(inside_verl.__file__).parents[1])])
    environment = {**environment_for(python), "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [python, *command], env=environment, capture_output=True, text=True, check=False
    )


def answered(done: subprocess.CompletedProcess[str]) -> Any:
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_verl_accepts_every_key_and_value_that_it_is_told(python: str, run: VerlRun) -> None:
    answer = answered(inside(python, verl_check.__file__, *run.overrides()))
    assert "verl" not in answer["lacks"]
    assert "cropi" not in answer["lacks"]


@pytest.mark.parametrize(
    ("overrides", "reason"),
    [
        ({"trainer.projekt_name": "a"}, "projekt_name"),
        ({"actor_rollout_ref.actor.use_dynamic_bsz": False}, "micro_batch_size"),
    ],
)
def test_verl_refuses_a_key_that_it_lacks_and_settings_that_do_not_fit(
    python: str, run: VerlRun, overrides: dict[str, Any], reason: str
) -> None:
    wrong = VerlRun(run.plan, VerlSettings(overrides=overrides), run.work, [30])
    done = inside(python, verl_check.__file__, *wrong.overrides())
    assert done.returncode != 0
    assert reason in done.stderr


def test_its_data_set_has_our_prompts_and_its_rewards_are_our_verdicts(
    python: str, run: VerlRun, tmp_path: Path
) -> None:
    (tmp_path / "mine.py").write_text(GRADER)
    with Judge(VerifiersConfig(default="mine.py:graded"), tmp_path) as judge:
        write_files(run.plan, judge, run.work)
    script = inside_verl.__file__
    answer = answered(inside(python, script, "rows", str(run.work), *run.overrides()))
    prompts, tokenizer = run.plan.prompts, load_policy(run.plan.start).tokenizer
    assert answer["ids"] == [prompt.prompt_id for prompt in prompts] == ["p2", "p0", "p1"]
    assert answer["tokens"] == [encode(tokenizer, p, run.plan.template_kwargs) for p in prompts]
    assert answer["rewards"] == [[0.5, 0.0], [-1.0, 0.0]] * 2 + [[0.0, 1.0]] * 2
    assert answer["config"]["trainer.project_name"] == ODD
    assert answer["config"]["data.train_files"] == str(run.work / "rows.parquet")
    (run.work / "responses").mkdir()
    for step, prompt in enumerate(prompts, 4):
        line = json.dumps({"gts": prompt.prompt_id})
        (run.work / "responses" / f"{step}.jsonl").write_text(f"{line}\n" * 2)
    verdicts = [verdict for _, verdict in read_verdicts(run.plan, run.work)]
    assert Counter(v.status for v in verdicts) == {"ok": 4, "error": 2}
    assert "no idea" in next(v.detail for v in verdicts if v.status == "error")


def test_a_merged_checkpoint_has_the_weights_of_its_shards(
    python: str, run: VerlRun, tmp_path: Path
) -> None:
    two = replace(run, settings=VerlSettings(python=python, gpus=2))
    torchrun = ("-m", "torch.distributed.run", "--nproc-per-node=2", inside_verl.__file__)
    done = inside(python, *torchrun, "shards", run.plan.start, str(two.saved / "actor"))
    assert done.returncode == 0, done.stderr[-3000:]
    require_shards(two.saved.parent, 6, two.settings)
    whole = torch.load(two.saved / "actor" / "whole.pt")
    merged = inside(python, *two.merge_command()[1:])
    assert merged.returncode == 0, merged.stderr[-3000:]
    policy = run.work.parent
    require_merged(run.plan, policy)
    weights = load_file(policy / "model.safetensors")
    for name, weight in load_policy(policy).model.named_parameters():
        assert torch.equal(weight, whole[name].bfloat16()), name
    assert not torch.equal(
        whole["lm_head.weight"], load_file(f"{run.plan.start}/model.safetensors")["lm_head.weight"]
    )
    (policy / "model.safetensors").unlink()
    from safetensors.torch import save_file

    save_file(
        {**weights, "lm_head.weight": weights["lm_head.weight"] * torch.nan},
        policy / "model.safetensors",
        {"format": "pt"},
    )
    with pytest.raises(InputError, match="NaN or infinite weights"):
        require_merged(run.plan, policy)
