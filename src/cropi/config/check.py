"""What can be known about a config without torch: its files, rows, names, and what judges answers.

`problems_of` looks at everything and returns all that is wrong; `require_usable` raises it as one
error. Both take about two seconds, and leave out what would need the network.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

from cropi.config.run_config import RunConfig
from cropi.errors import InputError
from cropi.plugins import resolve_name
from cropi.prompts.settings import PromptSource
from cropi.prompts.sources import first_prompts
from cropi.schema import Prompt
from cropi.store.tables import require_set_names
from cropi.text import shortened
from cropi.verifiers import Judge
from cropi.verifiers.runtime.pool import WorkerPool
from cropi.verifiers.settings import RewardTerm, VerifiersConfig

FIRST_ROWS = 5
"""Rows of each source that are read, and whose answers its verifier is tried on."""
MOST_PROBLEMS = 20


def require_usable(config: RunConfig, base: Path | None = None) -> None:
    """Raise InputError with all problems of a config; `base` is the folder of its file."""
    problems = problems_of(config, base)
    if problems:
        left_out = len(problems) - MOST_PROBLEMS
        more = [f"and {left_out} more"] if left_out > 0 else []
        raise InputError("; ".join([*problems[:MOST_PROBLEMS], *more]))


def problems_of(config: RunConfig, base: Path | None = None) -> list[str]:
    """One sentence for everything that would stop a run, as far as it can be known without torch.

    `base` is where relative paths start, beside the current directory.
    """
    problems: list[str] = []
    prompts: list[Prompt] = []
    for place, source in _sources(config):
        try:
            prompts += first_prompts(source, FIRST_ROWS, base)
        except InputError as error:
            problems.append(f"{place}: {shortened(str(error), 600)}")
    try:
        require_set_names(config.prompts.validation)
    except InputError as error:
        problems.append(str(error))
    problems += _verifier_problems(config.verifiers, prompts, base)
    return list(dict.fromkeys(problems))


def _sources(config: RunConfig) -> Iterator[tuple[str, PromptSource]]:
    """Every source of prompts with its dotted key; one that is there twice comes once."""
    lists = {"prompts.pool": config.prompts.pool}
    lists |= {f"prompts.validation.{n}": each for n, each in config.prompts.validation.items()}
    lists |= {f"prompts.test.{n}": each for n, each in config.prompts.test.items()}
    lists["warmup.prompts"] = config.warmup.prompts
    seen: list[PromptSource] = []
    for key, sources in lists.items():
        for number, source in enumerate(sources):
            if source not in seen:
                seen.append(source)
                yield f"{key}.{number}", source


def _verifier_problems(
    settings: VerifiersConfig, prompts: list[Prompt], base: Path | None
) -> list[str]:
    """What is wrong with the verifiers, or else with the first answers that they would judge."""
    folders = () if base is None else (base,)
    problems: list[str] = []
    with closing(WorkerPool(1, settings.timeout, folders, memory_gb=settings.memory_gb)) as pool:
        for key, function in _functions(settings):
            try:
                pool.load([resolve_name("verifier", function, folders)])
            except InputError as error:
                problems.append(f"{key}: {shortened(str(error), 600)}")
    return problems or _answer_problems(settings, prompts, base)


def _answer_problems(
    settings: VerifiersConfig, prompts: list[Prompt], base: Path | None
) -> list[str]:
    """What the verifiers cannot read of these prompts' answers, source by source."""
    by_source: dict[str, list[Prompt]] = {}
    for prompt in prompts:
        by_source.setdefault(prompt.source, []).append(prompt)
    problems: list[str] = []
    with Judge(settings, base) as judge:
        for samples in by_source.values():
            try:
                judge.check(samples)
            except InputError as error:
                problems.append(shortened(str(error), 600))
    return problems


def _functions(settings: VerifiersConfig) -> Iterator[tuple[str, str]]:
    """Every verifier that the settings name, with its dotted key."""
    chosen = {"verifiers.default": settings.default}
    chosen |= {f"verifiers.sources.{name}": each for name, each in settings.sources.items()}
    for key, functions in chosen.items():
        for function in [functions] if isinstance(functions, str) else functions:
            yield key, function.function if isinstance(function, RewardTerm) else function
