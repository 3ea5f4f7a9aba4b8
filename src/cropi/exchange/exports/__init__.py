"""Selections for other trainers: one file a trainer, all behind `export_selection`."""

from cropi.exchange.exports.folder import export_selection, trainers

__all__ = ["export_selection", "trainers"]
