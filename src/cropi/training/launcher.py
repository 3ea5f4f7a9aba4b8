"""A stage of TRL in several processes: this one starts them, follows them, and evaluates.

The stage is written to a folder, `accelerate launch` starts `cropi.training.launched_stage` on it
in every process, and the first of them reports steps in a file. No process waits while another
evaluates: where an evaluation is due, the processes save all that training continues from and end,
this one evaluates with the GPUs to itself, and the stage continues from there like any stage. What
makes a stage of one process repeatable makes this repeatable too.
"""

from __future__ import annotations

import os
import pickle
import shutil
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml

from cropi.errors import InputError
from cropi.execution import Program, require_bearable
from cropi.execution.program import last_error
from cropi.policy.loading import resolve_device
from cropi.text import shown
from cropi.training.settings import LaunchSettings, TrainerSettings
from cropi.training.stage import (
    EvaluationCallback,
    StageOutcome,
    StagePlan,
    StepProgress,
    require_agreeing,
)
from cropi.training.stage_parts import train_in_parts
from cropi.training.trl_stage import TrlTrainer, require_training_state
from cropi.verifiers import Judge
from cropi.verifiers.settings import VerifiersConfig

JOB, OUTCOME, STEPS, REFUSED = "job.pickle", "outcome.pickle", "steps.jsonl", "refused.txt"
"""Files of a launched stage: what to do, what was done, a line for each step, and why not."""
WORKER = "cropi.training.launched_stage"
SHARDING = ("FSDP", "DEEPSPEED")
STARTED = ("MULTI_GPU", *SHARDING)
"""Values of distributed_type with which `accelerate launch` starts several processes."""


@dataclass(frozen=True)
class StageJob:
    """The input of every process: the stage, how to judge, and the folder for the policy."""

    plan: StagePlan
    grpo: Mapping[str, Any]
    processes: int
    verifiers: VerifiersConfig
    verifier_folders: tuple[Path, ...]
    out: Path


@dataclass(frozen=True)
class StageReport:
    """The result that the first process reports."""

    outcome: StageOutcome
    counts: Mapping[str, Mapping[Any, int]]
    reasons: Mapping[str, int]


class LaunchedTrainer:
    """GRPO through TRL in several processes, one stage per call."""

    def __init__(self, grpo: Mapping[str, Any], launch: LaunchSettings) -> None:
        self.grpo = grpo
        self.launch = launch

    def check(self, plan: StagePlan) -> list[str]:
        """Raise InputError for settings, processes or a config that cannot be launched."""
        if isinstance(settings := plan.training.engine.settings, TrainerSettings):
            require_agreeing(settings, plan)
        require_gpus(plan.model.device, self.launch)
        return TrlTrainer(self.grpo, self.launch.processes).check(plan)

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
        if plan.first_step:
            kind = accelerate_config(self.launch)["distributed_type"]
            require_training_state(Path(plan.start), kind if kind in SHARDING else "")

        def train_part(part: StagePlan, folder: Path, advance: StepProgress) -> StageOutcome:
            report = self._launch(part, judge, folder, advance)
            judge.add(report.counts, report.reasons)
            return report.outcome

        return train_in_parts(plan, out, train_part, evaluate, progress, outcome)

    def _launch(
        self, plan: StagePlan, judge: Judge, out: Path, progress: StepProgress
    ) -> StageReport:
        """Run the processes until they have left the policy in `out`."""
        with tempfile.TemporaryDirectory(prefix="cropi-launch-") as name:
            folder = Path(name)
            job = StageJob(
                plan,
                self.grpo,
                self.launch.processes,
                judge.settings,
                judge.folders,
                out,
            )
            (folder / JOB).write_bytes(pickle.dumps(job))
            log = plan.log or folder / "training.log"
            log.parent.mkdir(parents=True, exist_ok=True)
            program = Program(self._command(folder), log, _environment())
            try:
                for done, row in program.lines(folder / STEPS):
                    progress(done, row)
            finally:
                program.stop()
            if program.exit_code != 0 or not (folder / OUTCOME).is_file():
                raise self._failed(folder, log, program)
            return pickle.loads((folder / OUTCOME).read_bytes())  # type: ignore[no-any-return]

    def _command(self, folder: Path) -> list[str]:
        config = folder / "accelerate.yaml"
        config.write_text(yaml.safe_dump(accelerate_config(self.launch)), encoding="utf-8")
        return launch_command(config, self.launch.processes, folder)

    def _failed(self, folder: Path, log: Path, program: Program) -> InputError:
        """The error: what the stage refused, or else what the log says last."""
        refused = folder / REFUSED
        if refused.is_file():
            return InputError(refused.read_text(encoding="utf-8"))
        error = last_error(program.output)
        if folder in log.parents:
            handle, name = tempfile.mkstemp(prefix="cropi-training-", suffix=".log")
            os.close(handle)
            log = Path(shutil.copyfile(log, name))
        return InputError(
            f"the {self.launch.processes} training processes ended (exit code "
            f"{program.exit_code}): {error}; see {log}, and train again"
        )


