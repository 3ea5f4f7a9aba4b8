"""Training stages with TRL's GRPOTrainer, not subclassed.

A stage is a pure function of files: it loads policy, optimizer, schedule and random state from the
last stage's checkpoint (`resume_from_checkpoint`, `ignore_data_skip`), trains with `max_steps` set
to the whole run's horizon, so that the learning rate's schedule spans the stages, and a callback
stops and saves at the stage's end. The data set holds exactly the rows of the stage in the
planned order, unshuffled; the reward function records what was trained on, which is compared with
the plan afterwards, because a trainer that reshuffles or trains zero steps reports nothing. With
dynamic sampling the rows are placeholders, which `DynamicSampler` fills.
"""

from __future__ import annotations

import json
import shutil
import time
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from datasets import Dataset
from transformers import PrinterCallback, TrainerCallback
from trl import GRPOConfig, GRPOTrainer

from cropi.errors import InputError
from cropi.policy.loading import (
    Policy,
    quiet_libraries,
    require_one_gpu,
    reraise_out_of_memory,
)
from cropi.policy.reference import named_anywhere
from cropi.prompts.encoding import encode_all
from cropi.rollouts.engines.engine import require_context
from cropi.schema import Prompt
from cropi.store.files import write_json
from cropi.store.policy_record import OPTIMIZERS
from cropi.training.divergence import require_converging, reraise_divergence
from cropi.training.dynamic import DynamicSampler, sampling_of
from cropi.training.process_group import ProcessGroup
from cropi.training.recorded_groups import GroupRecorder, LossLogprobs
from cropi.training.rewards import JudgedRewards
from cropi.training.shared_rewards import SharedRewards
from cropi.training.stage import (
    EvaluationCallback,
    StageOutcome,
    StagePlan,
    StepProgress,
    loss_warnings,
)
from cropi.training.start_policy import load_start
from cropi.training.trl_config import NORMALISATION, grpo_config
from cropi.verifiers import Judge

RATE_KEY = "training.learning_rate"
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


class TrlTrainer:
    """GRPO through TRL, one stage per call."""

    def __init__(self, grpo: Mapping[str, Any], processes: int = 1) -> None:
        """`processes` train together, and each of them makes such a trainer."""
        self.grpo = grpo
        self.processes = processes

    def check(self, plan: StagePlan) -> list[str]:
        """Raise InputError for settings, or a choice of GPUs, that TRL or this engine refuses."""
        if self.processes == 1:
            require_one_gpu(plan.model.device)
        with quiet_libraries():
            config = grpo_config(plan, Path(plan.start), self.grpo, self.processes)
        loss, beta = config.loss_type, float(config.beta or 0.0)
        return loss_warnings(
            f"training.engine.grpo.loss_type {loss}",
            NORMALISATION.get(loss, plan.normalisation),
            plan.normalisation,
            f"training.engine.grpo.beta = {beta}" if beta > 0 else "",
        )

    def train(
        self,
        plan: StagePlan,
        judge: Judge,
        out: Path,
        evaluate: EvaluationCallback | None = None,
        progress: StepProgress | None = None,
        outcome: StageOutcome | None = None,
    ) -> StageOutcome:
        """Train a stage and leave its checkpoint in the empty folder `out`."""
        outcome = outcome if outcome is not None else StageOutcome()
        if plan.first_step and self.processes == 1:  # a launcher has looked
            require_training_state(Path(plan.start))
        # Trainers of several processes give each its own GPU, or a part of every weight.
        policy = load_start(plan, device="cpu" if self.processes > 1 else plan.model.device)
        rewards = JudgedRewards(
            judge, {p.prompt_id: p for p in plan.prompts}, plan.training.responses
        )
        encoded = _encoded(plan, policy)
        sampler = DynamicSampler(plan, policy, rewards, encoded) if plan.dynamic_sampling else None
        work = out / "trainer"
        with quiet_libraries():
            config = grpo_config(plan, work, self.grpo, self.processes)
            group = ProcessGroup()
            shared = SharedRewards(rewards, group, [p.prompt_id for p in plan.prompts])
            reward = shared if group.count > 1 else rewards
            trainer = _grpo_trainer(plan, policy, config, reward, encoded, sampler)
            recorder = GroupRecorder(
                encoded,
                sampling_of(trainer.args),
                named_anywhere(policy.identity),
                policy.eos_token_ids,
                plan.seed,
                LossLogprobs(trainer, group),
            )
            counts = StageCounts(plan, rewards, encoded, recorder, sampler)
            trainer.add_callback(
                StageCallback(plan, policy, counts, outcome, evaluate, progress, trainer, group)
            )
            with _reraise_divergence(trainer, plan), _reraise_out_of_memory(config):
                trainer.train(resume_from_checkpoint=plan.start if plan.first_step else None)
        judge.step = 0
        checkpoint = work / f"checkpoint-{plan.first_step + plan.steps}"
        save_whole_weights(trainer, checkpoint)
        _require_steps(trainer, plan)
        if group.index == 0:
            _require_trained(plan, rewards, sampler)
            _keep_checkpoint(checkpoint, out)
        group.together(lambda: None)  # nobody leaves before the policy is there
        outcome.statuses = dict(rewards.statuses)
        return outcome


