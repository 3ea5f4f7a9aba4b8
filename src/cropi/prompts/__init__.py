"""Prompts: loaded from anywhere, recognised in any common format, unique, and split cleanly.

`load_prompt_sets` loads all sets of a run; `encode` is the one place that turns a prompt into
token ids. Importing this package loads neither torch nor pyarrow nor datasets.
"""

from cropi.prompts.encoding import Room, drop_overlong, encode, encode_all, has_chat_template
from cropi.prompts.prompt_file import read_prompts, write_prompts
from cropi.prompts.sets import PromptNotes, PromptSets, deduplicate, load_prompt_sets, load_prompts
from cropi.prompts.sources import load_source

__all__ = [
    "PromptNotes",
    "PromptSets",
    "Room",
    "deduplicate",
    "drop_overlong",
    "encode",
    "encode_all",
    "has_chat_template",
    "load_prompt_sets",
    "load_prompts",
    "load_source",
    "read_prompts",
    "write_prompts",
]
