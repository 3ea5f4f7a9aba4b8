"""Training stages with TRL's GRPOTrainer, unmodified.

A stage is a pure function of files: it loads policy, optimizer, schedule and RNG from the last
stage's checkpoint (`resume_from_checkpoint`, `ignore_data_skip`), trains with `max_steps` set to
the whole run's horizon, so that the learning rate's schedule spans the stages, and a callback
stops and saves at the stage's end. The data set holds exactly the rows of the stage, unshuffled;
the reward function records what was really trained on, which is compared afterwards, because a
trainer that reshuffles says nothing. `DynamicSampler` fills the rows where there is one.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from datasets import Dataset
from transformers import PrinterCallback, TrainerCallback
from trl import GRPOConfig, GRPOTrainer

from cropi.errors import InputError
from cropi.policy.loading import (
    Policy,
    load_policy,
    quiet_libraries,
    require_one_gpu,
    resolve_device,
)
from cropi.prompts.encoding import encode_all, trl_row
from cropi.schema import PolicyIdentity, Prompt
from cropi.store.files import write_json
from cropi.training.dynamic import DynamicSampler, check_dynamic, sampling_of
from cropi.training.libraries import reraise_disk_errors
from cropi.training.recorded_groups import GroupRecorder, LossLogprobs
from cropi.training.rewards import JudgedRewards
from cropi.training.stage import Evaluator, Row, StageOutcome, StagePlan
from cropi.verifiers import Judge

if TYPE_CHECKING:
    from cropi.training.engines.trl import TrlSettings

RESERVED_KEYS = {
    "num_generations": "training.responses",
    "max_steps": "curriculum.steps_per_stage and curriculum.stages",
    "num_train_epochs": "curriculum.steps_per_stage and curriculum.stages",
    "learning_rate": "training.learning_rate",
    "temperature": "training.temperature",
    "max_completion_length": "training.max_new_tokens",
    "seed": "the run's seed",
    "shuffle_dataset": "nothing: the selection's order is kept",
    "output_dir": "out",
    "ignore_data_skip": "nothing: stages are resumed whole",
    "resume_from_checkpoint": "nothing: stages are resumed whole",
    "gradient_accumulation_steps": "training.engine.grpo.per_device_train_batch_size",
    "auto_find_batch_size": "training.engine.grpo.per_device_train_batch_size",
    "steps_per_generation": "training.prompts_per_step: every step samples its own prompts",
    "generation_batch_size": "training.prompts_per_step: every step samples its own prompts",
    "num_iterations": "training.prompts_per_step: every step samples its own prompts",
    "save_strategy": "curriculum.steps_per_stage: a stage is saved at its end",
    "save_steps": "curriculum.steps_per_stage: a stage is saved at its end",
    "save_only_model": "nothing: the next stage needs the optimizer",
    "load_best_model_at_end": "nothing: the next stage goes on from the last step",
    "eval_strategy": "evaluation.every",
    "eval_steps": "evaluation.every",
    "chat_template_kwargs": "prompts.chat_template_kwargs",
    "reward_weights": "the weights of verifiers",
    "model_init_kwargs": "model",
    "trust_remote_code": "model.trust_remote_code",
    "use_cpu": "model.device",
    "remove_unused_columns": "nothing: the rewards need every column",
}

PACKAGES = {"use_vllm": "vllm", "use_liger_kernel": "liger_kernel"}
"""What TRL asks for only once it trains."""

NORMALISATION = {"grpo": "sequence", "bnpo": "token", "dapo": "token", "dr_grpo": "constant"}
"""The objective's normalisation (docs/method.md) that goes with a loss of TRL."""

LOG_NAMES = {
    "reward": "reward",
    "loss": "loss",
    "grad_norm": "grad_norm",
    "learning_rate": "learning_rate",
    "entropy": "entropy",
    "completions/mean_length": "completion_length",
    "frac_reward_zero_std": "zero_std_share",
    "kl": "kl",
    "candidates": "candidates",
}


