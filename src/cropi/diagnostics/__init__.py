"""Do the assumptions of influence hold here? Stale rollouts, real steps, retraining, sketches.

The functions do in Python what the commands of `cropi diagnose` do: they take rollouts and a model
as objects or paths (`diagnose_loo`: a run's config), and return plain dataclasses with a `verdict`.
`cropi.report` draws them. Importing this package loads no torch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from cropi.errors import InputError
from cropi.schema import InfluenceEstimate, RolloutGroup
from cropi.settings import given_or_default

if TYPE_CHECKING:
    from torch import nn

    from cropi.config import RunConfig
    from cropi.diagnostics.diagnosis_settings import (
        FidelitySettings,
        LeaveOutSettings,
        StepSettings,
    )
    from cropi.diagnostics.fidelity import FidelityReport
    from cropi.diagnostics.leave_out import LeaveOutReport
    from cropi.diagnostics.step import StepReport
    from cropi.policy.loading import Policy
    from cropi.progress import PhaseProgress, ProgressReporter
    from cropi.rollouts.staleness import Staleness

__all__ = ["diagnose_fidelity", "diagnose_loo", "diagnose_staleness", "diagnose_step"]

AnyPath = str | Path


def diagnose_staleness(
    rollouts: Sequence[RolloutGroup] | AnyPath,
    model: Policy | AnyPath | nn.Module,
    *,
    batch_tokens: int | None = None,
    progress: PhaseProgress | None = None,
) -> Staleness:
    """How far `model` has moved from the policy that sampled `rollouts`.

    Every usable response counts, those of uninformative prompts too. Raises InputError if there
    is none, or the model cannot have sampled them.
    """
    from cropi.policy.loading import as_model
    from cropi.rollouts import as_groups
    from cropi.rollouts.staleness import staleness_under

    advance = partial(progress, "log-probs") if progress else None
    return staleness_under(as_model(model), as_groups(rollouts), batch_tokens, advance)


def diagnose_step(
    pool: Sequence[RolloutGroup] | AnyPath,
    validation: Mapping[str, Sequence[RolloutGroup] | AnyPath],
    model: Policy | AnyPath | nn.Module,
    *,
    scores: InfluenceEstimate | AnyPath | None = None,
    settings: StepSettings | None = None,
    progress: PhaseProgress | None = None,
) -> StepReport:
    """Whether real gradient steps move each validation objective as influence predicts.

    `scores` of the pool under this very model are computed where they are not given. The model's
    weights are the same bits afterwards.
    """
    from cropi.diagnostics.diagnosis_settings import StepSettings
    from cropi.diagnostics.step_experiment import measure_steps
    from cropi.policy.loading import as_model
    from cropi.rollouts import as_groups

    if not validation:
        raise InputError("diagnose step needs at least one validation set: give NAME and rollouts")
    if isinstance(scores, str | Path):
        from cropi.store.tables import read_scores

        scores = read_scores(Path(scores))
    settings = given_or_default(settings, StepSettings, "settings")
    sets = {name: as_groups(groups) for name, groups in validation.items()}
    return measure_steps(as_model(model), as_groups(pool), sets, scores, settings, progress)


def diagnose_fidelity(
    pool: Sequence[RolloutGroup] | AnyPath,
    validation: Mapping[str, Sequence[RolloutGroup] | AnyPath],
    model: Policy | AnyPath | nn.Module,
    *,
    settings: FidelitySettings | None = None,
    progress: PhaseProgress | None = None,
) -> FidelityReport:
    """How well each sketch finds what exact influence finds, and what it costs.

    Raises InputError if the pool or a validation set has no informative prompt.
    """
    from cropi.diagnostics.diagnosis_settings import FidelitySettings
    from cropi.diagnostics.fidelity_experiment import measure_fidelity
    from cropi.policy.loading import as_model
    from cropi.rollouts import as_groups

    if not validation:
        raise InputError("diagnose fidelity needs at least one validation set: NAME and rollouts")
    settings = given_or_default(settings, FidelitySettings, "settings")
    sets = {name: as_groups(groups) for name, groups in validation.items()}
    return measure_fidelity(as_model(model), as_groups(pool), sets, settings, progress)


def diagnose_loo(
    config: RunConfig,
    *,
    settings: LeaveOutSettings | None = None,
    base: Path | None = None,
    reporter: ProgressReporter | None = None,
) -> LeaveOutReport:
    """Whether leaving blocks of prompts out of training does what influence predicts.

    The start policy of a run with this config is trained many times, in the run directory NAME-loo
    beside the run's; what was stopped there continues. Relative paths in the config may start from
    `base`. Raises InputError for a config that cannot be run, or has no validation set.
    """
    from cropi.diagnostics.diagnosis_settings import LeaveOutSettings
    from cropi.diagnostics.leave_out_experiment import measure_leave_out

    settings = given_or_default(settings, LeaveOutSettings, "settings")
    return measure_leave_out(config, settings, base, reporter)
