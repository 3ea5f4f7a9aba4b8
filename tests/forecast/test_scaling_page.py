"""The tables of docs/scaling.md are those that the code makes."""

from __future__ import annotations

import importlib.util
from pathlib import Path

SCRIPT = Path(__file__).parents[2] / "scripts" / "scaling_tables.py"


def test_the_page_has_the_tables_of_the_code() -> None:
    spec = importlib.util.spec_from_file_location("scaling_tables", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    page = script.PAGE.read_text(encoding="utf-8")
    assert script.with_tables(page) == page, "run python scripts/scaling_tables.py --write"
