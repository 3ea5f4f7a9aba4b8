"""The documents are true: their links, paths, settings, configs, commands and examples."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import typer
import yaml

from cropi.cli import app
from cropi.config import PromptSource, TrainerChoice, TrainingConfig, load_config, presets
from cropi.config.settings_page import markdown
from cropi.plugins import KINDS
from cropi.policy.loading import load_policy
from cropi.policy.optimizer_state import second_moments
from cropi.prompts import load_source
from cropi.rollouts.statistics import rollout_statistics
from cropi.schema import Prompt
from cropi.selection import SelectionContext, find_strategy
from cropi.sketches import make_sketch
from cropi.training import train
from cropi.verifiers.user import find_verifier
from support.rollout_files import group
from support.sketching import SHAPES, assert_close, flat, inner_products, project, vectors

ROOT = Path(__file__).parents[1]
PAGES = {
    path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8")
    for path in [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]
}
HISTORY = {"docs/log.md", "CHANGELOG.md"}
"""Pages in which names and paths are those of their day."""
CURRENT = sorted(PAGES.keys() - HISTORY)
PLACES = (ROOT, ROOT / "src" / "cropi")
"""Where the paths in the text of a page may start."""
LONGEST_LINE = 125
"""Columns of prose; rows of tables and HTML cannot be wrapped."""

LINK = re.compile(r"\]\((?!https?://)([^)\s]+)\)")
REFERENCE = re.compile(r"^\[[^\]\n]+\]: (#\S+)$", re.M)
FENCED = re.compile(r"^( *)```(\w*)\n(.*?)^\1```", re.M | re.S)
INLINE = re.compile(r"`([^`\n]+)`")
FILE = re.compile(r"[\w./-]+/[\w.-]+\.(?:py|yaml|json|md)")
SETTING = re.compile(
    r"training\.engine\.grpo|(?:model|prompts|verifiers|warmup|rollouts|influence|selection|curriculum|training|evaluation"
    r"|compare|scale)(?:\.\w+)+"
)


def blocks(page: str, language: str) -> list[str]:
    """The fenced blocks of a page in one language, or in none."""
    return [text for _, tag, text in FENCED.findall(PAGES[page]) if tag == language]


def prose(page: str) -> str:
    return FENCED.sub("", PAGES[page])


def anchors(text: str) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    titles = re.findall(r"^#+ (.+)$", FENCED.sub("", text), re.M)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def commands() -> list[str]:
    """Every command line that begins with `cropi`, without its comment."""
    texts = [text for page in CURRENT for text in blocks(page, "")]
    lines = [line for text in texts for line in text.replace("\\\n", " ").splitlines()]
    stripped = (re.sub(r"\s# .*", "", line).strip() for line in lines)
    return sorted({re.sub(r"^\w+=\S+ (?=cropi )", "", c) for c in stripped if "cropi " in c[:30]})


def parse(line: str) -> dict[str, Any]:
    """The parameters of a command line, parsed and checked; nothing is run."""
    command: Any = typer.main.get_command(app)
    _, *arguments = shlex.split(line)
    while hasattr(command, "commands"):
        name, *arguments = arguments
        assert name in command.commands, f"there is no command {name!r}"
        command = command.commands[name]
    return dict(command.make_context("cropi", arguments).params)


@pytest.mark.parametrize("page", sorted(PAGES))
def test_every_link_leads_somewhere(page: str) -> None:
    folder = (ROOT / page).parent
    for link in [*LINK.findall(prose(page)), *REFERENCE.findall(prose(page))]:
        path, _, anchor = link.partition("#")
        target = folder / path if path else ROOT / page
        assert target.exists(), f"{page} links to {link}"
        if anchor:
            assert anchor in anchors(target.read_text(encoding="utf-8")), f"{page} links to {link}"


@pytest.mark.parametrize("page", CURRENT)
def test_every_file_that_a_page_names_exists(page: str) -> None:
    named = {path for code in INLINE.findall(prose(page)) for path in FILE.findall(code)}
    named = {path for path in named if not path.startswith(("runs/", "/"))}
    absent = {path for path in named if not any((place / path).exists() for place in PLACES)}
    assert absent == set()


def test_each_row_of_where_things_are_links_to_a_source_file() -> None:
    table = PAGES["CONTRIBUTING.md"].split("\n## Where things are\n")[1].split("\n## ")[0]
    rows = [line for line in table.splitlines() if line.startswith("| ")][1:]
    assert len(rows) > 25
    for row in rows:
        links = re.findall(r"\[([\w./]+)\]\((src/cropi/[\w./]+\.py)\)", row)
        assert links, row
        assert all(path == f"src/cropi/{title}" for title, path in links), row


def test_the_guide_lists_every_kind_of_plug_in() -> None:
    table = PAGES["CONTRIBUTING.md"].split("\n## Adding a plug-in\n")[1]
    listed = re.findall(r"^\| `(\w+)`.*? \| `([\w/]+)/` \|", table, re.M)
    folders = {kind: folder.replace("/", ".") for kind, folder in listed}
    assert folders == {name: k.package.removeprefix("cropi.") for name, k in KINDS.items()}


@pytest.mark.parametrize("page", sorted({*CURRENT, "docs/log.md"} - {"docs/results.md"}))
def test_prose_is_wrapped(page: str) -> None:
    lines = prose(page).splitlines()
    assert [each for each in lines if len(each) > LONGEST_LINE and each[:1] not in "|<"] == []


@pytest.mark.parametrize("page", CURRENT)
def test_every_setting_that_a_page_names_exists(page: str) -> None:
    settings = markdown()
    for code in INLINE.findall(prose(page)):
        match = SETTING.match(code)
        if match and not code.endswith((".py", ".json", ".parquet", ".yaml")):
            assert re.search(rf"\b{re.escape(match[0])}\b", settings), f"{page}: {match[0]}"


@pytest.mark.parametrize("page", CURRENT)
def test_every_config_in_a_page_is_valid(page: str, tmp_path: Path) -> None:
    for number, text in enumerate(blocks(page, "yaml")):
        config = tmp_path / f"{number}.yaml"
        config.write_text(text)
        if "model" not in yaml.safe_load(text):
            config.write_text(f"extends: pocket\n{text}")
        assert load_config(str(config)).targeted


def test_the_readme_has_a_config_and_commands() -> None:
    assert len(blocks("README.md", "yaml")) == 1
    assert len(commands()) > 15


@pytest.mark.parametrize("line", commands())
def test_every_command_in_a_page_parses(line: str) -> None:
    given = parse(line)
    if "config" in given:
        preset = given["config"] if given["config"] in presets() else "pocket"
        load_config(preset, given["settings"] or [])


# The plug-ins of CONTRIBUTING.md


@pytest.fixture
def example(tmp_path: Path) -> Any:
    """Writes an example of CONTRIBUTING.md to its file, and returns the plug-in's name."""

    def write(file: str, name: str) -> str:
        texts = [t for t in blocks("CONTRIBUTING.md", "python") if t.startswith(f"# {file}\n")]
        assert len(texts) == 1
        (tmp_path / file).write_text(texts[0])
        return f"{tmp_path / file}:{name}"

    return write


