"""The rows of a rollout file: everything that concerns single rows, checked."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast, get_args

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from cropi.rollouts.statistics import STATUSES
from cropi.schema import MAX_LOGPROB, MAX_REWARD, TEMPERATURES, LogprobMode
from cropi.store.columns import Columns, Ragged

LOGPROB_MODES: tuple[LogprobMode, ...] = get_args(LogprobMode)
_SAMPLING_DEFAULTS = {"temperature": 1.0, "top_p": 1.0, "top_k": 0}


@dataclass(slots=True)
class RolloutRows:
    """The file's columns as arrays and lists, one element per row."""

    prompt_ids: Ragged
    response_ids: Ragged
    logprobs: Ragged
    rewards: NDArray[np.float64]
    statuses: list[Any]
    texts: list[Any]
    finish_reasons: list[Any]
    sampling: list[tuple[float, float, int]]
    loss_masks: list[NDArray[np.uint8] | None]
    policy_versions: list[NDArray[np.int32] | None]
    logprob_modes: list[LogprobMode]


def read_rollout_rows(columns: Columns) -> RolloutRows:
    """Decode and check everything that concerns single rows."""
    rewards = columns.numbers("reward", pa.float64(), missing=float("nan"), nulls=float("nan"))
    statuses = _statuses(columns, rewards)
    unnamed = [not name.strip() for name in columns.strings("prompt_id")]
    columns.require_no_row(
        "prompt_id", np.array(unnamed, dtype=bool), "is empty; give each prompt an id"
    )
    prompt_ids, response_ids = _token_ids(columns)
    masks = _loss_masks(columns, response_ids)
    logprobs = _logprobs(columns, response_ids, masks, statuses)
    return RolloutRows(
        prompt_ids,
        response_ids,
        logprobs,
        rewards,
        statuses,
        columns.strings("text", missing="", nulls=""),
        columns.strings("finish_reason", missing="stop", nulls="stop"),
        _sampling_rows(columns),
        masks,
        _optional_lists(columns, "policy_versions", "one version", response_ids),
        _logprob_modes(columns),
    )


def _token_ids(columns: Columns) -> tuple[Ragged, Ragged]:
    """Return each row's token ids of the prompt, at least one, and of the response."""
    prompt_ids = columns.ragged("prompt_ids", pa.int32())
    response_ids = columns.ragged("response_ids", pa.int32())
    columns.require_no_row("prompt_ids", prompt_ids.lengths == 0, "is empty; give the prompt's ids")
    for name, ids in (("prompt_ids", prompt_ids), ("response_ids", response_ids)):
        columns.require_no_row(name, ids.any_of(ids.values < 0), "holds a negative token id")
    return prompt_ids, response_ids


def _logprobs(
    columns: Columns,
    response_ids: Ragged,
    masks: Sequence[NDArray[np.uint8] | None],
    statuses: Sequence[str],
) -> Ragged:
    """Return each row's log-probs, of which those of judged responses are none above 0."""
    logprobs = columns.ragged("logprobs", pa.float32(), null_is_nan=True)
    columns.require_no_row(
        "logprobs",
        response_ids.lengths != logprobs.lengths,
        "differs in length from response_ids; give one log-prob per token (any, or null, where "
        "loss_mask is 0)",
    )
    _zero_masked_logprobs(logprobs, masks)
    is_ok = np.array([status == "ok" for status in statuses], dtype=bool)
    # Minus infinity is a log-prob of 0, as servers write it: scoring counts such prompts by name.
    columns.require_no_row(
        "logprobs",
        logprobs.any_of(np.isnan(logprobs.values)) & is_ok,
        "holds NaN or null in a row whose reward_status is ok; fix it, or mark it as error",
    )
    columns.require_no_row(
        "logprobs",
        logprobs.any_of(logprobs.values > MAX_LOGPROB) & is_ok,
        "holds a log-prob above 0, which no probability has; write the natural log of each "
        "token's probability",
    )
    return logprobs


def _optional_lists(
    columns: Columns, name: str, unit: str, response_ids: Ragged
) -> list[NDArray[np.int32] | None]:
    """Return a list column with a value per response token; None in rows without a list."""
    ragged, present = columns.optional_ragged(name, pa.int32())
    columns.require_no_row(
        name,
        present & (ragged.lengths != response_ids.lengths),
        f"differs in length from response_ids; give {unit} per token",
    )
    return [ragged[row] if exists else None for row, exists in enumerate(present.tolist())]


