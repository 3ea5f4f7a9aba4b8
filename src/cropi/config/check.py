"""What can be known about a config without torch: its files, rows, names, and what judges answers.

`problems_of` looks at everything and returns all that is wrong; `require_usable` raises it as one
error. Both take about two seconds, and leave out what would need the network.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from cropi.config.config_file import config_values, resolved_from, validate
from cropi.config.run_config import RunConfig
from cropi.errors import InputError
from cropi.plugins import is_built_in, resolve_name
from cropi.policy.checkpoint_source import locate
from cropi.policy.settings import ModelConfig
from cropi.prompts.settings import PromptsConfig, PromptSource
from cropi.prompts.sources import first_prompts
from cropi.schema import Prompt
from cropi.settings_messages import MOST_PROBLEMS, section_in
from cropi.store.object_store import require_supported
from cropi.store.tables import require_set_names
from cropi.text import remote_url, shortened
from cropi.training.engines.trl import TrlSettings
from cropi.training.grpo_keys import check_grpo_settings
from cropi.training.settings import TrainingConfig, WarmupConfig
from cropi.verifiers import Judge
from cropi.verifiers.runtime.pool import WorkerPool
from cropi.verifiers.settings import RewardTerm, VerifiersConfig

FIRST_ROWS = 5
"""Rows of each source that are read, and whose answers its verifier is tried on."""


@dataclass(frozen=True)
class Parts:
    """The sections that name what is outside the config; None for one that is not valid itself."""

    prompts: PromptsConfig | None
    warmup: WarmupConfig | None
    verifiers: VerifiersConfig | None
    model: ModelConfig | None
    training: TrainingConfig | None


def require_usable(config: RunConfig, base: Path | None = None) -> None:
    """Raise InputError with all problems of a config; `base` is the folder of its file."""
    if problems := problems_of(config, base):
        raise InputError(_listed(problems))


def load_checked(source: str, overrides: Sequence[str] = ()) -> RunConfig:
    """Load a config as `load_config` does; where its settings are wrong, look at its files too.

    Raises InputError with everything that is wrong with either.
    """
    values = config_values(source, overrides)
    base = Path(source).parent
    try:
        return validate(values, source, base)
    except InputError as error:
        others = _problems_of_parts(_valid_parts(values, base), base)
        raise InputError(_listed([str(error), *others])) from None


def _listed(problems: list[str]) -> str:
    left_out = len(problems) - MOST_PROBLEMS
    more = [f"and {left_out} more"] if left_out > 0 else []
    return "; ".join([*problems[:MOST_PROBLEMS], *more])


def _valid_parts(values: Mapping[str, Any], base: Path) -> Parts:
    """Those sections of plain values that are valid by themselves."""
    sections: dict[str, Any] = {}
    for part in fields(Parts):
        kind = section_in(RunConfig.model_fields[part.name].annotation)
        assert kind is not None
        try:
            context = {"folders": (base,)}
            sections[part.name] = kind.model_validate(values.get(part.name, {}), context=context)
        except ValidationError:
            sections[part.name] = None
    return Parts(**sections)


def problems_of(config: RunConfig, base: Path | None = None) -> list[str]:
    """One sentence for everything that would stop a run, as far as it can be known without torch.

    `base` is where relative paths start, beside the current directory.
    """
    parts = Parts(*(getattr(config, part.name) for part in fields(Parts)))
    of_out = _url_problems([("out", config.out)], "write")
    return [*_problems_of_parts(parts, base), *of_out]


def _url_problems(places: Iterable[tuple[str, str | None]], doing: str = "read") -> list[str]:
    """What is wrong with places, given with their dotted keys, that are URLs."""
    problems: list[str] = []
    for key, place in places:
        try:
            if place is not None and (url := remote_url(place)):
                require_supported(url, doing)
        except InputError as error:
            problems.append(f"{key}: {error}")
    return problems


def _problems_of_parts(parts: Parts, base: Path | None) -> list[str]:
    problems = _url_problems((place, source.path) for place, source in _sources(parts))
    if parts.model is not None:
        problems += _url_problems([("model.path", parts.model.path)])
    prompts: list[Prompt] = []
    for place, source in _sources(parts):
        try:
            prompts += first_prompts(source, FIRST_ROWS, base)
        except InputError as error:
            problems.append(f"{place}: {shortened(str(error), 600)}")
    checks: list[Callable[[], None]] = [
        lambda: _require_sets(parts.prompts),
        lambda: _require_model(parts.model, base),
        lambda: _require_trainer(parts.training),
    ]
    for require in checks:
        try:
            require()
        except InputError as error:
            problems.append(str(error))
    if parts.verifiers is not None:
        problems += _verifier_problems(parts.verifiers, prompts, base)
    return list(dict.fromkeys(problems))


def _require_sets(prompts: PromptsConfig | None) -> None:
    """Raise InputError for a set without sources, or one called like a column of score files."""
    if prompts is None:
        return
    require_set_names(prompts.validation)
    for kind, sets in (("validation", prompts.validation), ("test", prompts.test)):
        if empty := [name for name, sources in sets.items() if not sources]:
            raise InputError(
                f"prompts.{kind}.{empty[0]} = []: the set has no sources; give one, or remove it"
            )


def _require_model(model: ModelConfig | None, base: Path | None) -> None:
    """Raise InputError for a model folder that lacks files; neither hub nor URL is asked."""
    if model is None or remote_url(model.path):
        return
    if not is_built_in("model", model.path):
        try:
            locate(resolved_from(model.path, base), model.revision)
        except InputError as error:
            raise InputError(f"model.path: {error}") from None


def _require_trainer(training: TrainingConfig | None) -> None:
    """Raise InputError for settings that TRL does not have."""
    if training is not None and isinstance(training.engine.settings, TrlSettings):
        check_grpo_settings(training.engine.settings.grpo)


def _sources(parts: Parts) -> Iterator[tuple[str, PromptSource]]:
    """Every source of prompts with its dotted key; one that appears twice comes once."""
    lists: dict[str, list[PromptSource]] = {}
    if (sets := parts.prompts) is not None:
        lists["prompts.pool"] = sets.pool
        lists |= {f"prompts.validation.{n}": each for n, each in sets.validation.items()}
        lists |= {f"prompts.test.{n}": each for n, each in sets.test.items()}
    if parts.warmup is not None:
        lists["warmup.prompts"] = parts.warmup.prompts
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
