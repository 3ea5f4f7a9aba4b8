"""How often the built-in verifiers err on GSM8K's answers, and how many responses they judge.

    python benchmarks/verifiers.py GSM8K_FOLDER

The folder holds `train.jsonl` and `test.jsonl`. Every answer must read as itself in several forms;
answers that were perturbed (off by one, two digits swapped, the sign, the unit) must not. Writes
benchmarks/results/verifiers.json.
"""

from __future__ import annotations

import json
import random
import sys
import time
from collections.abc import Iterable
from pathlib import Path

from cropi.schema import Prompt
from cropi.verifiers import Judge
from cropi.verifiers.settings import VerifiersConfig

RESULTS = Path(__file__).parent / "results" / "verifiers.json"
FORMS = (
    "So it is \\boxed{%s}.",
    "<think>Let me see.</think>The answer is %s.",
    "#### %s",
    "So she has %s",
    "<answer>%s</answer>",
    "It is **%s**",
)
UNITS = ("dollars", "hours", "minutes", "apples", "metres", "cents", "kg")
PERTURBED = 2000


def main(folder: Path) -> None:
    """Measure both verifiers, print and write the results."""
    worked = [
        json.loads(line)["answer"]
        for name in ("train", "test")
        for line in (folder / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    answers = [text.rpartition("####")[2].strip() for text in worked]
    right = [(text, text) for text in worked]
    right += [(a, FORMS[i % len(FORMS)] % a) for i, a in enumerate(answers)]
    generator = random.Random(0)
    pairs = [perturbed(generator.choice(answers), generator) for _ in range(PERTURBED)]
    wrong = [(gold, form % other) for gold, other in pairs for form in FORMS]
    results = {name: measure(name, right, wrong) for name in ("math", "numeric")}
    RESULTS.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(results, indent=1))


def measure(
    name: str, right: list[tuple[str, str]], wrong: list[tuple[str, str]]
) -> dict[str, float]:
    """Return counts of errors and the responses judged per second, start-up excluded."""
    with Judge(VerifiersConfig(default=name, workers=2)) as judge:
        judge.judge(items(right[:500]))
        start = time.perf_counter()
        rewards = [v.reward for v in judge.judge(items(right))]
        seconds = time.perf_counter() - start
        false_rewards = [v.reward for v in judge.judge(items(wrong))]
    return {
        "right": len(right),
        "right_without_reward": sum(r != 1 for r in rewards),
        "wrong": len(wrong),
        "wrong_with_reward": sum(r != 0 for r in false_rewards),
        "responses_per_second": round(len(right) / seconds),
    }


def items(pairs: Iterable[tuple[str, str]]) -> list[tuple[Prompt, str]]:
    """Return pairs of answer and response as the judge takes them."""
    return [(Prompt("p", gold, "gsm8k", prompt="q"), response) for gold, response in pairs]


def perturbed(answer: str, generator: random.Random) -> tuple[str, str]:
    """Return an answer and another that differs from it in one respect."""
    value = int(answer.replace(",", ""))
    match generator.randrange(4):
        case 0:
            return answer, str(value + generator.choice((-1, 1)))
        case 1:
            return answer, swapped(value, generator)
        case 2:
            return answer, str(-value) if value else "1"
    unit, other = generator.sample(UNITS, 2)
    return f"{answer} {unit}", f"{answer} {other}"


def swapped(value: int, generator: random.Random) -> str:
    """Return the number with two different digits swapped, or times ten if it has only one."""
    digits = list(str(abs(value)))
    places = [(i, j) for i in range(len(digits)) for j in range(i) if digits[i] != digits[j]]
    if not places:
        return str(value * 10 or 1)
    i, j = generator.choice(places)
    digits[i], digits[j] = digits[j], digits[i]
    return "".join(digits)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(Path(sys.argv[1]))