def check_settings(settings: Mapping[str, Any]) -> None:
    """Raise InputError for a `grpo` key that GRPOConfig lacks or that is set elsewhere."""
    known = {f.name: f for f in fields(GRPOConfig)}
    for key, value in settings.items():
        if key in RESERVED_KEYS:
            raise InputError(
                f"training.engine.grpo.{key} = {value!r} is decided by "
                f"{RESERVED_KEYS[key]}; set it there"
            )
        if key not in known:
            raise InputError(
                f"training.engine.grpo.{key} = {value!r}: this version of TRL's GRPOConfig has no "
                "such setting; see its documentation for the names"
            )
    for key, package in PACKAGES.items():
        if settings.get(key) and find_spec(package) is None:
            raise InputError(
                f"training.engine.grpo.{key} = {settings[key]!r} needs the package {package}, "
                "which is not installed; install it, or leave the setting out"
            )
    # TRL itself notices an unknown loss at the first step; its help names those it has.
    loss, told = settings.get("loss_type"), known["loss_type"].metadata.get("help", "")
    if loss is not None and told and f"'{loss}'" not in told:
        raise InputError(
            f"training.engine.grpo.loss_type = {loss!r} is unknown to TRL; {told[:160]}"
        )


def mismatch(loss_type: str, normalisation: str) -> list[str]:
    """A sentence where influence is of another objective than the one trained on."""
    wanted = NORMALISATION.get(loss_type, normalisation)
    if wanted == normalisation:
        return []
    return [
        f"influence is of another loss than the one trained on: training.engine.grpo.loss_type "
        f"{loss_type} goes with influence.objective.normalisation={wanted}, not {normalisation}"
    ]


class TrlTrainer:
    """GRPO through TRL, one stage per call."""

    def __init__(self, settings: TrlSettings) -> None:
        self.grpo = settings.grpo

    def check(self, plan: StagePlan) -> list[str]:
        """Raise InputError for settings, or a choice of GPUs, that TRL or this engine refuses."""
        require_one_gpu(plan.model.device)
        with quiet_libraries():
            arguments = _arguments(plan, Path(plan.start), self.grpo)
        return mismatch(arguments.loss_type, plan.normalisation)

    def train(
        self,
        plan: StagePlan,
        judge: Judge,
        out: Path,
        evaluate: Evaluator | None = None,
        progress: Callable[[int, Row], None] | None = None,
        outcome: StageOutcome | None = None,
    ) -> StageOutcome:
        """Train a stage and leave its checkpoint in the empty folder `out`."""
        outcome = outcome if outcome is not None else StageOutcome()
        policy = _load(plan)
        rewards = JudgedRewards(
            judge, {p.prompt_id: p for p in plan.prompts}, plan.training.responses
        )
        encoded = _encoded(plan, policy)
        sampler = DynamicSampler(plan, policy, rewards, encoded) if plan.dynamic_sampling else None
        work = out / "trainer"
        with quiet_libraries():
            trainer = GRPOTrainer(
                model=policy.model,
                reward_funcs=[rewards],
                args=_arguments(plan, work, self.grpo),
                train_dataset=Dataset.from_list([trl_row(p) for p in _dataset_rows(plan)]),
                processing_class=policy.tokenizer,
                rollout_func=sampler,
            )
            _require_same_encoding(trainer, plan, policy)
            recorder = GroupRecorder(
                encoded,
                sampling_of(trainer.args),
                _named_anywhere(policy.identity),
                policy.eos_token_ids,
                plan.seed,
                LossLogprobs(trainer),
            )
            counts = StageCounts(plan, rewards, encoded, recorder, sampler)
            trainer.remove_callback(PrinterCallback)
            trainer.add_callback(
                StageCallback(plan, policy, counts, outcome, evaluate, progress, trainer)
            )
            with reraise_disk_errors():
                trainer.train(resume_from_checkpoint=plan.start if plan.first_step else None)
        _require_trained(trainer, plan, rewards, sampler)
        _keep_checkpoint(work, out, plan)
        outcome.statuses = dict(rewards.statuses)
        return outcome


