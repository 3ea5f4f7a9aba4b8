"""Training stages with verl, which runs as a program of its own and leaves sharded checkpoints.

`main_ppo` trains in verl's interpreter on rows and a reward function that lie in a folder of the
stage, and `verl.model_merger` makes a checkpoint that everything else reads. verl's own, with the
optimizer, stays beside it in `verl/` for the next stage, without its data loader's place
(`data.pt`), which is one in another stage's rows. What verl cannot tell is left out of the outcome:
token ids and log-probs of its responses, and with them the rollouts.
"""

from __future__ import annotations

import os
import shlex
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from cropi.errors import InputError
from cropi.execution import Program
from cropi.execution.program import environment_for, last_error
from cropi.policy.reference import PolicyRef
from cropi.prompts.encoding import encode_all
from cropi.rollouts.engines.engine import require_context
from cropi.store.files import write_json
from cropi.training.stage import EvaluationCallback, StageOutcome, StagePlan, StepProgress
from cropi.training.stage_parts import part_folders, train_in_parts
from cropi.training.verl_config import CHECKPOINTS, METRICS, STATE, arguments, overrides_of
from cropi.training.verl_files import read_verdicts, write_files
from cropi.training.verl_requirements import (
    interpreter,
    model_of,
    require_merged,
    require_settings,
    require_shards,
    require_usable,
    warnings_of,
)
from cropi.training.verl_settings import VerlSettings
from cropi.verifiers import Judge

WORK = "work"
"""Folder of a policy with the stage's files, while it is trained."""
LOG_NAMES = {
    "critic/score/mean": "reward",
    "actor/pg_loss": "loss",
    "actor/grad_norm": "grad_norm",
    "actor/lr": "learning_rate",
    "actor/entropy": "entropy",
    "actor/kl_loss": "kl",
    "response_length/mean": "completion_length",
}
TOKENS, SECONDS = "perf/total_num_tokens", "timing_s/step"
"""verl's names for the tokens of all prompts and responses of a step, and for its duration."""


class VerlTrainer:
    """GRPO through verl, one stage per call."""

    def __init__(self, settings: VerlSettings) -> None:
        self.settings = settings

    def check(self, plan: StagePlan) -> list[str]:
        """Raise InputError for what a stage of verl cannot keep, or a missing verl."""
        require_settings(plan, self.settings)
        run = VerlRun(plan, self.settings, Path("work"), [])
        require_usable(self.settings, run.overrides())
        return warnings_of(plan, self.settings)

    def commands(self, plan: StagePlan, out: Path, evaluated: bool) -> list[list[str]]:
        """The programs that a stage starts, in order; `evaluated`: on the way too."""
        lengths, parts = _lengths(plan), part_folders(plan, out, evaluated)
        runs = [VerlRun(part, self.settings, folder / WORK, lengths) for part, folder in parts]
        return [command for run in runs for command in (run.command(), run.merge_command())]

    def train(
        self,
        plan: StagePlan,
        judge: Judge,
        out: Path,
        evaluate: EvaluationCallback | None = None,
        progress: StepProgress | None = None,
        outcome: StageOutcome | None = None,
    ) -> StageOutcome:
        """Train a stage and leave its merged checkpoint, and verl's own, in the folder `out`."""
        require_settings(plan, self.settings)
        if plan.first_step:
            require_shards(Path(plan.start) / STATE, plan.first_step, self.settings)
        if plan.log is None:
            handle, name = tempfile.mkstemp(prefix="cropi-verl-", suffix=".log")
            os.close(handle)
            plan = replace(plan, log=Path(name))

        def train_part(part: StagePlan, folder: Path, advance: StepProgress) -> StageOutcome:
            run = VerlRun(part, self.settings, folder / WORK, _lengths(part))
            return run.train(judge, advance)

        return train_in_parts(plan, out, train_part, evaluate, progress, outcome)


def _lengths(plan: StagePlan) -> list[int]:
    """The tokens of the plan's prompts."""
    model = plan.model
    reference = PolicyRef(
        model.path, revision=model.revision, trust_remote_code=model.trust_remote_code
    )
    encoded = encode_all(reference.tokenizer, plan.prompts, plan.template_kwargs)
    named = [(p.prompt_id, ids) for p, ids in zip(plan.prompts, encoded, strict=True)]
    require_context(named, plan.new_tokens, reference.context)
    return [len(ids) for ids in encoded]


