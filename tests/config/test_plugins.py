"""One file makes a plug-in of any kind; names and settings that there are not are refused."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import pickle
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from cropi import plugins
from cropi.config import load_config, to_yaml, validate
from cropi.errors import InputError
from cropi.exchange.exports import export_selection
from cropi.exchange.imports.rollout_folder import read_rollout_log
from cropi.plugins import KINDS, plugin_names
from cropi.policy.checkpoint_source import locate
from cropi.rollouts import load_engine
from cropi.rollouts.settings import EngineChoice
from cropi.schema import Prompt, Selection
from cropi.selection import find_strategy
from cropi.selection.settings import StrategyChoice
from cropi.sketches import SketchChoice, make_sketch
from cropi.training import find_trainer
from cropi.training.settings import TrainerChoice
from cropi.users_code import code_at
from cropi.verifiers.user import find_verifier

SHARED = """
from cropi.plugins import plugin
from cropi.settings import Section


class KnobSettings(Section):
    knob: int = 1
"""
FILES = {
    "sketch": """
from cropi.sketches.sketch import PlainSketch

@plugin("sketch", "newcomer", KnobSettings)
class Newcomer(PlainSketch):
    def __init__(self, settings, shapes, seed):
        self.dim, self.identity = settings.knob, {"shapes": str(sorted(shapes)), "seed": str(seed)}

    def project(self, name, rows, gradient, out):
        out += gradient.sum((1, 2))[:, None]
""",
    "strategy": """
from cropi.schema import Selection

@plugin("strategy", "newcomer")
class Newcomer:
    Settings = KnobSettings
    scoring = "never"

    def __init__(self, settings):
        self.knob = settings.knob

    def select(self, context):
        return Selection(["a"], [float(self.knob)])
""",
    "engine": """
@plugin("engine", "newcomer", KnobSettings)
def newcomer(settings, policy):
    return settings.knob, policy
""",
    "trainer": """
@plugin("trainer", "newcomer", KnobSettings)
class Newcomer:
    def __init__(self, settings):
        self.knob = settings.knob

    def check(self, plan):
        return []

    def train(self, plan, judge, out, evaluate, progress, outcome):
        return outcome
""",
    "verifier": """
@plugin("verifier", "newcomer")
def verify(prompt, completion):
    return float(completion == prompt.answer + "!")
""",
    "model": """
from pathlib import Path

@plugin("model", "newcomer")
def newcomer():
    return Path(__file__).parent
""",
    "rollout_format": """
from cropi.exchange.imports.logged import LoggedResponse

@plugin("rollout_format", "newcomer")
class Newcomer:
    def recognises(self, row):
        return "newcomer" in row

    def responses(self, rows, file):
        for number, row in rows:
            yield LoggedResponse(row["newcomer"], "text", file.reward(row, 1, file.where(number)))
""",
    "export": """
@plugin("export", "newcomer")
class Newcomer:
    suffix, read_in, chats, files = ".jsonl", "nothing", False, {}

    def row(self, prompt, place):
        return {"question": prompt.content, "place": place.rank}

    def command(self, start):
        return f"newcomer {start.path('selection.jsonl')}"
