"""Which distribution a server's log-probs are of: measured, because few servers tell.

With top_k = 1 a single token can be drawn, so that the log-probs of the distribution that was
sampled are 0. Others show their temperature: the same tokens are less likely when it is high,
unless the log-probs are the model's own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from cropi.errors import InputError
from cropi.rollouts.engines.engine import Completion
from cropi.schema import MAX_LOGPROB, LogprobMode, Sampling

Ask = Callable[[Sequence[int], Sampling], Completion]
"""Samples one response to a prompt of token ids."""
HOT, COLD = 2.0, 0.5
PROMPTS, TOKENS = 4, 4
CERTAIN = 1e-5
"""Nats per token below which a log-prob is that of the only token there was."""
UNEQUAL = 0.05
"""Share by which equal log-probs may differ between two calls, as bfloat16 servers' do."""


def measured_mode(ask: Ask, prompts: Sequence[Sequence[int]], new_tokens: int) -> LogprobMode:
    """Find out the mode by greedy responses of a few tokens to the shortest prompts.

    Raises InputError if the values are not log-probs.
    """
    tokens = min(TOKENS, new_tokens)
    hot = cold = 0.0
    for ids in sorted(prompts, key=len)[:PROMPTS]:
        drawn = [ask(ids, Sampling(t, 1.0, 1, tokens)) for t in (HOT, COLD)]
        length = min(len(response.ids) for response in drawn)
        sums = [float(response.logprobs[:length].sum()) for response in drawn]
        hot, cold = hot + sums[0], cold + sums[1]
    if hot > MAX_LOGPROB or cold > MAX_LOGPROB:
        raise InputError(
            "the server returns logits in place of log-probs; start it with log-probs (vLLM: "
            "--logprobs-mode processed_logprobs)"
        )
    if hot >= -CERTAIN * PROMPTS * TOKENS:
        return "processed"
    return "raw" if abs(hot - cold) <= UNEQUAL * abs(hot) else "before_top_p"


def effective_mode(mode: LogprobMode, sampling: Sampling) -> LogprobMode:
    """The mode where it makes a difference; `processed` where it does not for this sampling."""
    whole = sampling.top_p == 1 and sampling.top_k == 0
    same = whole and (mode == "before_top_p" or sampling.temperature == 1)
    return "processed" if same and mode != "recomputed" else mode
