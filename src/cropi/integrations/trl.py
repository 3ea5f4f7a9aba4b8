"""Influence-guided stages inside your own script with TRL's GRPOTrainer: three lines, no fork.

    guidance = Guidance(args, train_dataset, {"aime": val_dataset}, steps_per_stage=100)
    trainer = GRPOTrainer(..., args=args, train_dataset=guidance.dataset)
    guidance.attach(trainer)

TRL walks through a data set of positions in order, and a position becomes a row of the pool when
it is read: one that the stage it belongs to has selected. So a stage is selected when its first
row is asked for, which is one step before it begins, because the loader reads one batch ahead.
Only public interfaces of TRL, transformers and datasets are used.
"""

from __future__ import annotations

import copy
import hashlib
import math
import uuid
from collections import ChainMap
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import TrainerCallback
from trl import GRPOConfig

from cropi.arguments import require_count, require_kind
from cropi.errors import InputError
from cropi.influence.settings import InfluenceConfig
from cropi.integrations.guided_stages import GuidedStages, GuideSettings
from cropi.integrations.trained_groups import TrainedGroup, TrainedGroups
from cropi.integrations.trainer_rewards import TrainerRewards
from cropi.integrations.trainer_rows import Row, rows_by_id
from cropi.policy.loading import Policy, context_of, eos_ids, neutral_generation_config
from cropi.policy.tokenizer_loading import prepare_tokenizer
from cropi.progress import log_reporter
from cropi.prompts.chat_messages import chat_messages
from cropi.rollouts.settings import RolloutsConfig
from cropi.schema import PolicyIdentity, Prompt, Selection
from cropi.selection.settings import SelectionConfig
from cropi.settings import given_or_default
from cropi.text import plural, require_names, shown
from cropi.training import stage_order
from cropi.training.trl_config import NORMALISATION


