"""Rollouts with `model.generate`: batched by length, each prompt computed once for all responses.

Three things differ from a plain call. The sampling parameters come from `Sampling` alone, because
`generate` otherwise falls back on the model's generation config and on top_k = 50. The log-probs
are recorded during sampling, from the same scores that tokens are drawn from, one step at a time:
neither a second forward pass nor scores of shape [steps, batch, vocab] are needed. And the
prompt's keys and values are computed once and repeated for its responses.

Shapes: B rows of a batch (prompts x responses), P prompt tokens, T new tokens, V vocabulary.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import (
    DynamicCache,
    GenerationConfig,
    LogitsProcessorList,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from cropi.policy.loading import Policy, neutral_generation_config, reraise_out_of_memory
from cropi.policy.reference import PolicyRef
from cropi.rollouts.engines.engine import Completion
from cropi.schema import Sampling, derive_seed
from cropi.text import plural


class TransformersEngine:
    """Samples from a Hugging Face model, `batch_size` responses at once."""

    def __init__(self, policy: Policy | PolicyRef, batch_size: int) -> None:
        assert batch_size >= 1, "batch_size counts responses"
        self._reference = PolicyRef.of(policy)
        self._reference.load()
        self.batch_size = batch_size

    @property
    def policy(self) -> Policy:
        """The policy; in a process that the engine was sent to, it is loaded there."""
        return self._reference.load()

    @property
    def context(self) -> int:
        """Positions the model has."""
        return self.policy.context

    def generate(
        self, prompt_ids: Sequence[Sequence[int]], sampling: Sampling, n: int, seed: int
    ) -> list[list[Completion]]:
        """Return `n` completions per prompt, in the prompts' order.

        The result is a function of the arguments and the batch size; the caller's random state
        does not change. A temperature of 0 decodes greedily.
        """
        completions: list[list[Completion]] = [[] for _ in prompt_ids]
        plan = plan_generation_batches([len(ids) for ids in prompt_ids], n, self.batch_size)
        with _sampling_mode(self.policy, sampling):
            for index, batch in enumerate(plan):
                rows = [prompt_ids[p] for p in batch.prompts]
                batch_seed = derive_seed(seed, "batch", index)
                sampled = self._generate_batch(rows, sampling, batch.responses, batch_seed)
                for place, prompt in enumerate(batch.prompts):
                    start = place * batch.responses
                    completions[prompt] += sampled[start : start + batch.responses]
        return completions

    def _generate_batch(
        self, rows: Sequence[Sequence[int]], sampling: Sampling, n: int, seed: int
    ) -> list[Completion]:
        """Sample `n` responses for each row; those of one prompt are neighbours."""
        model, device = _base_model(self.policy.model), self.policy.model.device
        ids_BP, mask_BP = _left_pad(rows, self.policy.tokenizer.pad_token_id, device)
        recorder = LogprobRecorder()
        memory = self._reraise_out_of_memory(len(rows) * n, sampling.max_new_tokens)
        with _seeded(seed, device), memory:
            prefix_cache = _prefix_cache(model, ids_BP, mask_BP, n)
            sequences = model.generate(
                input_ids=ids_BP.repeat_interleave(n, dim=0),
                attention_mask=mask_BP.repeat_interleave(n, dim=0),
                generation_config=model.generation_config,
                logits_processor=_processors(sampling, recorder),
                **({} if prefix_cache is None else {"past_key_values": prefix_cache}),
            )
        tokens = sequences[:, ids_BP.shape[1] :]
        logprobs = recorder.finish(tokens[:, -1])
        return _trim(tokens.cpu().numpy(), logprobs.cpu().numpy(), self.policy.eos_token_ids)

    def _reraise_out_of_memory(self, responses: int, tokens: int) -> AbstractContextManager[None]:
        smaller = f"lower the engine's batch_size (now {self.batch_size})"
        shorter = "lower max_new_tokens, or use a smaller dtype or model"
        return reraise_out_of_memory(
            f"sampling {plural(responses, 'response')} of up to {tokens} tokens at once",
            smaller if responses > 1 else shorter,
        )


@dataclass(frozen=True, slots=True)
class GenerationBatch:
    """Prompts (positions in the caller's list) generated together, `responses` of each."""

    prompts: list[int]
    responses: int


def plan_generation_batches(
    lengths: Sequence[int], n: int, batch_size: int
) -> list[GenerationBatch]:
    """Split prompts with `n` responses each into batches of at most `batch_size` rows, by length.

    Longest first, so that a batch that does not fit in memory fails at once. A prompt's responses
    stay together unless `n` alone exceeds the batch.
    """
    order = sorted(range(len(lengths)), key=lambda p: (-lengths[p], p))
    if n > batch_size:
        pieces = [min(batch_size, n - start) for start in range(0, n, batch_size)]
        return [GenerationBatch([prompt], piece) for prompt in order for piece in pieces]
    size = max(1, batch_size // max(n, 1))
    return [GenerationBatch(order[start : start + size], n) for start in range(0, len(order), size)]


class LogprobRecorder:
    """The last logits processor: records the log-prob of each drawn token, and changes nothing.

    At step t it receives the scores [B, V] from which the next token is drawn; the token is known
    at step t + 1, as the last input id. The scores of one step are stored at a time.
    """

    def __init__(self) -> None:
        self._scores: torch.Tensor | None = None
        self._logprobs: list[torch.Tensor] = []

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Take `input_ids` int64 [B, P + t] and `scores` float32 [B, V]; return the scores."""
        if self._scores is not None:
            self._record(input_ids[:, -1])
        self._scores = scores
        return scores

    def finish(self, last: torch.Tensor) -> torch.Tensor:
        """Take the last tokens int64 [B] and return all log-probs float32 [B, T]."""
        self._record(last)
        return torch.stack(self._logprobs, dim=1)

    def _record(self, tokens: torch.Tensor) -> None:
        assert self._scores is not None, "a token was drawn before any score was seen"
        scores = self._scores.float()
        chosen = scores.gather(1, tokens[:, None]).squeeze(1)
        self._logprobs.append(chosen - scores.logsumexp(dim=-1))


def _processors(sampling: Sampling, recorder: LogprobRecorder) -> LogitsProcessorList:
    """Return the warpers of a sampling in the usual order, the recorder after them."""
    processors = LogitsProcessorList()
    if sampling.temperature > 0:
        if sampling.temperature != 1.0:
            processors.append(TemperatureLogitsWarper(float(sampling.temperature)))
        if sampling.top_k > 0:
            processors.append(TopKLogitsWarper(sampling.top_k))
        if sampling.top_p < 1.0:
            processors.append(TopPLogitsWarper(sampling.top_p))
    processors.append(recorder)
    return processors


def _generation_config(policy: Policy, sampling: Sampling) -> GenerationConfig:
    """Return a config that adds no warpers: `_processors` has them all."""
    greedy = sampling.temperature == 0
    config = neutral_generation_config(policy.tokenizer, policy.eos_token_ids, greedy=greedy)
    config.max_new_tokens = sampling.max_new_tokens
    # Compilation costs more than it saves, because the prompts' lengths keep changing.
    config.disable_compile = True
    return config


def _left_pad(
    rows: Sequence[Sequence[int]], pad: int, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return ids and mask, both int64 [rows, longest], padded on the left."""
    width = max(len(row) for row in rows)
    ids = np.full((len(rows), width), pad, dtype=np.int64)
    mask = np.zeros((len(rows), width), dtype=np.int64)
    for place, row in enumerate(rows):
        ids[place, width - len(row) :] = row
        mask[place, width - len(row) :] = 1
    return torch.from_numpy(ids).to(device), torch.from_numpy(mask).to(device)


@torch.no_grad()
def _prefix_cache(model: Any, ids: torch.Tensor, mask: torch.Tensor, n: int) -> Any:
    """Return keys and values of all prompt tokens but the last, repeated `n` times, or None.

    None if nothing would be saved, if a prompt has a single token (its row would be only padding),
    or if the model takes no positions or has no plain cache to repeat.
    """
    if n == 1 or int(mask.sum(dim=1).min()) < 2:
        return None
    backbone = model.base_model  # without its head: no logits are needed
    if "position_ids" not in inspect.signature(backbone.forward).parameters:
        return None
    positions = (mask.cumsum(dim=1) - 1).clamp(min=0)
    output = backbone(
        input_ids=ids[:, :-1],
        attention_mask=mask[:, :-1],
        position_ids=positions[:, :-1],
        use_cache=True,
    )
    cache: Any = getattr(output, "past_key_values", None)
    layers = {type(layer).__name__ for layer in getattr(cache, "layers", ())}
    if not isinstance(cache, DynamicCache) or layers != {"DynamicLayer"}:
        return None
    cache.batch_repeat_interleave(n)
    return cache


def _trim(
    tokens: NDArray[np.int64], logprobs: NDArray[np.float32], eos: Sequence[int]
) -> list[Completion]:
    """Cut each row of [B, T] after its first EOS; a row without one reached the length limit."""
    is_eos = np.isin(tokens, np.asarray(eos, dtype=np.int64))
    stopped: NDArray[np.bool_] = np.any(is_eos, axis=1)
    lengths = np.where(stopped, is_eos.argmax(axis=1) + 1, tokens.shape[1])
    ids = tokens.astype(np.int32)
    return [
        Completion(
            ids[row, :length].copy(), logprobs[row, :length].copy(), "stop" if ended else "length"
        )
        for row, (length, ended) in enumerate(zip(lengths, stopped, strict=True))
    ]


def _base_model(model: Any) -> Any:
    """Return the transformers model inside a PEFT model; its adapters stay active."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


@contextmanager
def _seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Draw from `seed` inside, and restore the caller's random state."""
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        yield


@contextmanager
def _sampling_mode(policy: Policy, sampling: Sampling) -> Iterator[None]:
    """Put the model into eval mode with the config of this sampling, and restore both.

    The config is set on the model because `generate` takes whatever it is not given from
    `model.generation_config`, which a trainer may have replaced since the policy was loaded.
    """
    base = _base_model(policy.model)
    training, previous = policy.model.training, base.generation_config
    base.generation_config = _generation_config(policy, sampling)
    policy.model.eval()
    try:
        yield
    finally:
        base.generation_config = previous
        policy.model.train(training)