""",
}
CHOICES = {
    "sketch": SketchChoice,
    "strategy": StrategyChoice,
    "engine": EngineChoice,
    "trainer": TrainerChoice,
}
PLACES = {
    "sketch": "influence.sketch",
    "strategy": "selection.strategy",
    "engine": "rollouts.engine",
    "trainer": "training.engine",
}


@pytest.fixture
def add_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], None]]:
    """Puts one file into the folder of a kind, as a new built-in would be."""

    def add(kind: str) -> None:
        package = importlib.import_module(KINDS[kind].package)
        (tmp_path / "newcomer.py").write_text(SHARED + FILES[kind])
        monkeypatch.setattr(package, "__path__", [*package.__path__, str(tmp_path)])
        importlib.invalidate_caches()

    yield add
    for kind in KINDS.values():
        sys.modules.pop(f"{kind.package}.newcomer", None)
    for registered in plugins._registered.values():
        registered.pop("newcomer", None)


def test_every_kind_has_an_example() -> None:
    assert set(FILES) == set(KINDS)


@pytest.mark.parametrize("kind", KINDS)
def test_a_new_built_in_is_one_file(kind: str, add_file: Callable[[str], None]) -> None:
    assert "newcomer" not in plugin_names(kind)
    add_file(kind)
    assert "newcomer" in plugin_names(kind)


def test_a_new_file_of_each_kind_works_with_its_settings(
    add_file: Callable[[str], None], tmp_path: Path
) -> None:
    for kind in KINDS:
        add_file(kind)
        plugin_names(kind)
    sketch = make_sketch("newcomer", {"w": (2, 3)}, 7, knob=3)
    assert (sketch.dim, sketch.identity) == (3, {"shapes": "['w']", "seed": "7"})
    strategy = find_strategy(StrategyChoice.of("newcomer", knob=4))
    assert list(strategy.select(None).scores) == [4.0]  # type: ignore[arg-type]
    knob, policy = load_engine(EngineChoice.of("newcomer", knob=6), "pocket")
    assert (knob, policy.path) == (6, "pocket")
    assert find_trainer(TrainerChoice.of("newcomer", knob=5)).knob == 5
    verifier = find_verifier("newcomer")
    assert verifier(Prompt("p", "4", "sums", prompt="2+2"), "4!") == 1.0
    (tmp_path / "config.json").write_text("{}")
    for name in ("model.safetensors", "tokenizer.json"):
        (tmp_path / name).touch()
    assert locate("newcomer", None).location == str(tmp_path)
    sums = Prompt("p", "4", "sums", prompt="2+2")
    exported = export_selection(Selection(["p"], np.ones(1)), [sums], "newcomer", tmp_path / "out")
    assert exported.command == f"newcomer {tmp_path}/out/selection.jsonl"
    (tmp_path / "log.jsonl").write_text('{"newcomer": "2+2"}')
    log = read_rollout_log(tmp_path / "log.jsonl")
    assert (log.format, log.responses[0].prompt) == ("newcomer", "2+2")


@pytest.mark.parametrize("kind", PLACES)
def test_a_config_takes_a_new_plugin_with_its_settings_and_refuses_others(
    kind: str, add_file: Callable[[str], None]
) -> None:
    add_file(kind)
    place = PLACES[kind]
    config = load_config("pocket", [f"{place}={{name: newcomer, knob: 9}}"])
    section, _, key = place.partition(".")
    assert getattr(getattr(config, section), key).settings.knob == 9
    assert "name: newcomer\n    knob: 9" in to_yaml(config)
    with pytest.raises(InputError, match=rf"unknown key {place}\.nob .*newcomer has knob; did you"):
        load_config("pocket", [f"{place}={{name: newcomer, nob: 9}}"])
    with pytest.raises(InputError, match=rf"{place}\.knob = 'x': give a whole number"):
        load_config("pocket", [f"{place}={{name: newcomer, knob: x}}"])


@pytest.mark.parametrize("kind", PLACES)
def test_a_users_file_is_found_beside_the_config_and_loads_from_anywhere(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    users = FILES[kind].replace("@plugin", "# @plugin")
    if kind != "strategy":
        users += "\nfor each in ('newcomer', 'Newcomer'):\n"
        users += "    if each in globals(): globals()[each].Settings = KnobSettings\n"
    (tmp_path / f"my_{kind}.py").write_text(SHARED + users)
    name = "newcomer" if kind == "engine" else "Newcomer"
    section, _, key = PLACES[kind].partition(".")
    path = tmp_path / "run.yaml"
    path.write_text(
        f"extends: pocket\n{section}: {{{key}: {{name: my_{kind}.py:{name}, knob: 2}}}}\n"
    )
    choice = getattr(getattr(load_config(str(path)), section), key)
    assert choice.name == f"{tmp_path}/my_{kind}.py:{name}"
    assert choice.settings.knob == 2
    assert choice.slug == f"my_{kind}-{name}"
    again = validate(load_config(str(path)).model_dump(mode="json"), "again")
    assert getattr(getattr(again, section), key) == choice


@pytest.mark.parametrize(
    ("override", "parts"),
    [
        ("influence.sketch.dim=512", ["influence.sketch.dim", "exact has no settings"]),
        ("influence.sketch={name: kronecker, ratio: 0.1}", ["kronecker has dim"]),
        ("selection.strategy={name: random, memory: 0}", ["random has no settings"]),
        ("baselines=[{name: full, memory: 0}]", ["full has no settings"]),
        ("rollouts.engine.batch=5", ["transformers has batch_size", "did you mean"]),
        ("selection.strategy=[cropi]", ["neither a name nor a mapping"]),
        ("selection.strategy={name: 3}", ["name 3 is not text"]),
        ("rollouts.engine=gone.py:E", ["rollout engine 'gone.py:E'", "is not a file"]),
    ],
)
def test_what_a_plugin_does_not_have_is_refused(override: str, parts: list[str]) -> None:
    with pytest.raises(InputError) as caught:
        load_config("pocket", [override])
    assert all(part in str(caught.value) for part in parts), str(caught.value)


def test_a_dotted_setting_makes_a_mapping_of_a_name_and_another_name_drops_old_settings() -> None:
    config = load_config(
        "pocket",
        [
            "selection.strategy=ranking",
            "selection.strategy.memory=0",
            "selection.strategy.noise_floor=1",
        ],
    )
    settings = config.selection.strategy.settings
    assert (settings.memory, settings.noise_floor) == (0, 1)
    config = load_config(
        "pocket", ["selection.strategy.scoring=stage", "selection.strategy.name=one_shot"]
    )
    assert config.selection.strategy == StrategyChoice.of("one_shot")


def test_an_heir_that_chooses_another_plugin_does_not_inherit_settings(tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text(
        "extends: pocket\nselection: {strategy: {name: cropi, memory: 0}}\n"
        "influence: {sketch: {name: sparse, ratio: 0.5}}\n"
    )
    (tmp_path / "heir.yaml").write_text(
        "extends: base.yaml\nselection: {strategy: random}\ninfluence: {sketch: {dim: 64}}\n"
    )
    config = load_config(str(tmp_path / "heir.yaml"))
    assert config.selection.strategy == StrategyChoice.of("random")
    assert config.influence.sketch == SketchChoice.of("sparse", ratio=0.5, dim=64)


@pytest.mark.parametrize("preset", ["pocket", "smollm2"])
def test_loading_a_preset_imports_neither_torch_nor_transformers(preset: str) -> None:
    program = (
        "import sys, cropi.config; cropi.config.load_config(sys.argv[1]); "
        "print([m for m in ('torch', 'transformers', 'trl', 'pyarrow') if m in sys.modules])"
    )
    command = [sys.executable, "-c", program, preset]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_shapes_mapping_is_all_that_a_named_sketch_needs() -> None:
    sketch = make_sketch(SketchChoice.of("windowed", dim=16), {"w": (4, 8)}, 0)
    out = torch.zeros(1, 16)
    sketch.project("w", slice(0, 4), torch.ones(1, 4, 8), out)
    assert np.isfinite(out.numpy()).all()
    assert out.any()


def test_the_choice_of_a_users_file_reaches_a_process_that_has_not_loaded_it(
    tmp_path: Path,
) -> None:
    """Runs of a study are given to fresh processes, with the settings of a user's own strategy."""
    file = tmp_path / "mine.py"
    file.write_text(
        "from cropi.settings import Section\n"
        "class Mine:\n"
        "    class Settings(Section):\n"
        "        knob: int = 1\n"
        "    scoring = 'never'\n"
        "    def __init__(self, settings): self.settings = settings\n"
        "    def select(self, context): ...\n"
    )
    settings = {"selection": {"strategy": {"name": f"{file}:Mine", "knob": 7}}}
    config = validate({"model": {"path": "pocket"}, "prompts": {"pool": [{"pocket": ["all"]}]}}
                      | settings, "test")  # fmt: skip
    (tmp_path / "config.pickle").write_bytes(pickle.dumps(config))
    read = (
        "import pickle, sys; config = pickle.load(open(sys.argv[1], 'rb')); "
        "print(config.selection.strategy.build().settings.knob)"
    )
    command = [sys.executable, "-c", read, str(tmp_path / "config.pickle")]
    assert subprocess.check_output(command, text=True).strip() == "7"
    assert pickle.loads(pickle.dumps(config)) == config


