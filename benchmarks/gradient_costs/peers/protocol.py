"""How the benchmark talks to a worker in a peer's own environment.

The worker is started with the path of a request, a JSON file: the model's folder, documents,
the total dimension wanted. It answers one JSON object a line: first what it is and how many
dimensions it really keeps, then the seconds of one build each time it reads "run". It waits in
between, so that the benchmark can take turns. Neither cropi nor anything else of the benchmark is
imported: the environments have nothing in common but Python.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any


def read_request() -> dict[str, Any]:
    """Return the request named on the command line."""
    return json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))


def serve(
    open_worker: Callable[[dict[str, Any]], tuple[dict[str, Any], Callable[[], Any]]],
) -> None:
    """Answer on the real standard output; whatever libraries print goes to standard error.

    `open_worker` takes the request and returns the first answer and a build; what a build returns
    is saved once, as the rows of its index, where the request names a file.
    """
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)

    def answer(values: dict[str, Any]) -> None:
        print(json.dumps(values), file=answers, flush=True)

    request = read_request()
    about, build = open_worker(request)
    answer(about)
    for line in sys.stdin:
        if line.strip() != "run":
            break
        start = time.perf_counter()
        rows = build()
        answer({"seconds": time.perf_counter() - start})
        save_rows(rows, request.get("rows"))


def save_rows(rows: Any, path: str | None) -> None:
    """Keep the rows of an index [documents, dimensions] as fp32, once."""
    if path and not Path(path).exists():
        import numpy as np

        np.save(path, np.asarray(rows, dtype=np.float32))


def fastest(candidates: list[int], build: Callable[[int], object]) -> int:
    """Return the candidate whose build takes least time; each is tried once, after a warm-up.

    A request whose builds are not timed has no candidates, and gets one that is as good as any.
    """
    if not candidates:
        return 256
    build(candidates[0])
    if len(candidates) == 1:
        return candidates[0]
    seconds = {}
    for candidate in candidates:
        start = time.perf_counter()
        build(candidate)
        seconds[candidate] = time.perf_counter() - start
    return min(seconds, key=seconds.__getitem__)
