"""The paper's method on one screen, with the Python API, on the embedded pocket tasks.

Collect rollouts once. Before every stage, score each pool prompt's off-policy gradient under the
current policy against the validation set's, select the best tenth (the strategy `ranking`), train
on it with GRPO. `cropi run pocket selection.strategy=ranking` is this loop with resuming,
baselines, evaluation and a report.

    python examples/minimal_curriculum.py
"""

from pathlib import Path

from cropi import evaluate, rollout, score, select, train
from cropi.config import (
    EngineChoice,
    PromptSource,
    RolloutsConfig,
    SelectionConfig,
    TrainerChoice,
    TrainingConfig,
)
from cropi.prompts import load_source

STAGES, STEPS = 2, 20
OUT = Path("runs/minimal")


def prompts(split: str, skill: str, size: int) -> list:  # noqa: D103
    return load_source(PromptSource(pocket=[skill], split=split, size=size), seed=0)


pool = prompts("pool", "all", 100)
validation = prompts("validation", "sort", 60)
test = {"sort": prompts("test", "sort", 300)}
sampling = RolloutsConfig(max_new_tokens=8, engine=EngineChoice.of(batch_size=512))
trl = TrainerChoice.of(grpo={"lr_scheduler_type": "constant"})
grpo = TrainingConfig(learning_rate=5e-6, engine=trl)

policy, scores = "pocket", []
judged = {"verifier": "exact", "settings": sampling}
pool_rollouts = rollout(policy, pool, OUT / "pool.parquet", **judged)
targets = {"sort": rollout(policy, validation, OUT / "sort.parquet", **judged)}

for stage in range(STAGES):
    influence = score(policy, pool_rollouts, targets)
    selection = select(influence, SelectionConfig(ratio=0.1), earlier=scores)
    scores.append(influence.estimate)
    train(
        policy, pool, selection, OUT / f"policy-{stage}", grpo, steps=STEPS, verifier="exact",
        rollouts=sampling, carry_optimizer=stage > 0, horizon=STAGES * STEPS,
    )  # fmt: skip
    policy = str(OUT / f"policy-{stage}")
    (result,) = evaluate(policy, test, verifier="exact", rollouts=sampling)
    print(f"stage {stage + 1}: {len(selection.prompt_ids)} prompts, sort {result.pass_at[1]:.1%}")