def _grpo_trainer(
    plan: StagePlan,
    policy: Policy,
    config: GRPOConfig,
    reward: JudgedRewards | SharedRewards,
    encoded: Mapping[str, Sequence[int]],
    sampler: DynamicSampler | None,
) -> GRPOTrainer:
    """TRL's trainer of a stage, which takes the prompts' token ids as they were encoded here."""
    trainer = GRPOTrainer(
        model=policy.model,
        reward_funcs=[reward],
        args=config,
        train_dataset=Dataset.from_list([_row(p) for p in _dataset_rows(plan)]),
        processing_class=policy.tokenizer,
        rollout_func=sampler,
    )
    # The same token ids as in rollouts and gradients; TRL would make them from text again.
    trainer._tokenize_prompts = lambda ids: ([encoded[i] for i in ids], None, {})
    trainer.remove_callback(PrinterCallback)
    return trainer


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
    """Ends the stage at its last step; records times, tokens and log, and evaluates."""

    def __init__(
        self,
        plan: StagePlan,
        policy: Policy,
        counts: StageCounts,
        outcome: StageOutcome,
        evaluate: EvaluationCallback | None,
        progress: StepProgress | None,
        trainer: GRPOTrainer,
        group: ProcessGroup,
    ) -> None:
        self.group = group
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

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Tell the judge the step, which reward functions may look at."""
        self.counts.rewards.judge.step = int(state.global_step)

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        """Keep the training curve's values."""
        logs = logs or {}
        values = {column: logs[name] for name, column in LOG_NAMES.items() if name in logs}
        if "reward" in values:
            self.outcome.log.append({"step": int(state.global_step), **values})

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
        """Count, evaluate where due, and stop after the stage's last step."""
        step = int(state.global_step)
        rate = self.plan.training.learning_rate
        require_converging(self.trainer.model, step, RATE_KEY, rate, self.group)
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


def _reraise_divergence(trainer: GRPOTrainer, plan: StagePlan) -> AbstractContextManager[None]:
    rate = plan.training.learning_rate
    return reraise_divergence(lambda: int(trainer.state.global_step), RATE_KEY, rate)


def _reraise_out_of_memory(config: GRPOConfig) -> AbstractContextManager[None]:
    rows = config.per_device_train_batch_size
    key = "training.engine.grpo.per_device_train_batch_size"
    fewer = f"lower {key} (now {rows}), or shorten responses" if rows > 1 else "shorten responses"
    return reraise_out_of_memory("training", f"{fewer}, or train adapters (training.lora)")


