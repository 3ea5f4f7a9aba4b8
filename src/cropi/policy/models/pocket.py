"""The model `pocket`, which ships with cropi."""

from __future__ import annotations

from pathlib import Path

from cropi.errors import InputError
from cropi.plugins import plugin


@plugin("model", "pocket")
def pocket() -> Path:
    """The folder of the shipped character-level model. Raises InputError if it is missing."""
    from cropi.pocket import model_dir

    try:
        return model_dir()
    except FileNotFoundError as error:
        raise InputError(f"model pocket is missing: {error}") from error
