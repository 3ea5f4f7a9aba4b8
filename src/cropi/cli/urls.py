"""What a command reads and writes: inputs by URL are fetched, an output by URL is uploaded.

A command sees local paths alone. An output by URL is made in the cache, where a call that was
stopped continues, and is uploaded when it is whole.
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

REPLACED = {"judge": ("rollouts",)}
"""Inputs that a command may write its output over, because what is written holds all of them."""
WRITTEN = ("out", "label")
"""Parameters that name what a command writes."""
NAMED = ("target", "like")
"""Parameters that may have several values NAME=FILE."""


class Command(TyperCommand):
    """A command that refuses to write its output over one of its inputs."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command; `ctx` is the click context of the click that typer brings along."""
        self._require_apart(ctx)
        uploads: list[tuple[Path, str]] = []
        for name, value in ctx.params.items():
            if name in WRITTEN and (url := _url(value)):
                ctx.params[name] = upload_place(url)
                uploads.append((ctx.params[name], url))
            elif name in NAMED and isinstance(value, list | tuple):
                ctx.params[name] = [_named_place(each) for each in value]
            else:
                ctx.params[name] = _place(value)
        result = super().invoke(ctx)
        for place, url in uploads if launched().is_first else []:
            upload(place, url)
            make_reporter().say(f"uploaded: {url}")
        return result

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse `args`. Raises InputError for a path that is empty, or that no system looks up."""
        rest = super().parse_args(ctx, list(args))
        texts, _, _ = self.make_parser(ctx).parse_args(args=list(args))
        for parameter in self.params:
            text, value = texts.get(parameter.name or ""), ctx.params.get(parameter.name)
            paths = [p for p in _several(value) if isinstance(p, Path)]
            if paths and "" in _several(text):  # it would stand for the present folder
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
        unguarded = {"out", "settings", *REPLACED.get(self.name or "", ())}
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
    """What a message calls a parameter."""
    flag = next((each for each in parameter.opts if each.startswith("--")), None)
    return flag or str(parameter.name)


def _several(value: Any) -> Sequence[Any]:
    return value if isinstance(value, list | tuple) else [value]


def _place(value: Any) -> Any:
    """The local place of a path by URL, or of each in a list; texts and numbers as they are."""
    if isinstance(value, list | tuple):
        return [_place(each) for each in value]
    return local_place(value) if isinstance(value, Path) else value


def _named_place(value: str) -> str:
    """NAME=FILE, or a file alone, with the local place of a file by URL."""
    name, equals, path = value.partition("=")
    if equals and _url(path):
        return f"{name}={local_place(path)}"
    return str(local_place(value)) if _url(value) else value


def _url(value: Any) -> str | None:
    return remote_url(value) if isinstance(value, str | Path) else None


def _texts(value: Any) -> list[str]:
    """What may be a path in the value of an option; of NAME=FILE it is the second part."""
    texts = [str(each) for each in _several(value) if isinstance(each, str | Path)]
    return [*texts, *(text.partition("=")[2] for text in texts if "=" in text)]


def _same(out: Path, text: str) -> bool:
    try:
        if url := remote_url(out):
            return remote_url(text) == url
        return bool(text) and out.samefile(Path(text).expanduser())
    except (OSError, ValueError):
        return False  # one of them does not exist, or is not a path
