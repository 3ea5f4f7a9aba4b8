"""What a training stage is given and what it leaves, whichever engine runs it."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from safetensors import SafetensorError

from cropi.errors import InputError
from cropi.policy.settings import ModelConfig
from cropi.rollouts.settings import RolloutsConfig
from cropi.schema import Prompt, RolloutGroup, derive_seed
from cropi.selection import selected_prompts
from cropi.short_repr import ShortRepr
from cropi.training.settings import TrainerSettings, TrainingConfig

if TYPE_CHECKING:
    from cropi.policy.loading import Policy
    from cropi.verifiers import Judge

MAX_SAMPLING_ROUNDS = 16
"""Rounds of sampling that a step with dynamic sampling may take, each asking for what is missing.

Where a share p of groups is informative, a step of n prompts still lacks n (1 - p)^16 on average
after them: under half a prompt of 16 at p = 0.2. Without a bound, a pool that teaches nothing more
would be sampled forever.
"""

Row = dict[str, Any]
StepProgress = Callable[[int, Row], None]
"""Called with the steps done so far and the last row of the log."""
EvaluationCallback = Callable[["Policy", int], None]
"""Called with (policy, step) during training; must leave the policy as it was."""


@dataclass(frozen=True, repr=False)
class StagePlan(ShortRepr):
    """One stage: train the policy at `start` for `steps` steps on `prompts`, in this order.

    `prompts` holds steps x prompts_per_step entries (prompts may repeat). `first_step` counts the
    steps of earlier stages and `horizon` those of the whole run, so that a learning-rate schedule
    spans all stages; where `first_step` > 0, `start` also holds the optimizer's state.
    `normalisation` is that of the influence objective, which the trainer's loss should share.

    With `dynamic_sampling` (DAPO, arXiv 2503.14476, section 3.2) a step trains only on groups
    whose rewards differ: `prompts` are then candidates, taken in order until the step is full, and
    there should be up to MAX_SAMPLING_ROUNDS times as many. With fewer, steps that would leave too
    few for those after them are filled with groups that have no gradient.

    `log` is the file for the output of programs that an engine starts; None: a temporary one.
    """

    start: str
    prompts: Sequence[Prompt]
    steps: int
    first_step: int
    horizon: int
    seed: int
    model: ModelConfig
    training: TrainingConfig
    rollouts: RolloutsConfig
    template_kwargs: Mapping[str, Any] = field(default_factory=dict)
    evaluate_every: int | None = None
    normalisation: str = "sequence"
    dynamic_sampling: bool = False
    log: Path | None = None

    @property
    def new_tokens(self) -> int:
        """The longest response that it may sample, in tokens."""
        return self.training.max_new_tokens or self.rollouts.max_new_tokens

    def with_selection(
        self,
        pool: Sequence[Prompt],
        prompt_ids: Sequence[str],
        order_seed: int | None = None,
        prompts_sampled: int = 0,
    ) -> StagePlan:
        """The plan to train on the prompts of `pool` with these ids.

        `prompts_sampled` says where in the order of `order_seed` (default: `seed`) earlier stages
        on the same prompts stopped. Raises InputError for an empty selection, or a prompt that
        `pool` lacks.
        """
        by_id = {each.prompt_id: each for each in selected_prompts(prompt_ids, pool)}
        rounds = MAX_SAMPLING_ROUNDS if self.dynamic_sampling else 1
        visits = self.steps * self.training.prompts_per_step * rounds
        seed = self.seed if order_seed is None else order_seed
        order = stage_order(prompt_ids, visits, seed, prompts_sampled)
        return replace(self, prompts=[by_id[i] for i in order])


@dataclass(repr=False)
class StageOutcome(ShortRepr):
    """What a stage did: log rows by step, wall time by step, and the tokens it cost.

    `clock` rows are (step, seconds since the stage began, evaluation excluded). A group is the
    responses to one prompt. `generated_tokens` were sampled and `prefill_tokens` are the prompts
    of sampled groups, once per group; both count groups that dynamic sampling dropped.
    `trained_tokens` are prompt and response of every response trained on. `prompts_sampled` counts
    the plan's prompts that were sampled: where a later stage on the same prompts continues.
    `uninformative_trained` counts groups without a gradient that dynamic sampling had to train on.
    `rollouts` are the groups that were sampled, dropped ones included, in the order of sampling;
    `policy.step` of each counts the steps of its sampler. Engines that cannot report log-probs
    leave groups out.
    """

    log: list[Row] = field(default_factory=list)
    clock: list[tuple[int, float]] = field(default_factory=list)
    generated_tokens: int = 0
    prefill_tokens: int = 0
    trained_tokens: int = 0
    prompts_sampled: int = 0
    uninformative_trained: int = 0
    statuses: dict[str, int] = field(default_factory=dict)
    rollouts: list[RolloutGroup] = field(default_factory=list, compare=False)


OUTCOME_COUNTS = (
    "generated_tokens",
    "prefill_tokens",
    "trained_tokens",
    "prompts_sampled",
    "uninformative_trained",
)
"""Fields of `StageOutcome` that add up over the parts of a stage."""


class Trainer(Protocol):
    """Trains one stage and writes a Hugging Face checkpoint with the optimizer's state.

    One that starts programs may have `commands(plan, out, evaluated)`: their command lines, in
    order, for `cropi run --dry-run`; `plan.prompts` is then the whole pool.
    """

    def check(self, plan: StagePlan) -> list[str]:
        """Raise InputError for settings that cannot be trained with; return warnings.

        Asked before any work is done, when `plan.prompts` is empty, and again with the whole pool;
        `plan.start` is not read.
        """

    def train(
        self,
        plan: StagePlan,
        judge: Judge,
        out: Path,
        evaluate: EvaluationCallback | None = None,
        progress: StepProgress | None = None,
        outcome: StageOutcome | None = None,
    ) -> StageOutcome:
        """Fill the empty folder `out` with the trained policy; `outcome` is updated live."""


def require_agreeing(settings: TrainerSettings, plan: StagePlan) -> None:
    """Raise InputError for an engine's settings that do not go with the others of a stage."""
    if problems := settings.refusals(plan.training, plan.model, plan.dynamic_sampling):
        raise InputError("; ".join(problems))


