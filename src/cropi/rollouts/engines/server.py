"""The engine `server`: a vLLM or SGLang server that runs elsewhere and already has the policy.

Its implementation is `cropi.rollouts.serving`.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Annotated, ClassVar
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field

from cropi.errors import InputError
from cropi.plugins import plugin
from cropi.rollouts.settings import EngineSettings, SampledPolicies
from cropi.text import shown

if TYPE_CHECKING:
    from cropi.policy.reference import PolicyRef
    from cropi.rollouts.engines.engine import RolloutEngine


def _require_url(url: str) -> str:
    """Return an address without a trailing slash or `/v1`; ValueError if it is not one."""
    try:
        parts = urlsplit(url.strip())
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        usable = False
    if not usable:
        raise ValueError(f"{shown(url)} is not an address; give one such as http://localhost:8000")
    if parts.username or parts.password or parts.query or parts.fragment:
        raise ValueError(
            "the address holds a password or a query, and settings are stored; put the server's "
            "key into the environment variable that key_variable names"
        )
    return url.strip().rstrip("/").removesuffix("/v1").rstrip("/")


class RequestSettings(EngineSettings):
    """How requests are made; they do not change what is answered."""

    execution: ClassVar[frozenset[str]] = frozenset({"concurrency", "timeout", "tries"})

    concurrency: Annotated[int, Field(ge=1, le=4096)] = Field(
        64, description="prompts sampled at once"
    )
    timeout: Annotated[float, Field(gt=0, le=86_400)] = Field(
        1800.0, description="seconds for all responses to a prompt"
    )
    tries: Annotated[int, Field(ge=1, le=100)] = Field(
        8, description="attempts at a request before giving up"
    )


class ServerSettings(RequestSettings):
    """Settings of the engine `server`."""

    execution: ClassVar[frozenset[str]] = RequestSettings.execution | {"url", "key_variable"}
    policies: ClassVar[SampledPolicies] = "served"

    url: Annotated[str, AfterValidator(_require_url)] = Field(
        "http://localhost:8000", description="address of the server"
    )
    model: str | None = Field(
        None,
        description="the server's name for the policy; default: the served model of the same name",
    )
    exact: bool = Field(
        True,
        description="refuse a server that returns no token ids; false: its texts are tokenised "
        "again and marked as not exact",
    )
    key_variable: Annotated[str, Field(pattern=r"^[A-Za-z_]\w*$")] = Field(
        "CROPI_SERVER_KEY",
        description="the environment variable with the server's key, if it has one",
    )


@plugin("engine", "server", ServerSettings)
def server(settings: ServerSettings, policy: PolicyRef) -> RolloutEngine:
    """Samples from a server that has the policy."""
    from cropi.rollouts.serving.server_engine import Address, ServerEngine

    address = Address(settings.url, key_in(settings.key_variable), settings.model)
    return ServerEngine(
        address,
        policy,
        settings.concurrency,
        settings.timeout,
        settings.tries,
        exact=settings.exact,
    )


def key_in(variable: str) -> str | None:
    """The key in an environment variable; InputError, which does not show it, if it is none."""
    key = os.environ.get(variable, "").strip()
    if not (key.isascii() and key.isprintable()):
        raise InputError(
            f"the environment variable {variable} holds characters that no key has; set it again"
        )
    return key or None
