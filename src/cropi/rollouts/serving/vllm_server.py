"""`vllm serve` for one policy: started when the first prompt comes, stopped with the policy.

A server never gets other weights: keys and values of earlier ones could be left in its caches, so
every policy has a fresh one. It is there until the `PolicyRef` that it was started for is closed,
which several sets of prompts share, and listens on the loopback interface with a key of its own.
"""

from __future__ import annotations

import copy
import json
import os
import secrets
import shutil
import socket
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import urllib3

from cropi.errors import InputError
from cropi.execution import Program
from cropi.execution.program import environment_for, last_error
from cropi.policy.reference import PolicyRef
from cropi.rollouts.serving.server_engine import Address

NAME = "policy"
"""What the server calls the policy."""
STARTS = 3
"""Times that a server is started: another program may take its port first."""
_servers: WeakKeyDictionary[PolicyRef, VllmServer] = WeakKeyDictionary()


@dataclass(frozen=True)
class ServeOptions:
    """How to start vLLM: its interpreter, flags by name, and seconds until it has to be ready.

    Its output goes to `log`; None: to a temporary file.
    """

    python: str
    flags: dict[str, Any]
    timeout: float
    log: Path | None = None


def server_for(policy: PolicyRef, options: ServeOptions) -> VllmServer:
    """Return the policy's server, which is started if it has none with these options yet."""
    server = _servers.get(policy)
    if server is None or not server.running or server.options != options:
        policy.close()
        _servers[policy] = server = VllmServer(policy, options)
        policy.on_close(server.stop)
    return server


class VllmServer:
    """A running `vllm serve`; it ends with this process at the latest."""

    def __init__(self, policy: PolicyRef, options: ServeOptions) -> None:
        self.options, self.stopped = options, False
        self._folder = tempfile.TemporaryDirectory(prefix="cropi-vllm-")
        folder = Path(self._folder.name)
        self.log = options.log or folder / "vllm.log"
        self.log.parent.mkdir(parents=True, exist_ok=True)
        checkpoint = policy.plain_checkpoint or write_checkpoint(policy, folder / "weights")
        key = secrets.token_urlsafe(32)
        for _ in range(STARTS):
            port = _free_port()
            self.address = Address(f"http://127.0.0.1:{port}", key, NAME)
            command = serve_command(options, checkpoint, port, policy)
            self._program = Program(command, self.log, _environment(key, options.python))
            if self._wait():
                return
        raise self._failed("found no free port")

    @property
    def running(self) -> bool:
        """Whether it can be asked."""
        return not self.stopped and self._program.exit_code is None

    def require_running(self) -> None:
        """Raise InputError, with the last error of the log, if the server has ended."""
        if self._program.exit_code is not None:
            raise self._failed(f"ended (exit code {self._program.exit_code})")

    def stop(self) -> None:
        """End the server, and remove what was written for it."""
        self.stopped = True
        self._program.stop()
        self._folder.cleanup()

    def _wait(self) -> bool:
        """Wait until the server is ready; False if its port was taken, InputError if it failed."""
        until, pool = time.monotonic() + self.options.timeout, urllib3.PoolManager()
        while self._program.exit_code is None:
            if _is_ready(pool, self.address.url):
                return True
            if time.monotonic() > until:
                self._program.stop()
                raise self._failed(f"was not ready within {self.options.timeout:g} s")
            time.sleep(0.2)
        if "address already in use" in self._program.output.lower():
            return False
        raise self._failed(f"ended (exit code {self._program.exit_code}) before it was ready")

    def _failed(self, what: str) -> InputError:
        """The error with what vLLM said last; a log in a temporary folder is kept."""
        where = self.log
        if self.options.log is None:
            handle, name = tempfile.mkstemp(prefix="cropi-vllm-", suffix=".log")
            os.close(handle)
            where = Path(shutil.copyfile(self.log, name))
        return InputError(
            f"vLLM {what}: {last_error(self._program.output)}; see {where}, and correct "
            "rollouts.engine (options are passed to `vllm serve`)"
        )


def serve_command(
    options: ServeOptions, checkpoint: str, port: int, policy: PolicyRef
) -> list[str]:
    """The command that serves a checkpoint on a port, without the key."""
    flags: dict[str, Any] = {
        "host": "127.0.0.1",
        "port": port,
        "served-model-name": NAME,
        "dtype": policy.dtype,
        # Log-probs after temperature, top-k and top-p; sampling from what the request says alone.
        "logprobs-mode": "processed_logprobs",
        "generation-config": "vllm",
        **({"revision": policy.revision} if policy.revision else {}),
        **({"trust-remote-code": True} if policy.trust_remote_code else {}),
        **options.flags,
    }
    command = [options.python, "-m", "vllm.entrypoints.cli.main", "serve", checkpoint]
    return [*command, *(part for name, value in flags.items() for part in _flag(name, value))]


def _flag(name: str, value: Any) -> Sequence[str]:
    if isinstance(value, bool):
        return [f"--{name}" if value else f"--no-{name}"]
    return [f"--{name}", value if isinstance(value, str) else json.dumps(value)]


def write_checkpoint(policy: PolicyRef, folder: Path) -> str:
    """Write a policy's weights, adapters merged, and its tokenizer; return the folder's path."""
    from cropi.policy.loading import quiet_libraries

    loaded = policy.load()
    model = loaded.model
    if hasattr(model, "merge_and_unload"):
        model = copy.deepcopy(model).merge_and_unload()
    with quiet_libraries(stderr=True):
        model.save_pretrained(folder)
        loaded.tokenizer.save_pretrained(folder)
    return str(folder)


def _environment(key: str, python: str) -> dict[str, str]:
    return {
        **environment_for(python),
        "VLLM_API_KEY": key,
        "VLLM_NO_USAGE_STATS": "1",
        "DO_NOT_TRACK": "1",
    }


def _free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


def _is_ready(pool: urllib3.PoolManager, url: str) -> bool:
    try:
        answer = pool.request("GET", f"{url}/health", retries=False, timeout=5.0)
    except urllib3.exceptions.HTTPError:
        return False
    return answer.status == 200
