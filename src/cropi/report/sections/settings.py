"""What the run was made from: notes about the prompts, the config, the manifest."""

from __future__ import annotations

import json

from cropi.report.markup import Charts, Safe, details, hint, joined, listing, tag
from cropi.report.reading import RunData


def body(run: RunData, charts: Charts) -> Safe:
    """Return the prompt notes, and config and manifest behind a click."""
    notes = joined([tag("h3", "Prompts"), listing(run.notes)]) if run.notes else Safe()
    config = (
        details("config.yaml, resolved", tag("pre", run.config_text)) if run.config_text else Safe()
    )
    manifest = json.dumps(run.manifest, indent=2, ensure_ascii=False) if run.manifest else ""
    about = (
        details("manifest.json: versions, seeds, model, machine", tag("pre", manifest))
        if manifest
        else Safe()
    )
    again = hint(
        "The same config and seed give the same selections; cropi run takes this file as it is."
    )
    return joined([notes, config, about, again if run.config_text else Safe()])
