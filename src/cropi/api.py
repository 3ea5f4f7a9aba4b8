"""The steps of the method as plain functions, for notebooks and for people with their own loop.

Everything takes and returns the data contracts of `cropi.schema`; files are optional. The command
line's single steps are these functions with printing around them. Importing this module loads no
torch: selecting needs none.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from cropi.config import (
    EvaluationConfig,
    InfluenceConfig,
    ModelConfig,
    PromptSource,
    RolloutsConfig,
    RunConfig,
    TrainingConfig,
    VerifiersConfig,
    load_config,
)
from cropi.errors import InputError
from cropi.feature_api import extract_features, score_features
from cropi.prompts import deduplicate, load_source
from cropi.rollouts import collect, load_engine, read_rollouts, rollout_statistics
from cropi.schema import (
    EvaluationResult,
    InfluenceEstimate,
    Prompt,
    RolloutGroup,
    Sampling,
    Selection,
    fingerprint,
)
from cropi.selection import (
    SelectionContext,
    find_strategy,
    needs_of,
    require_not_empty,
    selection_size,
)
from cropi.store.files import atomic_folder, require_writable
from cropi.training import StageOutcome, StagePlan, find_trainer, stage_order
from cropi.training.stage import MAX_SAMPLING_ROUNDS, Row
from cropi.verifiers import Judge

if TYPE_CHECKING:
    from torch import nn

    from cropi.influence.cosines import Influence
    from cropi.influence.informative import PhaseProgress
    from cropi.policy.loading import Policy
    from cropi.progress import ProgressReporter

__all__ = [
    "InputError",
    "RunConfig",
    "evaluate",
    "extract_features",
    "load_config",
    "load_model",
    "load_policy",
    "load_prompts",
    "read_rollouts",
    "rollout",
    "run",
    "score",
    "score_features",
    "select",
    "train",
]

AnyPath = str | Path


def run(
    config: RunConfig, base: Path | None = None, reporter: ProgressReporter | None = None
) -> Path:
    """Run the curriculum, its baselines and the report; see `cropi.curriculum.loop.run`."""
    from cropi.curriculum.loop import run as run_curriculum

    return run_curriculum(config, base, reporter)


def load_policy(path: AnyPath, **options: Any) -> Policy:
    """Load a policy by path, hub id, `pocket` or `smollm2`; see `cropi.policy.loading`."""
    from cropi.policy.loading import load_policy as load

    return load(path, **options)


def load_model(path: AnyPath, **options: Any) -> Any:
    """Load a model alone, for scoring; see `cropi.policy.loading.load_model`."""
    from cropi.policy.loading import load_model as load

    return load(path, **options)


def load_prompts(path: AnyPath, seed: int = 0, **columns: Any) -> list[Prompt]:
    """Read prompts from a JSONL, JSON or Parquet file; `columns` as in the config's sources.

    Duplicates by content are left out, with a warning that counts them.
    """
    prompts, duplicates = deduplicate(
        load_source(PromptSource(path=str(path), **columns), seed), str(path)
    )
    if duplicates:
        warnings.warn(f"{path}: {duplicates} duplicate prompts left out", stacklevel=2)
    return prompts


def rollout(
    policy: Policy | AnyPath,
    prompts: Sequence[Prompt],
    out: AnyPath,
    *,
    verifier: str | VerifiersConfig = "math",
    settings: RolloutsConfig | None = None,
    seed: int = 0,
    progress: Any = None,
) -> list[RolloutGroup]:
    """Sample and judge responses, store them in the Parquet file `out`, and return them.

    A call that was killed goes on where it stopped.
    """
    settings = settings or RolloutsConfig()
    require_writable(Path(out))
    loaded = _policy(policy)
    engine = load_engine(settings.engine, loaded, settings.batch_size)
    verifiers = _verifiers(verifier)
    with Judge(verifiers) as judge:
        judge.check(prompts)
        path = collect(
            engine,
            loaded.tokenizer,
            prompts,
            judge,
            settings.sampling,
            settings.responses,
            seed,
            Path(out),
            loaded.identity,
            fingerprint(
                loaded.identity,
                settings.model_dump(),
                verifiers.model_dump(),
                seed,
                [(p.prompt_id, p.content, p.answer) for p in prompts],
            ),
            progress=progress,
        )
    return read_rollouts(path)


def score(
    policy: Policy | AnyPath | nn.Module,
    pool: Sequence[RolloutGroup] | AnyPath,
    targets: Mapping[str, Sequence[RolloutGroup] | AnyPath],
    *,
    settings: InfluenceConfig | None = None,
    seed: int = 0,
    constant_length: int = 512,
    checkpoint: AnyPath | None = None,
    progress: PhaseProgress | None = None,
) -> Influence:
    """Influence of each informative pool prompt on each target, under `policy`.

    `constant_length` is the divisor of `normalisation="constant"`; `checkpoint` the folder whose
    Adam state `settings.precondition` reads, by default the policy's. Raises InputError if the
    pool or a target has no informative prompt, or gradients are not finite.
    """
    from cropi.influence.setup import make_scorer

    if not targets:
        raise InputError("score needs at least one target: give NAME and its rollouts")
    groups = _groups(pool)
    target_groups = {name: _groups(found) for name, found in targets.items()}
    if checkpoint is None and isinstance(policy, str | Path):
        checkpoint = policy
    folder = None if checkpoint is None else Path(checkpoint)
    scorer = make_scorer(
        _model(policy), settings or InfluenceConfig(), seed, progress, constant_length, folder
    )
    return scorer.score(groups, target_groups)


def select(
    scores: InfluenceEstimate | Influence | None = None,
    *,
    ratio: float = 0.1,
    strategy: str = "cropi",
    rollouts: Sequence[RolloutGroup] | AnyPath | None = None,
    seed: int = 0,
    stage: int = 0,
    fusion_constant: float = 0.0,
    noise_floor: float = 3.0,
    threshold: float | None = None,
) -> Selection:
    """Choose prompts by `strategy`; `rollouts` are needed by those that look at pass rates.

    `ratio` in (0, 1] is a share of the whole pool, uninformative prompts included; prompts within
    `noise_floor` standard deviations of noise are left out (docs/method.md).
    """
    if not 0 < ratio <= 1:
        raise InputError(
            f"ratio {ratio} selects nothing sensible; give a share in (0, 1], e.g. 0.1"
        )
    chosen = find_strategy(strategy)
    table = scores if scores is None or isinstance(scores, InfluenceEstimate) else scores.estimate
    needs = needs_of(chosen)
    if needs.scoring != "never" and table is None:
        raise InputError(f"strategy {strategy} needs scores; make them with `cropi score`")
    if rollouts is None and (needs.scoring == "never" or needs.direction == "pool"):
        raise InputError(f"strategy {strategy} needs the pool's rollouts; give rollouts")
    groups = _groups(rollouts) if rollouts is not None else []
    statistics = rollout_statistics(groups, threshold)
    pool_size = len(groups) or (table.pool_size if table else 0)
    context = SelectionContext(
        statistics=statistics,
        count=selection_size(ratio, pool_size),
        stage=stage,
        seed=seed,
        estimate=table,
        fusion_constant=fusion_constant,
        noise_floor=noise_floor,
    )
    selection = chosen.select(context)
    require_not_empty(selection, f"strategy {strategy}")
    return selection


def train(
    policy: AnyPath,
    prompts: Sequence[Prompt],
    selection: Selection | Sequence[str],
    out: AnyPath,
    *,
    steps: int,
    verifier: str | VerifiersConfig = "math",
    settings: TrainingConfig | None = None,
    rollouts: RolloutsConfig | None = None,
    model: ModelConfig | None = None,
    carry_optimizer: bool = False,
    horizon: int | None = None,
    seed: int = 0,
    progress: Any = None,
) -> StageOutcome:
    """Train one GRPO stage on the selected prompts and write the checkpoint folder `out`.

    `carry_optimizer` goes on with the optimizer, schedule and step count stored at `policy` by an
    earlier stage; `horizon` is the step at which a decaying learning rate ends (default: the end
    of this stage). With `settings.lora` and no adapter at `policy`, a fresh one is trained. Raises
    InputError before any work if `out` holds something that no stage wrote.
    """
    settings = settings or TrainingConfig()
    _require_replaceable(Path(out))
    ids = selection.prompt_ids if isinstance(selection, Selection) else list(selection)
    by_id = {p.prompt_id: p for p in prompts}
    missing = [i for i in ids if i not in by_id]
    if missing:
        raise InputError(
            f"the selection names {len(missing)} prompts that the prompts lack, first "
            f"{missing[0]!r}; give the prompts that were scored"
        )
    if not ids:
        raise InputError("the selection is empty; select at least one prompt")
    first_step = _steps_done(Path(policy)) if carry_optimizer else 0
    rounds = MAX_SAMPLING_ROUNDS if settings.dynamic_sampling else 1
    order = stage_order(ids, steps * settings.prompts_per_step * rounds, seed)
    plan = StagePlan(
        start=str(policy),
        prompts=[by_id[i] for i in order],
        steps=steps,
        first_step=first_step,
        horizon=_horizon(horizon, first_step + steps),
        seed=seed,
        model=model or ModelConfig(path=str(policy)),
        training=settings,
        rollouts=rollouts or RolloutsConfig(),
        dynamic_sampling=settings.dynamic_sampling,
    )
    trainer = find_trainer(settings.engine)
    trainer.check(plan)
    with ExitStack() as stack:
        judge = stack.enter_context(Judge(_verifiers(verifier)))
        part = stack.enter_context(atomic_folder(Path(out)))
        judge.check(plan.prompts)
        if settings.lora is not None and not (Path(policy) / "adapter_config.json").is_file():
            plan = replace(plan, start=stack.enter_context(TemporaryDirectory()))
            _write_adapters(str(policy), plan)
        return trainer.train(plan, judge, part, None, progress)


def evaluate(
    policy: Policy | AnyPath,
    sets: Mapping[str, Sequence[Prompt]],
    *,
    verifier: str | VerifiersConfig = "math",
    settings: EvaluationConfig | None = None,
    max_new_tokens: int = 512,
    batch_size: int = 256,
    seed: int = 0,
) -> list[EvaluationResult]:
    """Accuracy of a policy on named sets of prompts."""
    from cropi.evaluation import evaluate as evaluate_sets

    settings = settings or EvaluationConfig()
    loaded = _policy(policy)
    verifiers = _verifiers(verifier)
    sampling = Sampling(
        settings.temperature, settings.top_p, 0, settings.max_new_tokens or max_new_tokens
    )
    with Judge(verifiers) as judge:
        judge.check([p for prompts in sets.values() for p in prompts])
        return evaluate_sets(
            load_engine("transformers", loaded, batch_size),
            loaded.tokenizer,
            sets,
            judge,
            sampling,
            settings.samples,
            settings.k,
            seed,
            threshold=verifiers.threshold,
        )


def _policy(policy: Policy | AnyPath) -> Policy:
    return load_policy(policy) if isinstance(policy, str | Path) else policy


def _model(policy: Policy | AnyPath | nn.Module) -> Any:
    """The model of a policy; a path needs no tokenizer beside it."""
    if isinstance(policy, str | Path):
        return load_model(policy)
    return getattr(policy, "model", policy) if hasattr(policy, "tokenizer") else policy


def _groups(groups: Sequence[RolloutGroup] | AnyPath) -> Sequence[RolloutGroup]:
    return read_rollouts(Path(groups)) if isinstance(groups, str | Path) else groups


def _verifiers(verifier: str | VerifiersConfig) -> VerifiersConfig:
    return VerifiersConfig(default=verifier) if isinstance(verifier, str) else verifier


def _require_replaceable(out: Path) -> None:
    """Raise InputError if `out` is a folder with something in it that is no stage's checkpoint."""
    if out.is_dir() and any(out.iterdir()) and not (out / "trainer_state.json").is_file():
        raise InputError(
            f"{out} holds files that are no training stage's, and a checkpoint replaces its whole "
            "directory; give a new path"
        )


def _horizon(horizon: int | None, last_step: int) -> int:
    if horizon is not None and horizon < last_step:
        raise InputError(
            f"horizon {horizon} comes before step {last_step}, where this stage ends; give that "
            "step or a later one"
        )
    return horizon or last_step


def _write_adapters(policy: str, plan: StagePlan) -> None:
    from cropi.training.warmup import write_adapters

    write_adapters(policy, plan.model, plan.training, Path(plan.start), plan.seed)


def _steps_done(policy: Path) -> int:
    """Optimizer steps behind a checkpoint. Raises InputError if it holds no optimizer state."""
    state = policy / "trainer_state.json"
    if not state.is_file() or not (policy / "optimizer.pt").is_file():
        raise InputError(
            f"{policy} holds no optimizer state to carry on (trainer_state.json, optimizer.pt); "
            "give a checkpoint that a training stage wrote, or start with a fresh optimizer"
        )
    row: Row = json.loads(state.read_text())
    return int(row["global_step"])
