"""Object stores for tests: one in memory, and an S3 server of one's own."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import fsspec
import pytest

from cropi.prompts.settings import PromptSource
from cropi.prompts.sources import load_source

S3_KEYS = {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret"}
S3_KEYS |= {"AWS_DEFAULT_REGION": "us-east-1"}


def store(url: str, content: bytes) -> str:
    """Put a file into a store; return its URL."""
    with fsspec.open(url, "wb") as file:
        file.write(content)
    return url


@contextmanager
def bucket_in_memory() -> Iterator[str]:
    """A folder in fsspec's file system in memory."""
    memory = fsspec.filesystem("memory")
    memory.mkdirs("/bucket", exist_ok=True)
    try:
        yield "memory://bucket"
    finally:
        memory.store.clear()
        memory.pseudo_dirs[:] = [""]


@dataclass
class S3Server:
    """An S3 server of this process, which can be made to fail and to be slow."""

    address: str = ""
    failures: int = 0
    """How many of the next requests it answers with status 500."""
    delay_s: float = 0.0
    requests: list[tuple[str, str]] = field(default_factory=list)
    """Method and path of each request."""
    application: Any = None

    def __call__(self, environ: Any, start_response: Any) -> Any:
        """Answer a request."""
        self.requests.append((environ["REQUEST_METHOD"], environ["PATH_INFO"]))
        time.sleep(self.delay_s)
        if self.failures > 0:
            self.failures -= 1
            start_response("500 Internal Server Error", [("Content-Length", "0")])
            return [b""]
        return self.application(environ, start_response)

    @property
    def environment(self) -> dict[str, str]:
        """What a process needs to talk to it."""
        return {**S3_KEYS, "AWS_ENDPOINT_URL": self.address}


@contextmanager
def s3_server() -> Iterator[S3Server]:
    """An S3 server with the bucket `bucket`; skips where its packages are not installed."""
    needed = "object storage is tested with s3fs and moto[server]"
    pytest.importorskip("s3fs", reason=needed)
    moto = pytest.importorskip("moto.moto_server.werkzeug_app", reason=needed)
    from werkzeug.serving import WSGIRequestHandler, make_server

    class Quiet(WSGIRequestHandler):
        def log(self, *_: Any) -> None:
            pass

    served = S3Server()
    served.application = moto.DomainDispatcherApplication(moto.create_backend_app)
    server = make_server("127.0.0.1", 0, served, threaded=True, request_handler=Quiet)
    served.address = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    with pytest.MonkeyPatch.context() as patch:
        for name, value in served.environment.items():
            patch.setenv(name, value)
        fsspec.filesystem("s3", skip_instance_cache=True).mkdir("bucket")
        try:
            yield served
        finally:
            fsspec.get_filesystem_class("s3").clear_instance_cache()
            server.shutdown()


def questions(path: str) -> list[str | None]:
    """The prompts of the source at a path."""
    return [prompt.prompt for prompt in load_source(PromptSource(path=path), 0)]