def require_training_state(checkpoint: Path, sharded_by: str = "") -> None:
    """Raise InputError unless all that training continues from is there and undamaged.

    `sharded_by` is "FSDP" or "DEEPSPEED" where one of these trains. transformers continues silently
    where schedule or random state are missing, or where the optimizer is saved otherwise.
    """
    patterns = OPTIMIZERS[sharded_by]
    optimizer = next((each for each in patterns if any(checkpoint.glob(each))), patterns[0])
    for pattern in (optimizer, "scheduler.pt", "rng_state*.pth"):
        saved = sorted(checkpoint.glob(pattern))
        if not saved or not all(map(_is_whole, saved)):
            raise InputError(
                f"{checkpoint / pattern} is {'damaged' if saved else 'missing'}, and training "
                "cannot continue without it; give a whole checkpoint folder, or start with a fresh "
                "optimizer"
            )


def _is_whole(saved: Path) -> bool:
    """Whether a file that torch saved, a zip archive, has the checksums that it lists.

    What FSDP and DeepSpeed save as a folder, their loaders look at.
    """
    if saved.is_dir():
        return any(saved.iterdir())
    try:
        with zipfile.ZipFile(saved) as archive:
            return archive.testzip() is None
    except (zipfile.BadZipFile, OSError, EOFError, ValueError, NotImplementedError, zlib.error):
        return False


def _encoded(plan: StagePlan, policy: Policy) -> dict[str, list[int]]:
    prompts = list({p.prompt_id: p for p in plan.prompts}.values())
    ids = encode_all(policy.tokenizer, prompts, plan.template_kwargs)
    encoded = {p.prompt_id: each for p, each in zip(prompts, ids, strict=True)}
    require_context(list(encoded.items()), plan.new_tokens, policy.context)
    return encoded


def _dataset_rows(plan: StagePlan) -> Sequence[Prompt]:
    """The rows of TRL's data set: as many as the stage trains on."""
    rows = plan.steps * plan.training.prompts_per_step
    assert len(plan.prompts) == rows or (plan.dynamic_sampling and len(plan.prompts) > rows), (
        f"{len(plan.prompts)} prompts for {rows} rows"
    )
    return plan.prompts[:rows]


def _row(prompt: Prompt) -> dict[str, str]:
    """A row of TRL's data set: an id stands for the prompt, whose token ids we have."""
    return {"prompt": prompt.prompt_id, "prompt_id": prompt.prompt_id}


def _require_steps(trainer: GRPOTrainer, plan: StagePlan) -> None:
    """Assert that the trainer took the planned steps."""
    steps = int(trainer.state.global_step) - plan.first_step
    assert steps == plan.steps, f"TRL trained {steps} steps instead of {plan.steps}"


def _require_trained(
    plan: StagePlan, rewards: JudgedRewards, sampler: DynamicSampler | None
) -> None:
    """Assert that the trainer trained on the planned prompts, in order."""
    planned = sampler.prompts_trained if sampler else [p.prompt_id for p in plan.prompts]
    assert rewards.trained == planned, "TRL trained on other prompts, or in another order"
    if sampler:
        sampler.require_trained()


def save_whole_weights(trainer: GRPOTrainer, checkpoint: Path) -> None:
    """Add the model as `from_pretrained` reads it to a checkpoint that holds shards alone."""
    if trainer.is_fsdp_enabled and not any(checkpoint.glob("*.safetensors")):
        trainer.accelerator.state.fsdp_plugin.set_state_dict_type("FULL_STATE_DICT")
        trainer.save_model(str(checkpoint))
    trainer.accelerator.wait_for_everyone()


def _keep_checkpoint(checkpoint: Path, out: Path) -> None:
    """Move the checkpoint's files into `out`, without wall times and paths of this machine.

    A stage that is trained again after a kill must leave the same bytes.
    """
    if not any(checkpoint.glob("*.safetensors")):
        raise InputError(
            "the trained policy was saved in shards only, which nothing else reads; with ZeRO-3 "
            "set stage3_gather_16bit_weights_on_model_save in the config of "
            "training.engine.launch.config"
        )
    for file in sorted(checkpoint.iterdir()):
        if file.name != "training_args.bin":  # our config has it all, and this file names folders
            shutil.move(str(file), out / file.name)
    shutil.rmtree(checkpoint.parent)
    state = json.loads((out / "trainer_state.json").read_text(encoding="utf-8"))
    for row in state["log_history"]:
        row.pop("step_time", None)
    write_json(out / "trainer_state.json", state)
