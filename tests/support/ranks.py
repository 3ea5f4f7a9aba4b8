"""Several processes that work together over gloo, as a launcher would start them.

They come from a server that has imported everything once and computed nothing, so that a process
costs a fraction of a second and inherits no thread.
"""

from __future__ import annotations

import multiprocessing
import os
import socket
import tempfile
import traceback
from collections.abc import Callable, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from torch import distributed

PRELOADED = [
    "torch.distributed.fsdp",
    "transformers.models.auto.modeling_auto",
    "cropi.influence.scorer",
    "support.tiny_models",
]
LIMIT_S = 600


def run_ranks(size: int, work: Callable[..., Any], *arguments: Any, join: bool = True) -> list[Any]:
    """What `work(*arguments)` returns on each of `size` ranks; its errors are raised here.

    With `join` they have joined one group before; without, they only know that they could.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    with tempfile.TemporaryDirectory() as folder, socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
        free.close()
        results = [Path(folder) / f"{rank}.pt" for rank in range(size)]
        processes = [
            context.Process(
                target=_rank, args=(rank, size, port, str(results[rank]), join, work, arguments)
            )
            for rank in range(size)
        ]
        for process in processes:
            process.start()
        for process in processes:
            process.join(LIMIT_S)
        for process in processes:
            if process.is_alive():
                process.kill()
        return [_result(path) for path in results]


def _rank(
    rank: int,
    size: int,
    port: int,
    result: str,
    join: bool,
    work: Callable[..., Any],
    arguments: Sequence[Any],
) -> None:
    torch.set_num_threads(1)
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(size),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    content = {}
    try:
        # A rank that failed leaves the others waiting: not for longer than a test may take.
        if join:
            distributed.init_process_group("gloo", timeout=timedelta(seconds=LIMIT_S // 2))
        content["value"] = work(*arguments)
    finally:
        torch.save(content or {"error": traceback.format_exc()}, result)


def _result(path: Path) -> Any:
    if not path.exists():
        raise AssertionError("a rank ended without a result")
    content = torch.load(path, weights_only=False)
    if "error" in content:
        raise AssertionError(content["error"])
    return content["value"]