GRADER = {
    "grader.py": "import json, torch, lists\ndef grade(r):\n    from tools.text import strip\n",
    "lists.py": "import grader\nfrom cropi.text import plural",
    "tools/__init__.py": "from .numbers import *",
    "tools/text.py": "from . import letters as l\nfrom ..outside import x\nfrom .... import far",
    "tools/numbers.py": "from .deep.leaf import value",
    "tools/letters.py": "this is not Python",
    "tools/deep/leaf.py": "value = 1",
    "outside.py": "",
    "json.py": "in the place of which Python's own is imported",
    "unused.py": "",
}
OF_GRADER = GRADER.keys() - {"json.py", "unused.py"}


@pytest.fixture
def grader(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "of the user"
    for name, text in GRADER.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    monkeypatch.syspath_prepend(str(folder))
    return folder


@pytest.mark.parametrize("name", GRADER)
@pytest.mark.parametrize("place", ["grader.py", "grader"])
def test_the_code_of_a_plug_in_is_that_of_its_file_and_of_what_it_imports_beside_it(
    grader: Path, name: str, place: str
) -> None:
    place = str(grader / place) if place.endswith(".py") else place
    before = code_at(place)
    (grader / name).write_text(f"{GRADER[name]}\n# changed")
    assert (code_at(place) != before) == (name in OF_GRADER)
    (grader / name).write_text(GRADER[name])
    assert code_at(place) == before


def test_what_a_module_of_a_users_package_imports_is_a_part_of_it(grader: Path) -> None:
    before = code_at("tools.text")
    (grader / "tools" / "deep" / "leaf.py").write_text("value = 2")
    assert code_at("tools.text") != before


def test_what_an_installed_module_imports_is_not_followed() -> None:
    spec = importlib.util.find_spec("yaml")
    assert spec is not None
    assert spec.origin is not None
    assert code_at("yaml") == hashlib.sha256(Path(spec.origin).read_bytes()).hexdigest()[:16]


def test_a_file_that_imports_nothing_beside_it_has_the_hash_of_its_content(tmp_path: Path) -> None:
    (tmp_path / "alone.py").write_text("import math")
    expected = hashlib.sha256(b"import math").hexdigest()[:16]
    assert code_at(str(tmp_path / "alone.py")) == expected
    assert code_at(str(tmp_path / "gone.py")) == ""
    assert code_at("no_such_module") == ""
