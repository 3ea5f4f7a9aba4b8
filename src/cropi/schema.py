"""The data contracts: prompts, rollouts, influence estimates and selections.

Field names here are public API: they are the columns of every Parquet file that cropi reads or
writes. This module needs neither torch nor pyarrow, so that the command line can start with it.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from cropi.short_repr import ShortRepr
from cropi.text import nfc

RewardStatus = Literal["ok", "timeout", "error"]
FinishReason = Literal["stop", "length"]
LogprobMode = Literal["processed", "raw", "before_top_p", "recomputed"]
Message = Mapping[str, Any]
"""A chat's message: texts `role` and `content`, and perhaps what `MESSAGE_KEYS` lists."""
MESSAGE_KEYS = ("name", "tool_call_id", "tool_calls", "reasoning_content")
"""Keys of a message beside role and content; all are text but `tool_calls`, a list of objects."""

SCORED = "scored"
EQUAL_REWARDS = "rewards all equal"
TOO_FEW_RESPONSES = "fewer than two usable responses"
NOT_SAMPLED = "no responses"
"""Of a prompt of the pool that has not been rolled out: its influence can only be predicted."""
RATIO_OUT_OF_RANGE = "ratio out of range"
REWARDS_OUT_OF_RANGE = "rewards out of range"
ZERO_GRADIENT = "zero gradient"
LEFT_OUT = (RATIO_OUT_OF_RANGE, REWARDS_OUT_OF_RANGE, ZERO_GRADIENT)
"""Statuses of prompts that have both better and worse responses, and still no usable gradient."""
UNSCORED = (EQUAL_REWARDS, TOO_FEW_RESPONSES, NOT_SAMPLED, *LEFT_OUT)
"""A score's status: "scored", or why the prompt has no influence."""

EMBEDDING_ROWS = "cropi_embedding_rows"
"""Attribute of a policy's tokenizer: how many token ids the model has embeddings for."""

REWARD_TOLERANCE = 5e-7
"""Rewards that differ by less than this share of the larger one are equal: float32 sums do."""
MAX_REWARD = 1e9
"""Largest size of a reward that is read or accepted from a verifier."""
MAX_LOGPROB = 1e-3
"""Nats by which rounding may lift a log-prob above 0."""
TEMPERATURES = (1e-3, 1e3)
"""Lowest and highest temperature that responses may have been sampled at."""

ROLLOUT_COLUMNS = (
    "prompt_id",
    "response_index",
    "prompt_ids",
    "response_ids",
    "logprobs",
    "text",
    "finish_reason",
    "reward",
    "reward_status",
    "temperature",
    "top_p",
    "top_k",
    "seed",
    "policy_name",
    "policy_revision",
    "policy_step",
    "exact",
)
OPTIONAL_ROLLOUT_COLUMNS = ("loss_mask", "policy_versions", "logprob_mode")
"""Columns of a rollout file that are there only if a response needs them."""


@dataclass(frozen=True, slots=True, repr=False)
class Prompt(ShortRepr):
    """One task: what the model reads, what it should answer, and who judges it.

    Exactly one of `prompt` (plain text, never templated) and `messages` (chat, the tokenizer's
    template applied once) is set. A last message of the assistant's is one that the response
    continues. `tools` are the JSON schemas that a chat's template shows. `source` names the
    verifier; `extra` holds every other column.
    """

    prompt_id: str
    answer: str
    source: str
    prompt: str | None = None
    messages: tuple[Message, ...] | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)
    tools: tuple[Mapping[str, Any], ...] = ()

    def __post_init__(self) -> None:
        assert (self.prompt is None) != (self.messages is None), "one of prompt and messages"
        assert self.messages or not self.tools, "only a chat shows tools"

    @property
    def content(self) -> str:
        """The text of the prompt, for reading, normalised comparison and content hashes."""
        if self.prompt is not None:
            return self.prompt
        lines = [_message_line(message) for message in self.messages or ()]
        return "\n".join([*lines, *(f"tool: {json.dumps(tool)}" for tool in self.tools)])

    @property
    def continued(self) -> str | None:
        """The text that the response continues: the last message, if it is the assistant's."""
        last = (self.messages or ({"role": ""},))[-1]
        return str(last["content"]) if last["role"] == "assistant" else None


def _message_line(message: Message) -> str:
    more = {key: message[key] for key in MESSAGE_KEYS if key in message}
    written = f" {json.dumps(more, ensure_ascii=False)}" if more else ""
    return f"{message['role']}: {message['content']}{written}"