def test_the_strategy_of_the_guide_selects_the_hardest(example: Any) -> None:
    strategy = find_strategy(example("my_strategy.py", "Hardest"))
    rng = np.random.default_rng(0)
    groups = [group(f"p{n}", rng, dull=n % 3 == 0) for n in range(12)]
    statistics = rollout_statistics(groups, None)
    selection = strategy.select(SelectionContext(statistics=statistics, count=3))
    rates = dict(zip(statistics.prompt_ids, statistics.pass_rates, strict=True))
    informative = [g.prompt_id for g in groups if g.informative]
    expected = sorted(informative, key=lambda prompt_id: (rates[prompt_id], prompt_id))[:3]
    assert selection.prompt_ids == expected


def test_the_verifier_of_the_guide_judges(example: Any) -> None:
    verifier = find_verifier(example("my_verifier.py", "last_number"))
    prompt = Prompt("p", "-12.5", "math", prompt="?")
    texts = ["so it is -12.50", "12.5", "first -12.5, then 3", "no number"]
    assert [verifier(prompt, text) for text in texts] == [1.0, 0.0, 0.0, 0.0]


def test_the_trainer_of_the_guide_trains_stage_after_stage(example: Any, tmp_path: Path) -> None:
    engine = TrainerChoice.of(example("my_trainer.py", "Imitation"))
    settings = TrainingConfig(engine=engine, prompts_per_step=8, learning_rate=1e-4)
    prompts = load_source(PromptSource(pocket=["sort"], split="pool", size=8), 0)
    ids = [prompt.prompt_id for prompt in prompts]
    losses = []
    for number, start in enumerate(["pocket", tmp_path / "0"]):
        out = tmp_path / str(number)
        done = train(start, prompts, ids, out, settings, steps=2, carry_optimizer=number > 0)
        assert [row["step"] for row in done.log] == [2 * number + 1, 2 * number + 2]
        moments = torch.load(out / "optimizer.pt", weights_only=True)["state"]
        assert {float(row["step"]) for row in moments.values()} == {2.0 * number + 2}
        assert second_moments(out, load_policy(out).model)
        losses += [row["loss"] for row in done.log]
    assert losses[-1] < losses[0]


def test_the_sketch_of_the_guide_is_unbiased_and_does_not_depend_on_tiles(example: Any) -> None:
    name = example("my_sketch.py", "SignSketch")
    gradients = vectors(2)
    whole = project(make_sketch(name, SHAPES, 0, dim=32), gradients)
    for listed in (False, True):
        tiles = project(make_sketch(name, SHAPES, 0, dim=32), gradients, 7, listed)
        assert_close(tiles, whole)
    products = inner_products(lambda s: make_sketch(name, SHAPES, s, dim=32), gradients, 60)
    exact = flat(gradients) @ flat(gradients).T
    error = products.std(0) / 60**0.5
    assert ((products.mean(0) - exact).abs() < 4 * error).all()
