"""What the steps of one run share: config, directory, prompts, judge, and what was read already."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import TracebackType

from cropi.config import RunConfig
from cropi.errors import InputError
from cropi.evaluation.pass_at_k import EvaluationSets
from cropi.policy.loading import Policy, load_policy
from cropi.progress import ProgressReporter
from cropi.prompts import PromptSets
from cropi.rollouts import read_rollouts
from cropi.schema import Prompt, RolloutGroup, derive_seed, fingerprint
from cropi.selection import Needs, find_strategy, needs_of
from cropi.selection.settings import StrategyChoice
from cropi.store.files import POLICY_RECORD
from cropi.store.run_directory import RunDirectory
from cropi.verifiers import Judge


@dataclass
class Session:
    """An open run; a context manager, for the judge owns worker processes.

    `parameters` are those of the config's model, adapters left out; costs are counted with them.
    """

    directory: RunDirectory
    reporter: ProgressReporter
    sets: PromptSets = field(default_factory=lambda: PromptSets(pool=[]))
    parameters: int = 0
    evaluation_sets: EvaluationSets | None = None
    _groups: dict[Path, list[RolloutGroup]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.judge = Judge(self.config.verifiers, self.directory.base)

    def __enter__(self) -> Session:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.judge.close()

    @property
    def config(self) -> RunConfig:
        """The run's config."""
        return self.directory.config

    @property
    def evaluated(self) -> dict[str, list[Prompt]]:
        """The sets whose accuracy is measured: the test sets, or the validation sets for want."""
        return self.sets.test or self.sets.validation

    def seed(self, *component: str | int) -> int:
        """The seed of one component of this run.

        Prompts and warm-up have the data's seed, so that compared runs can share them.
        """
        run, data = self.config.seed, self.config.data_seed
        of_data = data is not None and component[0] in ("prompts", "warmup")
        return derive_seed(data if data is not None and of_data else run, *component)

    def load(self, path: str) -> Policy:
        """Load a policy as the config's model section says."""
        model = self.config.model
        _require_weights(Path(path))
        policy = load_policy(
            path,
            revision=model.revision if path == model.path else None,
            dtype=model.dtype,
            device=model.device,
            attention=model.attention,
            trust_remote_code=model.trust_remote_code,
        )
        # The config's model is always loaded first, so that a resumed run counts the same.
        self.parameters = self.parameters or sum(p.numel() for p in policy.model.parameters())
        return policy

    def policy_key(self, policy: str) -> str:
        """What identifies a policy: what it was made from, or the config's start model."""
        record = Path(policy) / POLICY_RECORD
        if record.exists():
            return str(json.loads(record.read_text())["inputs_fingerprint"])
        return fingerprint(policy, self.config.result_settings("model"))

    def warmup_tokens(self) -> int:
        """Tokens of the supervised warm-up, 0 without one."""
        record = self.directory.start / POLICY_RECORD
        return int(json.loads(record.read_text())["tokens"]) if record.exists() else 0

    def rollouts(self, kind: str, name: str = "") -> list[RolloutGroup]:
        """The start policy's rollouts of the pool or of a validation set, read once."""
        path = self.directory.rollouts(kind, name)
        if path not in self._groups:
            self._groups[path] = read_rollouts(path)
        return self._groups[path]

    def needs(self, strategy: StrategyChoice) -> Needs:
        """What a strategy needs to select; the config may ask for dynamic sampling with any."""
        return needs_in(self.config, strategy)

    def arms_needing(self, kind: str) -> list[str]:
        """The arms that use, and pay for, the shared rollouts of the pool or of validation sets."""
        return arms_needing(self.config, kind)


def _require_weights(policy: Path) -> None:
    """Raise InputError for a stage whose weights were deleted (`curriculum.keep_checkpoints`)."""
    record = policy / POLICY_RECORD
    if record.exists() and [file.name for file in policy.iterdir()] == [POLICY_RECORD]:
        raise InputError(
            f"the weights in {policy} were deleted (curriculum.keep_checkpoints=last) but are "
            f"needed to rebuild a missing or damaged file; remove {record} and those of the "
            "stages before it, and the run trains them again"
        )


def needs_in(config: RunConfig, strategy: StrategyChoice) -> Needs:
    """What a strategy needs under a config."""
    needs = needs_of(find_strategy(strategy))
    dynamic = needs.dynamic_sampling or config.training.dynamic_sampling
    return replace(needs, dynamic_sampling=dynamic)


def arms_needing(config: RunConfig, kind: str) -> list[str]:
    """The arms of a run that look at rollouts of this kind, pool or validation."""
    needed = {strategy.slug: needs_in(config, strategy) for strategy in config.strategies}
    return [
        arm
        for arm, needs in needed.items()
        if (needs.validation if kind == "validation" else needs.rollouts)
    ]