def content_id(content: str, answer: str, source: str) -> str:
    """Return the stable id of a prompt that has none of its own: a hash of its content."""
    text = json.dumps([nfc(content), nfc(answer), source], ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


@dataclass(frozen=True, slots=True)
class Sampling:
    """How responses are drawn; 1.0 / 1.0 / 0 is the model's own distribution.

    `temperature` divides the logits, `top_p` in (0, 1] and `top_k` (0 = off) cut the tail, and
    the log-probs stored with a response are those of the renormalised distribution. A
    temperature of 0 means greedy decoding (evaluation only).
    """

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    max_new_tokens: int = 512


@dataclass(frozen=True, slots=True)
class PolicyIdentity:
    """Which weights sampled a response."""

    name: str
    revision: str = ""
    step: int = 0


@dataclass(slots=True, repr=False)
class Response(ShortRepr):
    """One sampled response: token ids are data, nothing ever re-tokenises `text`.

    `ids` int32 [T] includes the EOS token where it was sampled; `logprobs` float32 [T] are the
    sampler's, in nats. `reward` is NaN unless `reward_status` is "ok".

    Two fields are for data that one policy did not sample in one go. `loss_mask` uint8 [T] is 0 at
    tokens that are not the policy's (a tool's output, another speaker) and 1 elsewhere; None means
    that all tokens are the policy's. Log-probs of masked tokens are never used; they may be NaN. A
    response without a token of the policy's leaves its group. `policy_versions` int32 [T] is the
    version of the weights that sampled each token, where they changed during sampling.
    """

    ids: NDArray[np.int32]
    logprobs: NDArray[np.float32]
    text: str = ""
    finish_reason: FinishReason = "stop"
    reward: float = float("nan")
    reward_status: RewardStatus = "ok"
    loss_mask: NDArray[np.uint8] | None = None
    policy_versions: NDArray[np.int32] | None = None

    @property
    def sampled(self) -> NDArray[np.bool_]:
        """Which tokens [T] are the policy's: those that enter the objective."""
        if self.loss_mask is None:
            return np.ones(len(self.ids), dtype=bool)
        return self.loss_mask.astype(bool)

    @property
    def tokens(self) -> int:
        """Tokens that are the policy's: |y| of docs/method.md."""
        return len(self.ids) if self.loss_mask is None else int(self.loss_mask.sum())

    @property
    def usable(self) -> bool:
        """Whether the response counts in its group: judged, with tokens of the policy's."""
        return self.reward_status == "ok" and self.tokens > 0


@dataclass(slots=True, repr=False)
class RolloutGroup(ShortRepr):
    """All responses of one prompt, with the behaviour policy that sampled them.

    `logprob_mode` says which distribution the responses' log-probs are of: `processed`, the one
    that was sampled (after temperature, top-k and top-p, renormalised); `before_top_p`, after the
    temperature alone; `raw`, the model's own; `recomputed`, as `before_top_p`, from a forward pass
    of another program than the sampler.
    """

    also_shown = ("rewards",)

    prompt_id: str
    prompt_ids: NDArray[np.int32]
    responses: list[Response]
    sampling: Sampling = field(default_factory=Sampling)
    policy: PolicyIdentity = field(default_factory=lambda: PolicyIdentity("unknown"))
    seed: int = 0
    exact: bool = True
    logprob_mode: LogprobMode = "processed"

    @property
    def tail_is_cut(self) -> bool:
        """Whether the sampler left out what was unlikely (top_p or top_k), and renormalised."""
        return self.sampling.top_p < 1 or self.sampling.top_k > 0

    @property
    def logprobs_are_cut(self) -> bool:
        """Whether the log-probs are of a distribution without its tail."""
        return self.tail_is_cut and self.logprob_mode == "processed"

    @property
    def logprobs_at_another_temperature(self) -> bool:
        """Whether the log-probs are of another temperature than the responses'."""
        return self.logprob_mode == "raw" and self.sampling.temperature != 1

    @property
    def usable(self) -> list[Response]:
        """The responses that enter means, advantages and gradients."""
        return [r for r in self.responses if r.usable]

    @property
    def rewards(self) -> NDArray[np.float64]:
        """Rewards [K] of the usable responses."""
        return np.array([r.reward for r in self.usable], dtype=np.float64)

    @property
    def informative(self) -> bool:
        """Whether the group has a gradient: two usable responses or more, rewards not all equal."""
        rewards = self.rewards
        return len(rewards) >= 2 and rewards_differ(float(rewards.min()), float(rewards.max()))

    @property
    def score_status(self) -> str:
        """ "scored" if the group has a gradient, else the reason why not."""
        if self.informative:
            return SCORED
        if not self.responses:
            return NOT_SAMPLED
        return TOO_FEW_RESPONSES if len(self.usable) < 2 else EQUAL_REWARDS

    @property
    def tokens(self) -> int:
        """Tokens in the group that the policy sampled."""
        return sum(r.tokens for r in self.responses)


@dataclass(slots=True, repr=False)
class InfluenceEstimate(ShortRepr):
    """Influence of the prompts of a pool [P] on each validation set, and how sure it is.

    One entry per prompt, in the pool's order. Per validation set, `mean` float32 [P] is the cosine
    (NaN: not measured) and `standard_error` float64 [P] its error (NaN: unknown). `norms` float32
    [P] are the gradients' L2 norms (NaN: no gradient), `tokens` int64 [P] the sampled tokens,
    `group_size` int32 [P] the usable responses (0: unknown). `status` says of each prompt why it
    has no score, or "scored". `unlisted` counts pool prompts without an entry, by reason.
    `current_reward` float32 [P] is the mean reward under the policy by importance sampling, with
    the `effective_share` of the responses that it rests on (NaN, or None: unknown).
    `responses`, where measured, holds per validation set and prompt [P] the parts of the cosine
    that its responses bring, float32 [K]: they add up to it; NaN for those that are not usable,
    and none for a prompt without a score.
    """

    prompt_ids: list[str]
    mean: dict[str, NDArray[np.float32]]
    standard_error: dict[str, NDArray[np.float64]]
    norms: NDArray[np.float32]
    tokens: NDArray[np.int64]
    group_size: NDArray[np.int32]
    status: list[str]
    unlisted: dict[str, int] = field(default_factory=dict)
    identity: dict[str, str] = field(default_factory=dict)
    current_reward: NDArray[np.float32] | None = None
    effective_share: NDArray[np.float32] | None = None
    responses: dict[str, list[NDArray[np.float32]]] = field(default_factory=dict)

    @classmethod
    def from_means(
        cls,
        prompt_ids: Sequence[str],
        mean: Mapping[str, NDArray[np.floating]],
        unlisted: Mapping[str, int] | None = None,
    ) -> InfluenceEstimate:
        """An estimate of which only the cosines are known, for prompts that all have one."""
        count = len(prompt_ids)
        return cls(
            prompt_ids=list(prompt_ids),
            mean={name: values.astype(np.float32) for name, values in mean.items()},
            standard_error={name: np.full(count, np.nan) for name in mean},
            norms=np.ones(count, np.float32),
            tokens=np.zeros(count, np.int64),
            group_size=np.zeros(count, np.int32),
            status=[SCORED] * count,
            unlisted=dict(unlisted or {}),
        )

    @property
    def pool_size(self) -> int:
        """Prompts of the whole pool: a selection ratio is a share of it."""
        return len(self.prompt_ids) + sum(self.unlisted.values())

    @property
    def is_scored(self) -> NDArray[np.bool_]:
        """Which prompts [P] have a score."""
        return np.array([status == SCORED for status in self.status], dtype=bool)

    @property
    def skipped(self) -> dict[str, int]:
        """How many prompts of the pool have no score, by reason."""
        counts = Counter(self.unlisted)
        counts.update(status for status in self.status if status != SCORED)
        reasons = dict.fromkeys([*UNSCORED, *counts])
        return {reason: counts[reason] for reason in reasons if counts[reason]}

    def scored(self) -> InfluenceEstimate:
        """The same estimate with entries of scored prompts only; the others become `unlisted`."""
        rows = np.flatnonzero(self.is_scored)
        current, share = self.current_reward, self.effective_share
        return replace(
            self,
            prompt_ids=[self.prompt_ids[row] for row in rows],
            mean={name: values[rows] for name, values in self.mean.items()},
            standard_error={name: values[rows] for name, values in self.standard_error.items()},
            norms=self.norms[rows],
            tokens=self.tokens[rows],
            group_size=self.group_size[rows],
            status=[SCORED] * len(rows),
            unlisted=self.skipped,
            current_reward=None if current is None else current[rows],
            effective_share=None if share is None else share[rows],
            responses={n: [parts[row] for row in rows] for n, parts in self.responses.items()},
        )


@dataclass(slots=True, repr=False)
class Selection(ShortRepr):
    """The chosen prompts, best first, with the rank each validation set gave them (0 = none).

    `negative` counts those whose influence on every validation set is below zero.
    """

    prompt_ids: list[str]
    scores: NDArray[np.float64]
    ranks: dict[str, NDArray[np.int32]] = field(default_factory=dict)
    negative: int = 0
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True, repr=False)
class EvaluationResult(ShortRepr):
    """Accuracy of one policy on one set: `pass_at[k]` is the unbiased pass@k over `n` prompts."""

    set: str
    prompts: int
    pass_at: Mapping[int, float]
    tokens: int
    statuses: Mapping[str, int] = field(default_factory=dict)


def rewards_differ(least: float, greatest: float) -> bool:
    """Whether the rewards of a group, given by their extremes, differ by more than rounding."""
    # Halved, because the difference of two floats may exceed the largest float.
    size = max(abs(least), abs(greatest))
    return greatest / 2 - least / 2 > REWARD_TOLERANCE / 2 * size


def fingerprint(*parts: object) -> str:
    """Return a short hash of JSON-able values; equal values give equal hashes on any machine."""
    text = json.dumps(parts, sort_keys=True, default=str, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def derive_seed(seed: int, *path: str | int) -> int:
    """Return the 31-bit seed of one component, from the run's seed and the component's name.

    Components with different names draw independently, and adding one changes no other.
    """
    text = "/".join([str(seed), *map(str, path)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "little") >> 1


def unique(values: Sequence[str]) -> bool:
    """Whether no value appears twice."""
    return len(set(values)) == len(values)


def longest_allowed(groups: Sequence[RolloutGroup]) -> int:
    """Tokens that a response of these rollouts could have had at most; 512 without rollouts."""
    return max((group.sampling.max_new_tokens for group in groups), default=512)
