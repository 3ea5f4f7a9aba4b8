"""A reference to a policy: everything that needs no weights, and the weights on demand.

Rollout engines and encoders take a `PolicyRef`. One that samples on a server needs the path, the
revision and the tokenizer, and never loads the weights into this process; one that samples here
calls `load`.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from cropi.arguments import POLICY_FIX, require_kind
from cropi.schema import PolicyIdentity

if TYPE_CHECKING:
    from cropi.policy.loading import Policy


class PolicyRef:
    """A policy by its path, or one whose weights are in memory (`PolicyRef.of`).

    `path` is a hub id, a directory, a `.gguf` file or a built-in name; None if the weights may
    exist in memory alone, as during training. The arguments are those of `load_policy`. Nothing is
    read before it is asked for, and everything is read once; whatever reads it raises InputError
    if the checkpoint is missing or broken.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        revision: str | None = None,
        dtype: str = "auto",
        device: str = "auto",
        attention: str | None = None,
        trust_remote_code: bool = False,
    ) -> None:
        self.path: str | None = str(path)
        self.revision = revision
        self.trust_remote_code = trust_remote_code
        self._load_options: dict[str, Any] = {
            "dtype": dtype,
            "device": device,
            "attention": attention,
        }
        self._policy: Policy | None = None
        self._ends: list[weakref.finalize[..., PolicyRef]] = []

    @classmethod
    def of(cls, policy: Policy | PolicyRef | str | Path) -> PolicyRef:
        """Return a reference to a policy, whose weights are not loaded again if it is in memory.

        Raises InputError for a model without its tokenizer, and for anything else.
        """
        if isinstance(policy, PolicyRef):
            return policy
        if isinstance(policy, str | Path):
            return cls(policy)
        if not hasattr(policy, "identity") or not hasattr(policy, "tokenizer"):
            require_kind(policy, (str, Path), "policy", POLICY_FIX)
        reference = cls(policy.identity.name)
        reference.path = None
        reference._policy = policy
        return reference

    def __getstate__(self) -> dict[str, Any]:
        """Leave the weights out if another process can load them from the path."""
        return self.__dict__ | {"_ends": []} | ({} if self.path is None else {"_policy": None})

    def on_close(self, end: Callable[[], None]) -> None:
        """Have `end` called once, when the reference is closed or forgotten, whichever is first."""
        self._ends.append(weakref.finalize(self, end))

    def close(self) -> None:
        """End what was started for this policy, such as its server; it may be used again."""
        while self._ends:
            self._ends.pop()()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def load(self) -> Policy:
        """Return the policy with its weights, which the first call loads."""
        if self._policy is None:
            from cropi.policy.loading import load_policy

            assert self.path is not None, "a policy in memory was lost"
            self._policy = load_policy(
                self.path,
                revision=self.revision,
                trust_remote_code=self.trust_remote_code,
                **self._load_options,
            )
        return self._policy

    @cached_property
    def identity(self) -> PolicyIdentity:
        """The policy's name and its revision: a hub commit, or a hash of config and weights."""
        if self._policy is not None:
            return self._policy.identity
        from cropi.policy.checkpoints import revision_of

        return PolicyIdentity(self._source.name, revision_of(self._source, self.trust_remote_code))

    @property
    def tokenizer(self) -> Any:
        """The policy's tokenizer, with a pad token and left padding."""
        return self._policy.tokenizer if self._policy is not None else self._facts[0]

    def require_same_tokens(self, texts: Sequence[str]) -> None:
        """Raise InputError if the tokenizer reads a text differently from its `tokenizer.json`."""
        from cropi.policy.checkpoints import require_file_tokens

        if self.path is not None:
            require_file_tokens(self._source, self.tokenizer, texts, self.trust_remote_code)

    @property
    def eos_token_ids(self) -> tuple[int, ...]:
        """The ids that end a response: the tokenizer's and the generation config's."""
        return self._policy.eos_token_ids if self._policy is not None else self._facts[1]

    @property
    def context(self) -> int:
        """How many positions the policy has."""
        return self._policy.context if self._policy is not None else self._facts[2]

    @property
    def dtype(self) -> str:
        """The weights' dtype as it is loaded here, e.g. `bfloat16`."""
        if self._policy is not None:
            return _plain(self._policy.model.dtype)
        asked = str(self._load_options["dtype"])
        return self._facts[3] if asked == "auto" else asked

    @property
    def plain_checkpoint(self) -> str | None:
        """The folder or hub id that any program can load whole; None where there is none.

        There is none of weights in memory, of a GGUF file and of an adapter.
        """
        if self.path is None or self._source.gguf is not None:
            return None
        location = str(self._source.location)
        return None if (Path(location) / "adapter_config.json").is_file() else location

    @cached_property
    def _source(self) -> Any:
        from cropi.policy.checkpoint_source import locate

        assert self.path is not None, "a policy in memory was lost"
        return locate(self.path, self.revision)

    @cached_property
    def _facts(self) -> tuple[Any, tuple[int, ...], int, str]:
        """Tokenizer, end-of-sequence ids, context and dtype, without the weights."""
        from cropi.policy import loading, tokenizer_loading
        from cropi.policy.checkpoints import load_tokenizer_and_configs

        with loading.quiet_libraries(stderr=True):
            parts = load_tokenizer_and_configs(self._source, self.trust_remote_code)
        tokenizer, config, generation_config = parts
        rows = getattr(config.get_text_config(), "vocab_size", None)
        eos = loading.eos_ids(generation_config, tokenizer, self._source.name, rows)
        tokenizer_loading.prepare_tokenizer(tokenizer, eos, rows)
        dtype = _plain(getattr(config.get_text_config(), "dtype", None) or "float32")
        return tokenizer, eos, loading.context_of(config), dtype


def _plain(dtype: Any) -> str:
    return str(dtype).removeprefix("torch.")


def named_anywhere(policy: PolicyIdentity) -> PolicyIdentity:
    """A checkpoint's identity without the folders that it happens to be in, for rollouts."""
    folder = Path(policy.name)
    return replace(policy, name=folder.resolve().name) if folder.is_dir() else policy