@dataclass
class VerlRun:
    """One training of verl in `work`, a new folder in that of the policy.

    `lengths` are the tokens of the plan's prompts.
    """

    plan: StagePlan
    settings: VerlSettings
    work: Path
    lengths: Sequence[int]
    outcome: StageOutcome = field(default_factory=StageOutcome)

    @property
    def saved(self) -> Path:
        """The checkpoint that verl leaves."""
        return self.work / CHECKPOINTS / f"global_step_{self.plan.first_step + self.plan.steps}"

    def overrides(self) -> list[str]:
        """The keys of verl's config for this stage."""
        longest, model = max(self.lengths, default=1), model_of(self.plan)
        return arguments(overrides_of(self.plan, self.settings, self.work, model, longest))

    def command(self) -> list[str]:
        """The command that trains."""
        return [*self._verl("trainer.main_ppo"), *self.overrides()]

    def merge_command(self) -> list[str]:
        """The command that makes a checkpoint of transformers of verl's shards."""
        places = ["--local_dir", str(self.saved / "actor"), "--target_dir", str(self.work.parent)]
        trust = ["--trust-remote-code"] if self.plan.model.trust_remote_code else []
        return [*self._verl("model_merger"), "merge", "--backend", "fsdp", *places, *trust]

    def _verl(self, module: str) -> list[str]:
        return [interpreter(self.settings), "-m", f"verl.{module}"]

    def train(self, judge: Judge, advance: StepProgress) -> StageOutcome:
        """Train, merge, and look at what came of it."""
        self.work.mkdir()
        write_files(self.plan, judge, self.work)
        self._run(self.command(), lambda line: self._count(line, advance))
        self._count_verdicts(judge)
        self._run(self.merge_command())
        require_merged(self.plan, self.work.parent)
        self._keep()
        return self.outcome

    def _run(
        self, command: Sequence[str], line: Callable[[Mapping[str, Any]], None] | None = None
    ) -> None:
        """Run a program to its end. Raises InputError, with its last error, if it fails."""
        log = self.plan.log
        assert log is not None, "a stage has a log"
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("a", encoding="utf-8") as lines:
            lines.write(f"$ {shlex.join(command)}\n")
        program = Program(command, log, environment(self.settings, command[0]))
        try:
            for each in program.lines(self.work / METRICS):
                if line is not None:
                    line(each)
        finally:
            program.stop()
        if program.exit_code != 0:
            raise InputError(
                f"{command[2]} ended (exit code {program.exit_code}): "
                f"{last_error(program.output)}; see {log}, and correct training.engine"
            )

    def _count(self, line: Mapping[str, Any], advance: StepProgress) -> None:
        """Count a step, whose metrics verl has written."""
        step, data, outcome = int(line["step"]), line["data"], self.outcome
        done, size = step - self.plan.first_step, self.plan.training.prompts_per_step
        values = {name: data[key] for key, name in LOG_NAMES.items() if data.get(key) is not None}
        row = {"step": step, **{name: float(value) for name, value in values.items()}}
        outcome.log.append(row)
        seconds = outcome.clock[-1][1] if outcome.clock else 0.0
        outcome.clock.append((step, seconds + float(data.get(SECONDS, 0.0))))
        prompts = sum(self.lengths[(done - 1) * size : done * size])
        trained = _tokens(data)
        outcome.trained_tokens += trained
        outcome.generated_tokens += trained - prompts * self.plan.training.responses
        outcome.prefill_tokens += prompts
        outcome.prompts_sampled += size
        advance(done, row)

    def _count_verdicts(self, judge: Judge) -> None:
        """Count the verdicts. Raises InputError if verl trained other prompts, or fewer steps."""
        if len(self.outcome.log) != self.plan.steps:
            raise InputError(
                f"verl trained {len(self.outcome.log)} of {self.plan.steps} steps and ended; see "
                f"{self.plan.log or 'its log'}, and leave out overrides that end it"
            )
        statuses: Counter[str] = Counter()
        for source, verdict in read_verdicts(self.plan, self.work):
            judge.count(source, verdict)
            statuses[verdict.status] += 1
        self.outcome.statuses = dict(statuses)

    def _keep(self) -> None:
        """Keep verl's checkpoint for the next stage, without the place in this one's rows."""
        (self.saved / "data.pt").unlink(missing_ok=True)
        policy = self.work.parent
        (policy / STATE).mkdir()
        shutil.move(str(self.saved), policy / STATE / self.saved.name)
        write_json(
            policy / "trainer_state.json", {"global_step": self.plan.first_step + self.plan.steps}
        )
        shutil.rmtree(self.work)


def _tokens(data: Mapping[str, Any]) -> int:
    """Tokens of all prompts and responses of a step."""
    if data.get(TOKENS) is None:
        raise InputError(f"verl's metrics lack {TOKENS}, by which costs are counted; use verl 0.9")
    return round(float(data[TOKENS]))


def environment(settings: VerlSettings, python: str) -> dict[str, str]:
    """The environment of verl's programs."""
    cluster = {"RAY_ADDRESS": settings.address} if settings.address else {}
    return {**environment_for(python), "HYDRA_FULL_ERROR": "1", **cluster}