def loss_warnings(loss: str, wanted: str, normalisation: str, kl: str = "") -> list[str]:
    """Sentences about where the objective of influence is not the loss that is trained on.

    Args:
        loss: the setting of the trainer's loss, and its value.
        wanted: the objective's normalisation that goes with it.
        normalisation: the one that influence is computed with.
        kl: what adds a KL term to the loss; empty if nothing does.
    """
    sentences = []
    if wanted != normalisation:
        sentences.append(
            f"influence is computed for another loss than the one trained on: {loss} goes with "
            f"influence.objective.normalisation={wanted}, not {normalisation}"
        )
    if kl:
        sentences.append(
            f"{kl} adds a KL term to the loss that is trained on, and influence has none: prompts "
            "are ranked as if there were no KL term"
        )
    return sentences


@contextmanager
def ascii_path(folder: Path) -> Iterator[Path]:
    """Yield `folder` for libraries to save a policy in, by a link to it if its path is not ASCII.

    torch names the archives that it saves after the file, but only where the path is ASCII: the
    bytes of an optimizer's state would depend on where a run is. Raises OSError where a library
    cannot write, whatever it raises.
    """
    with reraise_disk_errors():
        if str(folder).isascii():
            yield folder
            return
        with TemporaryDirectory() as links:
            link = Path(links) / "out"
            link.symlink_to(folder.absolute(), target_is_directory=True)
            yield link


@contextmanager
def reraise_disk_errors() -> Iterator[None]:
    """Convert failed writes, as safetensors and torch report them, into OSError."""
    try:
        yield
    except SafetensorError as error:
        code = re.search(r"\(os error (\d+)\)", str(error))
        if code is None:
            raise
        number = int(code.group(1))
        raise OSError(number, os.strerror(number)) from error
    except RuntimeError as error:
        # torch's zip writer keeps no error code; mostly the disk is full.
        if "PytorchStreamWriter" not in str(error) and "inline_container" not in str(error):
            raise
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)) from error


def stage_order(prompt_ids: Sequence[str], visits: int, seed: int, offset: int = 0) -> list[str]:
    """Return `visits` prompt ids: whole epochs, each in a fresh order drawn from the seed.

    `offset` visits have been made already: a later stage on the same prompts continues where the
    earlier one stopped, so that full-data training sees every prompt once before any twice. This
    order is the one that is trained: the trainer does not shuffle.
    """
    count = len(prompt_ids)
    ordered: list[str] = []
    epoch, skip = divmod(offset, count)
    while len(ordered) < visits:
        draw = np.random.default_rng(derive_seed(seed, "epoch", epoch)).permutation(count)
        ordered += [prompt_ids[i] for i in draw[skip:]]
        epoch, skip = epoch + 1, 0
    return ordered[:visits]


def one_group_per_prompt(groups: Sequence[RolloutGroup]) -> list[RolloutGroup]:
    """Join the groups of prompts that a stage sampled more than once, as a rollout file needs it.

    Joined responses keep their order, and each says in `policy_versions` after how many steps it
    was sampled; the group has the policy of the first.
    """
    by_prompt: dict[str, list[RolloutGroup]] = {}
    for group in groups:
        by_prompt.setdefault(group.prompt_id, []).append(group)
    return [same[0] if len(same) == 1 else _joined(same) for same in by_prompt.values()]


def _joined(groups: Sequence[RolloutGroup]) -> RolloutGroup:
    responses = [
        replace(r, policy_versions=np.full(len(r.ids), group.policy.step, dtype=np.int32))
        for group in groups
        for r in group.responses
    ]
    return replace(groups[0], responses=responses)
