"""Selections for other trainers: one file per trainer, all behind `export_selection`."""

from cropi.exchange.exports.folder import (
    DEFAULT_MODEL,
    export_selection,
    random_control,
    trainers,
)

__all__ = ["DEFAULT_MODEL", "export_selection", "random_control", "trainers"]
