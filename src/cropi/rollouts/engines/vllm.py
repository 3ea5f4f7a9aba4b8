"""The engine `vllm`: starts `vllm serve` for every policy it samples from, and stops it.

vLLM may live in another interpreter than cropi, so that their requirements need not agree. Its
implementation is `cropi.rollouts.serving`.
"""

from __future__ import annotations

import importlib.util
import os
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import AfterValidator, Field

from cropi.errors import InputError
from cropi.execution.program import interpreter_at
from cropi.plugins import plugin
from cropi.rollouts.engines.server import RequestSettings
from cropi.rollouts.settings import SampledPolicies
from cropi.settings import Devices, PathText
from cropi.text import shown

if TYPE_CHECKING:
    from cropi.policy.reference import PolicyRef
    from cropi.rollouts.engines.engine import RolloutEngine

PYTHON_VARIABLE = "CROPI_VLLM_PYTHON"
OURS = {
    "host": None,
    "port": None,
    "uds": None,
    "api-key": None,
    "served-model-name": None,
    "generation-config": None,
    "logprobs-mode": None,
    "model": "model.path",
    "revision": "model.revision",
    "dtype": "model.dtype",
    "trust-remote-code": "model.trust_remote_code",
    "tensor-parallel-size": "rollouts.engine.tensor_parallel",
    "data-parallel-size": "rollouts.engine.data_parallel",
}
"""Flags of `vllm serve` that are not options, and the settings that they are here."""


def _require_flags(options: dict[str, Any]) -> dict[str, Any]:
    """Return the options under vLLM's names. Raises ValueError for those that are not free."""
    named = {name.strip().lstrip("-").replace("_", "-"): v for name, v in options.items()}
    for name in named:
        if not re.fullmatch(r"[a-z0-9][a-z0-9-]*", name):
            raise ValueError(
                f"{shown(name)} is not a flag of `vllm serve`; see `vllm serve --help`"
            )
        if name in OURS:
            setting = OURS[name]
            raise ValueError(
                f"{name} is set by cropi; "
                + (f"use {setting}" if setting else "rollouts would not be exact with another")
            )
    return named


class VllmSettings(RequestSettings):
    """Settings of the engine `vllm`."""

    execution: ClassVar[frozenset[str]] = RequestSettings.execution | {
        "python",
        "options",
        "tensor_parallel",
        "data_parallel",
        "start_timeout",
        "log",
    }
    policies: ClassVar[SampledPolicies] = "saved"

    python: PathText | None = Field(
        None,
        description=f"interpreter that has vLLM; default: ${PYTHON_VARIABLE}, or cropi's own",
    )
    tensor_parallel: Devices = Field(1, description="GPUs that share a copy of the model")
    data_parallel: Devices = Field(1, description="copies of the model")
    options: Annotated[dict[str, Any], AfterValidator(_require_flags)] = Field(
        default_factory=dict,
        description="other flags of `vllm serve`, such as {gpu-memory-utilization: 0.5}",
    )
    start_timeout: Annotated[float, Field(gt=0, le=86_400)] = Field(
        1200.0, description="seconds to wait until the server is ready"
    )
    log: PathText | None = Field(
        None, description="file for vLLM's output; default: in the run's logs, else a temporary one"
    )


@plugin("engine", "vllm", VllmSettings)
def vllm(settings: VllmSettings, policy: PolicyRef) -> RolloutEngine:
    """Samples with vLLM, which it starts for the policy."""
    from cropi.rollouts.serving.server_engine import ServerEngine
    from cropi.rollouts.serving.vllm_server import ServeOptions, server_for

    sizes = {
        "tensor-parallel-size": settings.tensor_parallel,
        "data-parallel-size": settings.data_parallel,
    }
    log = Path(settings.log).expanduser() if settings.log else None
    options = ServeOptions(
        interpreter(settings.python), {**sizes, **settings.options}, settings.start_timeout, log
    )
    server = server_for(policy, options)
    return ServerEngine(
        server.address,
        policy,
        settings.concurrency,
        settings.timeout,
        settings.tries,
        server.require_running,
    )


def interpreter(python: str | None) -> str:
    """The interpreter that has vLLM. Raises InputError if it is not there or none is known."""
    chosen = python or os.environ.get(PYTHON_VARIABLE)
    if chosen:
        return interpreter_at(chosen, "rollouts.engine.python", "vLLM")
    if importlib.util.find_spec("vllm") is None:
        raise InputError(
            "the engine vllm needs vLLM: install cropi[vllm], or name the python of an environment "
            f"that has it as rollouts.engine.python or ${PYTHON_VARIABLE}"
        )
    return sys.executable
