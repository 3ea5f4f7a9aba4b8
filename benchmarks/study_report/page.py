"""Filling what is generated in docs/results.md, between its markers."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from cropi.errors import InputError
from cropi.store.files import atomic_write
from study_report.default_table import baselines_table, default_tables
from study_report.results import APART, BASELINES, DEFAULT, LANGUAGE_MODELS, Results
from study_report.tables import EMPTY, bar_table, costs_table, regime_tables, setting_table

BLOCK = re.compile(r"<!-- (?P<kind>table|figure): (?P<name>[\w.-]+) -->\n.*?<!-- end -->", re.S)

NOT_YET = {
    **{f"figure: {study}": "" for study in LANGUAGE_MODELS},
    **{f"table: {study}": EMPTY for study in LANGUAGE_MODELS},
    "table: costs": EMPTY,
    f"table: {DEFAULT}": EMPTY,
    f"table: {BASELINES}": EMPTY,
}
"""What stands in the blocks of a suite of which no cell is finished."""


def fill(page: Path, results: Results, others: Mapping[str, Results]) -> None:
    """Rewrite every generated block of the page; all other text stays.

    Raises InputError if the page cannot be read, has a block that nobody fills, or lacks one.
    """
    try:
        text = page.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read {page}: {error}") from error
    with atomic_write(page) as part:
        part.write_text(filled(text, results, others), encoding="utf-8", newline="\n")


def filled(text: str, results: Results, others: Mapping[str, Results] | None = None) -> str:
    """Return the page's text with its blocks filled: pocket's, and other suites' by their names."""
    contents = blocks(results)
    for name, suite in (others or {}).items():
        contents |= BLOCKS_OF[name](suite)
    present = [f"{m['kind']}: {m['name']}" for m in BLOCK.finditer(text)]
    for name in contents:
        if present.count(name) != 1:
            raise InputError(
                f"the page has {present.count(name)} blocks `<!-- {name} -->` ... `<!-- end -->`; "
                "it needs one"
            )
    contents = NOT_YET | contents
    for name in present:
        if name not in contents:
            raise InputError(
                f"no table or figure is called `<!-- {name} -->`; allowed: {', '.join(contents)}"
            )

    def block(match: re.Match[str]) -> str:
        name = f"{match['kind']}: {match['name']}"
        inside = f"\n{contents[name]}\n\n" if contents[name] else ""
        return f"<!-- {name} -->\n{inside}<!-- end -->"

    return BLOCK.sub(block, text)


def blocks(results: Results) -> dict[str, str]:
    """Return the content of every block, by its marker."""
    contents = {
        "table: setting": setting_table(results),
        "table: bar": bar_table(results),
    }
    return contents | regime_blocks(results)


def language_model_blocks(results: Results) -> dict[str, str]:
    """Return the blocks of the studies on a language model."""
    return regime_blocks(results) | {"table: costs": costs_table(results)}


def default_blocks(results: Results) -> dict[str, str]:
    """Return the block of the default strategy."""
    return {f"table: {DEFAULT}": default_tables(results)}


def baselines_blocks(results: Results) -> dict[str, str]:
    """Return the block of baselines that need no gradient."""
    return {f"table: {BASELINES}": baselines_table(results)}


def regime_blocks(results: Results) -> dict[str, str]:
    """Return the figure and the tables of every regime."""
    contents = {}
    for name, regime in results.regimes.items():
        caption = f"Targeted accuracy in {name}, against steps and against compute"
        contents[f"figure: {name}"] = (
            f"![{caption}](figures/{name}.svg)" if regime.strategies else ""
        )
        contents[f"table: {name}"] = regime_tables(regime)
    return contents


BLOCKS_OF = {
    APART: language_model_blocks,
    DEFAULT: default_blocks,
    BASELINES: baselines_blocks,
}