@dataclass(frozen=True, slots=True)
class StageCounts:
    """What a stage has sampled and trained on; `encoded` are the prompts' token ids."""

    plan: StagePlan
    rewards: JudgedRewards
    encoded: Mapping[str, Sequence[int]]
    recorder: GroupRecorder
    sampler: DynamicSampler | None = None

    def fill(self, outcome: StageOutcome, step: int) -> None:
        """Write the counts after `step` steps, and the last step's rollouts, into `outcome`."""
        rewards = self.rewards
        outcome.rollouts += self.recorder.rollouts(rewards.take_groups(), step - 1)
        outcome.generated_tokens = rewards.generated_tokens
        outcome.prefill_tokens = self._prompt_tokens(rewards.sampled)
        prompts = self._prompt_tokens(rewards.trained) * self.plan.training.responses
        outcome.trained_tokens = rewards.trained_tokens + prompts
        outcome.prompts_sampled = len(rewards.sampled)
        outcome.uninformative_trained = self.sampler.uninformative_trained if self.sampler else 0

    def _prompt_tokens(self, prompt_ids: Sequence[str]) -> int:
        return sum(len(self.encoded[i]) for i in prompt_ids)


class StageCallback(TrainerCallback):  # type: ignore[misc]
    """Ends the stage at its last step, and keeps clock, tokens, log and evaluations."""

    def __init__(
        self,
        plan: StagePlan,
        policy: Policy,
        counts: StageCounts,
        outcome: StageOutcome,
        evaluate: Evaluator | None,
        progress: Callable[[int, Row], None] | None,
        trainer: GRPOTrainer,
    ) -> None:
        self.plan = plan
        self.policy = policy
        self.counts = counts
        self.outcome = outcome
        self.evaluate = evaluate
        self.progress = progress
        self.trainer = trainer
        self.seconds = 0.0
        self.mark = time.perf_counter()

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Start the clock."""
        self.mark = time.perf_counter()

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        """Keep the training curve's values."""
        found = {ours: logs[theirs] for theirs, ours in LOG_NAMES.items() if theirs in (logs or {})}
        if "reward" in found:
            self.outcome.log.append({"step": int(state.global_step), **found})

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
        """Count, evaluate where due, and stop after the stage's last step."""
        step = int(state.global_step)
        self.seconds += time.perf_counter() - self.mark
        self.outcome.clock.append((step, self.seconds))
        self.counts.fill(self.outcome, step)
        done = step - self.plan.first_step
        last = done >= self.plan.steps
        due = self.plan.evaluate_every and step % self.plan.evaluate_every == 0
        if self.evaluate and (due or last):
            model = self.trainer.accelerator.unwrap_model(self.trainer.model)
            self.evaluate(replace(self.policy, model=model), step)
        if self.progress:
            self.progress(done, self.outcome.log[-1] if self.outcome.log else {})
        if last:
            control.should_training_stop = True
            control.should_save = True
        self.mark = time.perf_counter()
        return control


def _load(plan: StagePlan) -> Policy:
    return load_policy(
        plan.start,
        revision=plan.model.revision,
        dtype=plan.training.dtype,
        device=plan.model.device,
        attention=plan.model.attention,
        trust_remote_code=plan.model.trust_remote_code,
    )


def _arguments(plan: StagePlan, work: Path, grpo: Mapping[str, Any]) -> GRPOConfig:
    """Our settings, then the user's `grpo` over them."""
    training, rollouts = plan.training, plan.rollouts
    check_settings(grpo)
    if plan.dynamic_sampling:
        check_dynamic(grpo)
    on_gpu = resolve_device(plan.model.device).type == "cuda"
    batch = training.prompts_per_step * training.responses
    settings: dict[str, Any] = {
        "output_dir": str(work),
        "max_steps": plan.horizon,
        "learning_rate": training.learning_rate,
        "per_device_train_batch_size": batch,
        "num_generations": training.responses,
        "max_completion_length": training.max_new_tokens or rollouts.max_new_tokens,
        "temperature": training.temperature or rollouts.temperature,
        "top_p": rollouts.top_p,
        "top_k": rollouts.top_k,
        "beta": 0.0,
        "loss_type": "grpo",
        "seed": plan.seed,
        "shuffle_dataset": False,
        "ignore_data_skip": True,
        "use_cpu": not on_gpu,
        "bf16": on_gpu,
        "gradient_checkpointing": on_gpu,
        "dataloader_pin_memory": on_gpu,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "chat_template_kwargs": dict(plan.template_kwargs),
    }
    settings |= grpo
    settings |= _accumulation(settings, batch)
    try:
        return GRPOConfig(**settings)
    except (ValueError, TypeError, ImportError) as error:
        reason = " ".join(str(error).split())
        raise InputError(
            f"TRL refuses the settings of training ({reason}); correct training.engine.grpo"
        ) from error