def launch_command(config: Path, processes: int, folder: Path) -> list[str]:
    """The command that starts the processes on a stage's folder."""
    options = ["--config_file", str(config), "--num_processes", str(processes)]
    port = ["--main_process_port", "0"]  # a free one
    # Else torch's launcher makes a folder among the temporary ones, and leaves it there.
    logs = ["--log_dir", str(folder / "processes")]
    launcher = [sys.executable, "-m", "accelerate.commands.launch"]
    return [*launcher, *options, *port, *logs, "--module", WORKER, str(folder)]


def accelerate_config(launch: LaunchSettings) -> dict[str, Any]:
    """What `accelerate launch` reads: the user's file, or data parallelism on this machine.

    Raises InputError for a file that is not there, or whose processes we cannot start.
    """
    if launch.config is None:
        # Without a file accelerate reads what `accelerate config` left in the home directory.
        return {
            "compute_environment": "LOCAL_MACHINE",
            "distributed_type": "MULTI_GPU",
            "mixed_precision": "no",  # training.engine.grpo.bf16 says it
            "num_machines": 1,
            "num_processes": launch.processes,
        }
    name = f"training.engine.launch.config {launch.config}"
    try:
        values = yaml.safe_load(Path(launch.config).expanduser().read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        raise InputError(
            f"{name} cannot be read ({reason}); write one with `accelerate config`"
        ) from error
    if not isinstance(values, dict) or "distributed_type" not in values:
        raise InputError(f"{name} has no distributed_type; write one with `accelerate config`")
    if values["distributed_type"] not in STARTED:
        raise InputError(
            f"{name} has distributed_type = {shown(values['distributed_type'])}, with which "
            f"accelerate starts no processes here; give {', '.join(STARTED[:-1])} or {STARTED[-1]} "
            "(MULTI_GPU does without GPUs too)"
        )
    if values.get("num_machines", 1) != 1:
        raise InputError(
            f"{name} has num_machines = {shown(values['num_machines'])}, and the processes are "
            "started on this machine alone; set it to 1"
        )
    return values


def require_gpus(device: str, launch: LaunchSettings) -> None:
    """Raise InputError where there are fewer GPUs than processes, or one GPU is named."""
    processes, kind = launch.processes, accelerate_config(launch)["distributed_type"]
    if resolve_device(device).type != "cuda":
        if kind in SHARDING:
            raise InputError(
                f"training.engine.launch.config {launch.config} asks for {kind}, which accelerate "
                f"ignores without GPUs (model.device = {device}); use MULTI_GPU, or leave it out"
            )
        require_bearable(processes, "training.engine.launch.processes")
        return
    if ":" in device:
        raise InputError(
            f"model.device = {device} is one GPU, and training.engine.launch gives every process "
            "its own; leave model.device at auto"
        )
    if processes > torch.cuda.device_count():
        raise InputError(
            f"training.engine.launch.processes = {processes}, and {torch.cuda.device_count()} GPUs "
            "are visible; lower it, or change CUDA_VISIBLE_DEVICES"
        )


def _environment() -> dict[str, str]:
    """Ours, with this very cropi in front."""
    place = str(Path(__file__).parents[2])
    paths = [place, *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in paths if path)}
