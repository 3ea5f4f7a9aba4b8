"""One GRPO stage that is trained on its own, outside a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from cropi.arguments import PROMPTS_FIX, SELECTION_FIX, require_count, require_kind, require_list_of
from cropi.errors import InputError
from cropi.policy.settings import ModelConfig
from cropi.rollouts.settings import RolloutsConfig
from cropi.schema import Prompt, Selection
from cropi.settings import given_or_default
from cropi.store.cached import read_record
from cropi.store.files import atomic_folder, require_replaceable
from cropi.store.lock import exclusive_output
from cropi.store.policy_record import OPTIMIZERS, require_intact, write_policy_record
from cropi.store.remote import local_place
from cropi.text import remote_url, shown
from cropi.training.checked_trainer import find_trainer
from cropi.training.settings import TrainingConfig
from cropi.training.stage import StageOutcome, StagePlan, StepProgress, ascii_path
from cropi.verifiers.settings import VerifiersConfig

if TYPE_CHECKING:
    from cropi.verifiers import Judge


def train(
    policy: str | Path,
    prompts: Sequence[Prompt],
    selection: Selection | Sequence[str],
    out: str | Path,
    settings: TrainingConfig | None = None,
    *,
    steps: int,
    verifier: str | VerifiersConfig | Judge | None = None,
    rollouts: RolloutsConfig | None = None,
    model: ModelConfig | None = None,
    template_kwargs: Mapping[str, Any] | None = None,
    carry_optimizer: bool = False,
    horizon: int | None = None,
    seed: int = 0,
    progress: StepProgress | None = None,
) -> StageOutcome:
    """Train one GRPO stage on the selected prompts and write the checkpoint folder `out`.

    Args:
        policy: a checkpoint folder, a hub id or a built-in name.
        prompts: the pool that was selected from.
        selection: the prompts to train on, or their ids.
        out: the folder to write.
        settings: of the training; with `lora` and no adapter at `policy`, a fresh one is trained.
        steps: optimizer steps.
        verifier: a verifier's name, settings or an open judge.
        rollouts: sampling of the responses that are trained on.
        model: dtype, device and the like; default: as `policy` is.
        template_kwargs: arguments of the chat template.
        carry_optimizer: continue with the optimizer, schedule and step count that an earlier stage
            stored at `policy`.
        horizon: the step at which a decaying learning rate ends; default: the end of this stage.
        seed: of the order, the sampling and the adapter.
        progress: called with (steps done, the last row of the log).

    Raises:
        InputError: before any work if `out` holds something that no stage wrote, the selection is
            empty or not of `prompts`, or the settings cannot be trained with.
    """
    from cropi.policy.checkpoints import rewrite_adapter_base  # loads transformers
    from cropi.verifiers import open_judge

    settings = given_or_default(settings, TrainingConfig, "settings")
    rollouts = given_or_default(rollouts, RolloutsConfig, "rollouts")
    require_kind(policy, (str, Path), "policy", "give the path of a checkpoint, or a hub id")
    require_list_of(prompts, Prompt, "prompts", PROMPTS_FIX)
    if not isinstance(selection, Selection):
        require_list_of(selection, str, "selection", SELECTION_FIX)
    require_count(steps, "steps")
    policy = local_place(policy) if remote_url(policy) else policy
    require_replaceable(Path(out), "trainer_state.json", "training stage")
    ids = selection.prompt_ids if isinstance(selection, Selection) else list(selection)
    first_step = _steps_done(Path(policy)) if carry_optimizer else 0
    plan = StagePlan(
        start=str(policy),
        prompts=[],
        steps=steps,
        first_step=first_step,
        horizon=_horizon(horizon, first_step + steps),
        seed=seed,
        model=model or ModelConfig(path=str(policy)),
        training=settings,
        rollouts=rollouts,
        template_kwargs=template_kwargs or {},
        dynamic_sampling=settings.dynamic_sampling,
    ).with_selection(prompts, ids)
    trainer = find_trainer(settings.engine)
    trainer.check(plan)
    with ExitStack() as stack:
        stack.enter_context(exclusive_output(Path(out)))
        judge = stack.enter_context(open_judge(verifier))
        part = stack.enter_context(atomic_folder(Path(out)))
        judge.check(plan.prompts)
        if settings.lora is not None and not (Path(policy) / "adapter_config.json").is_file():
            plan = replace(plan, start=stack.enter_context(TemporaryDirectory()))
            _write_adapters(str(policy), plan)
        place = stack.enter_context(ascii_path(part))
        outcome = trainer.train(plan, judge, place, None, progress)
        rewrite_adapter_base(part, Path(out), Path(plan.start))
        write_policy_record(part, {"steps": first_step + steps})
        return outcome


def _horizon(horizon: int | None, last_step: int) -> int:
    if horizon is not None and require_count(horizon, "horizon") < last_step:
        raise InputError(
            f"horizon {horizon} comes before step {last_step}, where this stage ends; give that "
            "step or a later one"
        )
    return horizon or last_step


def _write_adapters(policy: str, plan: StagePlan) -> None:
    from cropi.training.start_policy import write_adapters

    write_adapters(policy, plan.model, plan.training, Path(plan.start), plan.seed)


def _steps_done(policy: Path) -> int:
    """Optimizer steps up to a checkpoint. Raises InputError if it holds no optimizer state."""
    state = policy / "trainer_state.json"
    optimizers = (pattern for patterns in OPTIMIZERS.values() for pattern in patterns)
    if not state.is_file() or not any(any(policy.glob(each)) for each in optimizers):
        raise InputError(
            f"{policy} holds no optimizer state to continue with (trainer_state.json, "
            "optimizer.pt); give a checkpoint that a training stage wrote, or start with a fresh "
            "optimizer"
        )
    require_intact(policy, training_state=True)
    steps = read_record(state).get("global_step")
    if type(steps) is not int or not 0 < steps < 2**40:
        raise InputError(
            f"{state} does not say how many steps were trained (its global_step is "
            f"{shown(steps, 60)}); restore it from a copy, or start with a fresh optimizer"
        )
    return steps
