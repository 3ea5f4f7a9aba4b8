"""The policies of a run: loaded, identified by what they were made from, and deleted when old."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cropi.errors import InputError
from cropi.policy.loading import Policy
from cropi.policy.reference import PolicyRef
from cropi.policy.settings import ModelConfig
from cropi.schema import PolicyIdentity, fingerprint
from cropi.store.cached import recorded_fingerprint
from cropi.store.files import POLICY_RECORD
from cropi.store.ledger import Ledger
from cropi.store.mirror import fetch_missing
from cropi.store.policy_record import is_training_state, weights_deleted
from cropi.store.run_directory import Stage


class Policies:
    """Loads a run's policies as its model settings say.

    `result_settings` are those of them that decide results. After `load_model`, `identity` and
    `parameters` (adapters left out) are those of the configured model; costs are counted with them.
    """

    identity: PolicyIdentity
    parameters: int

    def __init__(self, model: ModelConfig, result_settings: Mapping[str, Any]) -> None:
        self.model = model
        self.result_settings = dict(result_settings)

    def load_model(self) -> Policy:
        """Load the configured model; call this first: a resumed run then counts the same costs."""
        policy = self.load(self.model.path)
        self.identity = policy.identity
        self.parameters = sum(p.numel() for p in policy.model.parameters())
        return policy

    def load(self, path: str) -> Policy:
        """Load the policy at `path`. Raises InputError if its weights have been deleted."""
        return self.reference(path).load()

    def reference(self, path: str) -> PolicyRef:
        """Return a reference to the policy at `path`, whose weights are loaded on demand.

        Raises InputError if they have been deleted.
        """
        fetch_missing(Path(path))
        _require_weights(Path(path))
        return PolicyRef(
            path,
            revision=self.model.revision if path == self.model.path else None,
            dtype=self.model.dtype,
            device=self.model.device,
            attention=self.model.attention,
            trust_remote_code=self.model.trust_remote_code,
        )

    def key(self, path: str) -> str:
        """What identifies a policy: its inputs, or the settings of the configured model."""
        return recorded_fingerprint(Path(path)) or fingerprint(path, self.result_settings)


def _require_weights(policy: Path) -> None:
    """Raise InputError for a stage whose weights were deleted (`curriculum.keep_checkpoints`)."""
    if weights_deleted(policy):
        raise InputError(
            f"the weights in {policy} were deleted (curriculum.keep_checkpoints=last) but are "
            f"needed to rebuild a missing or damaged file; remove {policy / POLICY_RECORD} and "
            "those of the stages before it, and the run trains them again"
        )


def delete_old_checkpoints(ledger: Ledger, stage: Stage, stages: int, keep: str) -> None:
    """With `keep` "last", delete the checkpoints that are no longer needed after a stage.

    The weights of a stage are deleted after the next stage, and the optimizer state after the last.
    The records of all stages stay, so a finished run still knows that it is finished.
    """
    if keep == "all":
        return
    if stage.index > 0:
        delete_weights(ledger, stage.sibling(stage.index - 1).policy)
    if stage.index == stages - 1:
        names = {f: f.relative_to(stage.policy).as_posix() for f in stage.policy.rglob("*")}
        files = [f for f, name in names.items() if f.is_file() and is_training_state(name)]
        ledger.forget_files(stage.policy, files)
        for file in files:
            file.unlink(missing_ok=True)


def delete_weights(ledger: Ledger, policy: Path) -> None:
    """Delete everything in a policy's folder but its record."""
    listed = [file for file in ledger.files(policy) if file.is_relative_to(policy)]
    files = [file for file in (*policy.rglob("*"), *listed) if file != policy / POLICY_RECORD]
    ledger.forget_files(policy, files)
    for file in policy.iterdir():
        if file.name == POLICY_RECORD:
            continue
        if file.is_dir():
            shutil.rmtree(file)
        else:
            file.unlink()
