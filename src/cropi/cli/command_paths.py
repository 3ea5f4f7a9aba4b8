"""The paths of a command: checked, and local even where the user gives URLs.

Inputs by URL are fetched before the command runs. An output by URL is made in the cache, where an
interrupted call continues, and is uploaded when it is complete.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from typer.core import TyperCommand

from cropi.cli.printing import make_reporter
from cropi.cli.torchrun import launched
from cropi.errors import InputError
from cropi.store.remote import local_place, upload, upload_place
from cropi.text import remote_url, require_path

REPLACEABLE_INPUTS = {"judge": ("rollouts",)}
"""Inputs that a command may overwrite, because its output contains all of them."""
OUTPUT_PARAMETERS = ("out", "label")
"""Parameters that name what a command writes."""
NAMED_FILE_PARAMETERS = ("target", "like")
"""Parameters that may have several values NAME=FILE."""


class Command(TyperCommand):
    """A command whose paths are local, not empty, and whose output is none of its inputs."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command; `ctx` is the click context of the click that typer brings along."""
        self._require_apart(ctx)
        uploads: list[tuple[Path, str]] = []
        for name, value in ctx.params.items():
            if name in OUTPUT_PARAMETERS and (url := _url(value)):
                ctx.params[name] = upload_place(url)
                uploads.append((ctx.params[name], url))
            elif name in NAMED_FILE_PARAMETERS and isinstance(value, list | tuple):
                ctx.params[name] = [_named_local(each) for each in value]
            else:
                ctx.params[name] = _local(value)
        result = super().invoke(ctx)
        for place, url in uploads if launched().is_first else []:
            upload(place, url)
            make_reporter().info(f"uploaded: {url}")
        return result

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse `args`. Raises InputError for a path that is empty, or that no system looks up."""
        rest = super().parse_args(ctx, list(args))
        texts, _, _ = self.make_parser(ctx).parse_args(args=list(args))
        for parameter in self.params:
            text, value = texts.get(parameter.name or ""), ctx.params.get(parameter.name)
            paths = [p for p in _as_list(value) if isinstance(p, Path)]
            if paths and "" in _as_list(text):  # it would stand for the present folder
                raise InputError(
                    f"{_title(parameter)} is empty; give a path, and quote no variable of your "
                    "shell that is not set"
                )
            for path in paths:
                require_path(str(path), _title(parameter))
        return rest

    def _require_apart(self, ctx: Any) -> None:
        """Raise InputError if the output is one of the inputs."""
        out = ctx.params.get("out")
        unguarded = {"out", "settings", *REPLACEABLE_INPUTS.get(self.name or "", ())}
        if not isinstance(out, Path):
            return
        for parameter in self.params:
            given = None if parameter.name in unguarded else ctx.params.get(parameter.name)
            if any(_same(out, text) for text in _texts(given)):
                raise InputError(
                    f"--out {out} is also an input ({_title(parameter)}), which would be lost; "
                    "give another path"
                )


def _title(parameter: Any) -> str:
    """The name of a parameter in messages."""
    flag = next((each for each in parameter.opts if each.startswith("--")), None)
    return flag or str(parameter.name)


def _as_list(value: Any) -> Sequence[Any]:
    return value if isinstance(value, list | tuple) else [value]


def _local(value: Any) -> Any:
    """The local copy of a path by URL, or of each in a list; other values unchanged."""
    if isinstance(value, list | tuple):
        return [_local(each) for each in value]
    return local_place(value) if isinstance(value, Path) else value


def _named_local(value: str) -> str:
    """NAME=FILE, or a file alone, with the local copy of a file by URL."""
    name, equals, path = value.partition("=")
    if equals and _url(path):
        return f"{name}={local_place(path)}"
    return str(local_place(value)) if _url(value) else value


def _url(value: Any) -> str | None:
    return remote_url(value) if isinstance(value, str | Path) else None


def _texts(value: Any) -> list[str]:
    """The texts in the value of an option that may be paths; of NAME=FILE the second part."""
    texts = [str(each) for each in _as_list(value) if isinstance(each, str | Path)]
    return [*texts, *(text.partition("=")[2] for text in texts if "=" in text)]


def _same(out: Path, text: str) -> bool:
    try:
        if url := remote_url(out):
            return remote_url(text) == url
        return bool(text) and out.samefile(Path(text).expanduser())
    except (OSError, ValueError):
        return False  # one of them does not exist, or is not a path