@dataclass(frozen=True)
class Positions:
    """Where a training is when it reads a position: one position is one group of responses.

    `of_batch` positions are sampled together, in `batches` batches, `stage` of them a stage of
    `steps_per_stage` optimizer steps.
    """

    of_batch: int
    batches: int
    stage: int
    steps_per_stage: int

    @classmethod
    def of(cls, args: Any, steps_per_stage: int) -> Positions:
        """The positions of a training with TRL's `args`.

        Raises InputError if `max_steps` is not set, or a stage ends inside a batch.
        """
        if args.max_steps <= 0:
            raise InputError(
                f"GRPOConfig has max_steps={args.max_steps}; set max_steps, because the stages "
                "decide how often a prompt is seen, not epochs"
            )
        reuse = args.steps_per_generation * args.num_iterations
        done = steps_per_stage * args.gradient_accumulation_steps
        if done % reuse:
            raise InputError(
                f"steps_per_stage={steps_per_stage} ends inside a batch of responses, which "
                f"{reuse} passes share (steps_per_generation x num_iterations) and a step takes "
                f"{args.gradient_accumulation_steps} of; choose a multiple of "
                f"{reuse // math.gcd(reuse, args.gradient_accumulation_steps)}"
            )
        batches = math.ceil(args.max_steps * args.gradient_accumulation_steps / reuse)
        return cls(
            args.generation_batch_size // args.num_generations,
            batches,
            done // reuse,
            steps_per_stage,
        )

    def batch_at(self, step: int) -> int:
        """The batch that an optimizer step begins with, or is in."""
        return step * self.stage // self.steps_per_stage

    def batches_before(self, step: int) -> int:
        """How many batches were begun before an optimizer step."""
        return -(-step * self.stage // self.steps_per_stage)

    @property
    def total(self) -> int:
        """All positions of the training."""
        return self.of_batch * self.batches

    @property
    def of_stage(self) -> int:
        """Positions of a stage."""
        return self.of_batch * self.stage


class Guidance:
    """Stages of influence-guided data for a GRPOTrainer.

    Args:
        args: TRL's GRPOConfig, with `max_steps`; its `shuffle_dataset` is turned off, because
            stages have an order of their own.
        pool: the training prompts, in TRL's prompt-only format with any columns.
        targets: data sets to get better at, by name.
        steps_per_stage: optimizer steps between two selections.
        ratio: the share of the pool that a stage trains on.
        responses: sampled per prompt, once; default: `args.num_generations`.
        selection: the strategy and its settings; `ratio` applies to it.
        influence: settings of influence; default: normalised as TRL's loss.
        rollouts: settings of the sampling; default: as `args` samples.
        folder: where everything is kept; default: `cropi` in the output directory.

    Raises:
        InputError: in the constructor or in `attach`, for whatever cannot be guided.
    """

    def __init__(
        self,
        args: Any,
        pool: Dataset,
        targets: Mapping[str, Dataset],
        steps_per_stage: int,
        *,
        ratio: float | None = None,
        responses: int | None = None,
        selection: SelectionConfig | None = None,
        influence: InfluenceConfig | None = None,
        rollouts: RolloutsConfig | None = None,
        folder: str | Path | None = None,
    ) -> None:
        require_kind(args, GRPOConfig, "args", "give the trainer's GRPOConfig")
        require_kind(targets, Mapping, "targets", 'give names too, {"aime": val_dataset}')
        require_names(["pool", *targets], "targets: a target")
        if args.dataloader_num_workers:
            raise InputError(
                f"dataloader_num_workers={args.dataloader_num_workers} reads rows in processes "
                "that have no model to select by; set it to 0"
            )
        args.shuffle_dataset = False
        self.args = args
        self.positions = Positions.of(args, require_count(steps_per_stage, "steps_per_stage"))
        self.rows = rows_by_id("pool", pool)
        target_rows = {name: rows_by_id(name, each, f"{name}/") for name, each in targets.items()}
        self.judged_rows = {**self.rows, **ChainMap(*target_rows.values())}
        settings = GuideSettings(
            _with_ratio(given_or_default(selection, SelectionConfig, "selection"), ratio),
            given_or_default(influence or _influence(args.loss_type), InfluenceConfig, "influence"),
            given_or_default(rollouts or _sampling(args, responses), RolloutsConfig, "rollouts"),
            dict(args.chat_template_kwargs or {}),
            args.seed,
            self.positions.of_stage,
            args.num_generations,
        )
        self.stages = GuidedStages(
            Path(folder or Path(args.output_dir) / "cropi"),
            _prompts(self.rows),
            {name: _prompts(each) for name, each in target_rows.items()},
            settings,
            None if args.disable_tqdm else log_reporter(),
        )
        self.trainer: Any = None
        self._log = StageLog()
        self.trained = TrainedGroups(self.stages.folder / "training_rewards.jsonl", self._batch)
        self._orders: dict[int, list[str]] = {}

    @property
    def dataset(self) -> Dataset:
        """The data set to train on, one row per position."""
        positions = Dataset.from_dict({"position": list(range(self.positions.total))})
        return positions.with_transform(_Transform(self._read))

    def attach(self, trainer: Any) -> None:
        """Take model and reward functions from the trainer; call it before `train`."""
        models = [f for f in trainer.reward_funcs if isinstance(f, torch.nn.Module)]
        if models:
            raise InputError(
                f"{plural(len(models), 'reward function')} of the trainer are models, and "
                "responses sampled for influence are judged by functions alone; wrap the model in "
                "a function"
            )
        if trainer.is_fsdp_enabled or (
            trainer.is_deepspeed_enabled and trainer.accelerator.deepspeed_plugin.zero_stage == 3
        ):
            raise InputError(
                "the model's weights are split over processes (FSDP or ZeRO-3), and influence "
                "needs a whole copy in each; use DDP, or ZeRO up to stage 2"
            )
        self.trainer = trainer
        self.trained.watch(trainer, self.positions.batch_at)
        # Before the callbacks that report, which would not see what a later one adds.
        trainer.callback_handler.callbacks.insert(0, self._log)

    def _read(self, batch: Mapping[str, Sequence[int]]) -> dict[str, list[Any]]:
        """The pool's rows at positions, as `datasets` asks for them: lists by column."""
        rows = [self.rows[self.prompt_at(position)] for position in batch["position"]]
        names = dict.fromkeys(name for row in rows for name in row)
        return {name: [row.get(name) for row in rows] for name in names}

    def prompt_at(self, position: int) -> str:
        """The id of the prompt at a position; selects its stage first, if it is the first."""
        stage, place = divmod(position, self.positions.of_stage)
        return self._order(stage)[place]

    def _order(self, stage: int) -> list[str]:
        """The prompt ids of a stage, one per position."""
        if stage not in self._orders:
            ids = self._selection(stage).prompt_ids
            self._orders[stage] = stage_order(ids, self.positions.of_stage, self.args.seed + stage)
        return self._orders[stage]

    def _batch(self, number: int) -> list[str]:
        """The prompt ids of a batch of responses."""
        of_batch = self.positions.of_batch
        return [self.prompt_at(number * of_batch + place) for place in range(of_batch)]

    def _trained(self, stage: int, step: int) -> list[list[TrainedGroup]]:
        """What training sampled in each stage before this one, as the first process knows it.

        The loader reads ahead, so that the last batches are not sampled yet. A training that
        continues may have their rewards from its first attempt, which would select otherwise: only
        what was begun before this optimizer step counts.
        """
        if not self.stages.needs.history:
            return []
        for earlier in range(stage):
            self._order(earlier)  # in all processes, since they select together
        if not self.trainer.accelerator.is_main_process:
            return []
        limit = min(self.positions.batches_before(step), stage * self.positions.stage)
        stages: dict[int, list[TrainedGroup]] = {}
        for batch, groups in self.trained.before(limit).items():
            stages.setdefault(batch // self.positions.stage, []).extend(groups)
        return [stages[stage] for stage in sorted(stages)]

    def _selection(self, stage: int) -> Selection:
        if self.trainer is None:
            raise InputError("guidance has no trainer yet; call guidance.attach(trainer) first")
        trainer, step = self.trainer, int(self.trainer.state.global_step)
        weights = trainer.reward_weights.tolist()
        rewards = TrainerRewards(trainer.reward_funcs, weights, self.judged_rows, trainer.state)
        model = trainer.accelerator.unwrap_model(trainer.model)
        trained = self._trained(stage, step)
        with sampling_alone(model, trainer.processing_class, step) as policy:
            selection = self.stages.selection(stage, step, policy, rewards, trained)
        self._log.pending = {"cropi/stage": float(stage), **self.stages.facts(stage)}
        return selection


class _Transform:
    """What `datasets` calls to read rows.

    It hashes a transform by pickling it. A trainer cannot be pickled, and a pool may be large, so
    that each of these is another one instead, whatever it reads.
    """

    def __init__(self, read: Callable[[Mapping[str, Sequence[int]]], dict[str, list[Any]]]) -> None:
        self.read = read

    def __call__(self, batch: Mapping[str, Sequence[int]]) -> dict[str, list[Any]]:
        return self.read(batch)

    def __reduce__(self) -> str | tuple[Any, ...]:
        return (uuid.UUID, (uuid.uuid4().hex,))


class StageLog(TrainerCallback):  # type: ignore[misc]
    """Adds what was selected to the next row that the trainer logs, wherever it reports to."""

    def __init__(self) -> None:
        self.pending: dict[str, float] = {}

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **more: Any) -> None:
        """Hand over what is pending; the trainer has copied the row into its history already."""
        if logs is None or "loss" not in logs:
            return
        logs.update(self.pending)
        if state.log_history:
            state.log_history[-1].update(self.pending)
        self.pending = {}


@contextmanager
def sampling_alone(model: Any, tokenizer: Any, step: int) -> Iterator[Policy]:
    """A policy around a model in training, which is left as it was, random state included."""
    tokenizer = copy.deepcopy(getattr(tokenizer, "tokenizer", tokenizer))
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    rows, config, training = (
        model.get_input_embeddings().num_embeddings,
        base.generation_config,
        model.training,
    )
    name = str(getattr(base.config, "_name_or_path", "") or "model")
    eos = eos_ids(config, tokenizer, name, rows)
    prepare_tokenizer(tokenizer, eos, rows)
    devices = [model.device] if model.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        base.generation_config = neutral_generation_config(tokenizer, eos)
        model.eval()
        try:
            identity = PolicyIdentity(name, weights_hash(model), step)
            yield Policy(model, tokenizer, identity, eos, context_of(base.config))
        finally:
            base.generation_config = config
            model.train(training)


def weights_hash(model: Any) -> str:
    """A short hash that tells policies of one training apart: sums over each parameter."""
    digest = hashlib.sha256()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            sums = parameter.detach().double()
            digest.update(f"{name} {float(sums.sum())!r} {float(sums.abs().sum())!r}".encode())
    return digest.hexdigest()[:16]


def _prompts(rows: Mapping[str, Row]) -> list[Prompt]:
    """Rows as prompts; rewards come from the rows themselves."""
    return [_prompt(prompt_id, row) for prompt_id, row in rows.items()]


def _prompt(prompt_id: str, row: Row) -> Prompt:
    source = str(row.get("data_source") or row.get("source") or "")
    if isinstance(row["prompt"], str):
        return Prompt(prompt_id, "", source, prompt=row["prompt"])
    messages = chat_messages(row["prompt"], f"prompt {shown(prompt_id, 60)}")
    return Prompt(prompt_id, "", source, messages=tuple(messages))


def _with_ratio(selection: SelectionConfig, ratio: float | None) -> SelectionConfig:
    if ratio is None:
        return selection
    if not isinstance(ratio, int | float) or not 0 < ratio <= 1:
        raise InputError(
            f"ratio={shown(ratio, 60)} is not a share of the pool; give a number above 0, up to 1"
        )
    return selection.model_copy(update={"ratio": ratio})


def _influence(loss_type: str) -> InfluenceConfig:
    """Influence on an objective that is normalised as TRL's loss is."""
    normalisation = NORMALISATION.get(loss_type, "token")  # as most of TRL's losses
    return InfluenceConfig.model_validate({"objective": {"normalisation": normalisation}})


def _sampling(args: Any, responses: int | None) -> RolloutsConfig:
    """The sampling of a training, by cropi's own engine."""
    return RolloutsConfig(
        responses=responses or max(args.num_generations, 2),
        temperature=args.temperature,
        top_p=args.top_p,
        top_k=args.top_k or 0,
        max_new_tokens=args.max_completion_length,
    )