def _accumulation(settings: dict[str, Any], batch: int) -> dict[str, int]:
    """A smaller per-device batch means more accumulation: a step stays a step."""
    device_batch = settings["per_device_train_batch_size"]
    if not isinstance(device_batch, int) or device_batch < 1 or batch % device_batch:
        raise InputError(
            f"training.engine.grpo.per_device_train_batch_size = {device_batch!r} does not divide "
            f"a step of {batch} completions (prompts_per_step x responses); choose a divisor"
        )
    return {"gradient_accumulation_steps": batch // device_batch}


def _encoded(plan: StagePlan, policy: Policy) -> dict[str, list[int]]:
    distinct = list({p.prompt_id: p for p in plan.prompts}.values())
    encoded = encode_all(policy.tokenizer, distinct, plan.template_kwargs)
    return {p.prompt_id: ids for p, ids in zip(distinct, encoded, strict=True)}


def _named_anywhere(policy: PolicyIdentity) -> PolicyIdentity:
    """A checkpoint's identity without the folder that its run happens to be in."""
    folder = Path(policy.name)
    return replace(policy, name=folder.name) if folder.is_dir() else policy


def _dataset_rows(plan: StagePlan) -> Sequence[Prompt]:
    """The rows of TRL's data set: as many as the stage trains on."""
    wanted = plan.steps * plan.training.prompts_per_step
    assert len(plan.prompts) == wanted or (plan.dynamic_sampling and len(plan.prompts) > wanted), (
        f"{len(plan.prompts)} prompts for {wanted} places"
    )
    return plan.prompts[:wanted]


def _require_same_encoding(trainer: GRPOTrainer, plan: StagePlan, policy: Policy) -> None:
    """Training must see the very token ids that rollouts and gradients saw."""
    sample = plan.prompts[:1]
    expected = encode_all(policy.tokenizer, sample, plan.template_kwargs)
    encoded = trainer._tokenize_prompts([trl_row(p)["prompt"] for p in sample])[0]
    assert [list(t) for t in encoded] == expected, "TRL encodes differently from the rollouts"


def _require_trained(
    trainer: GRPOTrainer,
    plan: StagePlan,
    rewards: JudgedRewards,
    sampler: DynamicSampler | None,
) -> None:
    """Hold the trainer to the steps and the prompts it was given, in their order."""
    steps = int(trainer.state.global_step) - plan.first_step
    assert steps == plan.steps, f"TRL trained {steps} steps instead of {plan.steps}"
    wanted = sampler.prompts_trained if sampler else [p.prompt_id for p in plan.prompts]
    assert rewards.trained == wanted, "TRL trained on other prompts, or in another order"
    if sampler:
        sampler.require_trained()


def _keep_checkpoint(work: Path, out: Path, plan: StagePlan) -> None:
    """Move the checkpoint's files into `out`, without wall times and paths of this machine.

    A stage that is trained again after a kill must leave the same bytes.
    """
    checkpoint = work / f"checkpoint-{plan.first_step + plan.steps}"
    for file in sorted(checkpoint.iterdir()):
        if file.name != "training_args.bin":  # our config says it all, and this names folders
            shutil.move(str(file), out / file.name)
    shutil.rmtree(work)
    state = json.loads((out / "trainer_state.json").read_text(encoding="utf-8"))
    for row in state["log_history"]:
        row.pop("step_time", None)
    write_json(out / "trainer_state.json", state)