def _loss_masks(columns: Columns, response_ids: Ragged) -> list[NDArray[np.uint8] | None]:
    """Return each row's mask of the policy's tokens; None in rows without one."""
    masks = _optional_lists(columns, "loss_mask", "one value", response_ids)
    wrong = [mask is not None and bool(((mask != 0) & (mask != 1)).any()) for mask in masks]
    columns.require_no_row(
        "loss_mask",
        np.array(wrong, dtype=bool),
        "holds a value other than 0 and 1; use 1 for the policy's tokens and 0 for others",
    )
    return [None if mask is None else mask.astype(np.uint8) for mask in masks]


def _zero_masked_logprobs(logprobs: Ragged, masks: Sequence[NDArray[np.uint8] | None]) -> None:
    """Set to 0 what is not a log-prob at tokens that are not the policy's: nothing reads it."""
    for row, mask in enumerate(masks):
        if mask is not None:
            values = logprobs[row]
            values[(mask == 0) & ~(np.isfinite(values) & (values <= MAX_LOGPROB))] = 0.0


def _logprob_modes(columns: Columns) -> list[LogprobMode]:
    """Return which distribution each row's log-probs are of."""
    modes = columns.strings("logprob_mode", missing="processed", nulls="processed")
    unknown = np.array([mode not in LOGPROB_MODES for mode in modes], dtype=bool)
    columns.require_no_row(
        "logprob_mode", unknown, f"is not one of {', '.join(LOGPROB_MODES)}", shown=modes
    )
    return cast(list[LogprobMode], modes)


def _statuses(columns: Columns, rewards: NDArray[np.float64]) -> list[str]:
    """Return each row's reward status; a status of ok needs a finite reward."""
    finite = np.isfinite(rewards)
    columns.require_no_row(
        "reward",
        finite & (np.abs(rewards) > MAX_REWARD),
        f"is beyond {MAX_REWARD:.0e}, where sums lose what tells responses apart; rescale the "
        "rewards",
        rewards,
    )
    if "reward_status" not in columns:
        return ["ok" if value else "error" for value in finite]
    statuses = columns.strings("reward_status")
    unknown = np.array([status not in STATUSES for status in statuses], dtype=bool)
    columns.require_no_row(
        "reward_status",
        unknown,
        f"is not one of {', '.join(STATUSES)}; write one of them",
        shown=statuses,
    )
    is_ok = np.array([status == "ok" for status in statuses], dtype=bool)
    columns.require_no_row(
        "reward",
        is_ok & ~finite,
        "is NaN, infinite or null although its reward_status is ok; mark the row as error",
    )
    return statuses


def _sampling_rows(columns: Columns) -> list[tuple[float, float, int]]:
    """Return (temperature, top_p, top_k) per row, with one warning about missing columns."""
    missing = [name for name in _SAMPLING_DEFAULTS if name not in columns]
    if missing:
        defaults = ", ".join(f"{name} {_SAMPLING_DEFAULTS[name]}" for name in missing)
        warnings.warn(
            f"{columns.path} lacks {', '.join(missing)}; read as {defaults}: if it was sampled "
            "differently, add the columns",
            stacklevel=4,
        )
    temperature = columns.numbers("temperature", pa.float64(), missing=1.0)
    top_p = columns.numbers("top_p", pa.float64(), missing=1.0)
    top_k = columns.numbers("top_k", pa.int32(), missing=0)
    low, high = TEMPERATURES
    columns.require_no_row(
        "temperature",
        ~((temperature >= low) & (temperature <= high)),
        f"is not within {low:g} and {high:g}; give the temperature that the responses were "
        "sampled at",
        temperature,
    )
    columns.require_no_row(
        "top_p",
        ~((top_p > 0) & (top_p <= 1)),
        "is not in (0, 1]; give the share that was kept",
        top_p,
    )
    # vLLM writes -1 for "off".
    columns.require_no_row(
        "top_k", top_k < -1, "is below 0; give the number of tokens, or 0 for all of them", top_k
    )
    top_k = np.maximum(top_k, 0)
    return list(zip(temperature.tolist(), top_p.tolist(), top_k.tolist(), strict=True))
