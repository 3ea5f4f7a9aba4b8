"""Settings of where prompts come from and how they become sets."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from cropi.settings import Count, PathText, Section, is_default
from cropi.text import require_names


class PromptSource(Section):
    """Where some prompts come from: exactly one of `path`, `hub`, `reasoning_gym`, `pocket`."""

    path: PathText | None = Field(
        None,
        description="a .jsonl, .json, .csv, .tsv, .parquet or .arrow file, a folder or pattern of "
        "such files, or a folder that `datasets` saved; or the URL of one (s3://, gs://, hf://)",
    )
    hub: str | None = Field(None, description="a dataset on the Hugging Face hub")
    subset: str | None = Field(None, description="the hub dataset's configuration name")
    split: str | None = Field(
        None,
        description="the hub dataset's split, default train; pocket's, default pool; or that of a "
        "folder with several",
    )
    reasoning_gym: str | None = Field(None, description="the name of a reasoning-gym task")
    options: dict[str, Any] = Field(
        default_factory=dict, description="settings of the reasoning-gym task"
    )
    pocket: list[str] | None = Field(None, description="pocket skills; [all] for every one")
    levels: list[str] | None = Field(
        None, description="levels of these pocket skills, such as 'length 4'; default: all"
    )
    prompt: str | None = Field(None, description="the column with the question, if not recognised")
    answer: str | None = Field(None, description="the column with the answer, if not recognised")
    answer_regex: str | None = Field(
        None, description="a regex whose first group is the answer, e.g. '#### (.+)' for GSM8K"
    )
    template: str | None = Field(
        None, description="text around the question, which replaces '{prompt}'"
    )
    system: str | None = Field(None, description="a system message; makes the prompt a chat")
    chat: bool | None = Field(
        None,
        description="true: a text question becomes a user message; false: it stays text; "
        "default: true if the model has a chat template",
    )
    source: str | None = Field(None, description="the name that verifiers.sources are matched with")
    limit: Count | None = Field(None, description="keep this many rows, drawn with the run's seed")
    size: Count | None = Field(
        None, description="rows to generate (reasoning-gym), or per skill (pocket)"
    )

    @model_validator(mode="after")
    def _one_origin(self) -> PromptSource:
        origins = [k for k in ("path", "hub", "reasoning_gym", "pocket") if getattr(self, k)]
        if len(origins) != 1:
            given = " and ".join(origins) or "none"
            raise ValueError(
                f"a prompt source needs one of path, hub, reasoning_gym, pocket; got {given}"
            )
        self._require_meant(origins[0])
        if self.template is not None and "{prompt}" not in self.template:
            raise ValueError(f"template {self.template!r} lacks '{{prompt}}'; add it")
        return self

    def _require_meant(self, origin: str) -> None:
        """Raise ValueError for a key that this kind of source would ignore."""
        meant = {
            "subset": {"hub"},
            "split": {"hub", "pocket", "path"},
            "levels": {"pocket"},
            "options": {"reasoning_gym"},
            "size": {"reasoning_gym", "pocket"},
        }
        for key, origins in meant.items():
            if not is_default(self, key) and origin not in origins:
                raise ValueError(
                    f"{key} has no effect on a source of kind {origin}, only on "
                    f"{' and '.join(sorted(origins))}; remove it"
                )


class PromptsConfig(Section):
    """The pool to select from, the validation sets that guide selection, and the test sets."""

    pool: list[PromptSource] = Field(min_length=1, description="prompts to select from")
    validation: dict[str, list[PromptSource]] = Field(
        default_factory=dict, description="sets that influence is computed for, by name"
    )
    test: dict[str, list[PromptSource]] = Field(
        default_factory=dict,
        description="sets that are evaluated; without any, the validation sets are",
    )
    overlong: Literal["error", "drop"] = Field(
        "error", description="prompts over max_tokens stop the run, or are dropped and counted"
    )
    max_tokens: Count | None = Field(
        None, description="longest prompt, in tokens; default: the context minus new tokens"
    )
    overlap: Literal["remove", "keep", "error"] = Field(
        "remove",
        description="what happens to pool prompts whose text is also in validation or test",
    )
    limit: Count | None = Field(
        None,
        description="for a trial run: keep this many prompts of every set, drawn with the seed",
    )
    chat_template_kwargs: dict[str, Any] = Field(
        default_factory=dict, description="arguments of the chat template"
    )

    @field_validator("validation", "test")
    @classmethod
    def _names_of_files(cls, sets: dict[str, list[PromptSource]]) -> dict[str, list[PromptSource]]:
        require_names(sets, "a set of prompts")
        return sets
