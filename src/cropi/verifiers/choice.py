"""`choice`: the letter, or letters, to which the response commits."""

from __future__ import annotations

import re
import unicodedata

from cropi.plugins import plugin
from cropi.schema import Prompt
from cropi.verifiers.alternatives import alternatives
from cropi.verifiers.polarity import NEAR, is_denied, is_doubted, is_undecided
from cropi.verifiers.statement import Statement, gold_statement, take_statement
from cropi.verifiers.tags import DEFAULT_TAGS, Tags
from cropi.verifiers.verdict import Decision

_WRAPPER = re.compile(r"\\(?:text|math)\w*\s*\{([^{}]*)\}")
_LETTER = r"(?:\([^\W\d_]\)|[^\W\d_](?![^\W_]|\.[a-z]\.))"
_LETTERS = rf"{_LETTER}(?:(?:\s*(?:[,;&/]|and|or|und|y|et))+\s*{_LETTER})*"
_ALONE = re.compile(
    rf"\s*{_LETTERS}\s*(?:[.:)、：．]\s*.*|$|\s-\s.*|(?<=\))\s*(?!(?:is|are|was|can|and|or|too)\b)\w.*)",
    re.DOTALL,
)
_LEADING_LETTER = re.compile(
    rf"\s*(?:(?:the\s+)?(?:option|choice|letter|answer|选项)\s*(?:is\s+)?)?({_LETTERS})"
    r"(?![^\W_]|['’])",
    re.IGNORECASE,
)
_JOINED = r"[*_)\]]*\s?(?:,\s?(?:(?:and|or)\s)?|(?:and|or|nor|through|to|&|[-–])\s?)[*_(\[]*"
_LISTED_BEFORE = re.compile(rf"(?:\b[A-Z]{_JOINED}){{1,8}}\Z")
_LISTED_AFTER = rf"(?:{_JOINED}[A-Z]\b){{0,8}}"
_ABOUT_IT = re.compile(
    rf"""(?x) {_LISTED_AFTER} [*_)\]]* (?: \?(?!\s*[Yy]es) | \s+(?:\w+ly\s+|all\s+|both\s+)*
    (?: (?:is|are|was|were)\b (?!\s+(?:\w+ly\s+|therefore\s+|thus\s+|also\s+|both\s+|all\s+)*
            (?:the|our|my|what|correct|right|true|best|better|valid|accurate|supported|consistent|left|it)\b)
      | (?:is|was|are|were|does|do|did|has|have|ca)n['’]t\b
      | (?:would|could|might|may|can|cannot|does|did|has|had|lacks|seems|looks|fails?)\b
      | (?!(?:works|fits|matches|satisfies|holds|follows|gives|says|states|agrees|remains
            |wins|corresponds|always|this|as|is|was|describes|completes|expresses)\b)
        [a-z]+s\b ) )"""
)
"""What is said about a letter, and does not choose it: `C ignores the sign`, `D is small`."""
_MORE = re.compile(r"\s+(?!because|since|as\b|and\b|rather|not\b|for\b|is\b)[^\W\d_]")
_SEVERAL = re.compile(
    rf"({_LETTER}(?:\s*(?:[,;&/]|and)+\s*{_LETTER})+)\s+are\s+(?:both\s+|all\s+)?(?:the\s+)?"
    r"(?:correct|right|true|answers?)\b"
)
_SEVERAL_AT_END = re.compile(
    rf"\b(?:it|result|choices?|options?)\s+(?:is|are)\s+({_LETTER}(?:\s*(?:[,;&/]|and)+\s*{_LETTER})+)"
    r"[\s.]*\Z"
)
_OR_ANOTHER = re.compile(
    r"\s*[*_]{0,2}\(?[A-Z][).:][^\n]*\b(?:or|nor)\s+(?:option\s+)?(?:\([A-Z]\)|[A-Z][.:)]\s)"
)
_OR_BEFORE = re.compile(r"\b[A-Z][*_)\]?,]*\s+or\s+(?:option\s+)?[*_(\[]*\Z")
_OR_AFTER = re.compile(r"[*_)\]?,]*\s+or\s+(?:option\s+)?[*_(\[]*[A-Z]\b")
_NUMBERED = re.compile(
    r"(?i:\b(?:answer|option|choice|possibility)\s+\d)\s*[*_]*[:=][*_\s(]*([A-Z])\b"
)
_LETTERED = re.compile(r"(?:\A|,)\s*\(?([A-Z])(?:\)|[.:])\s")
"""Where an option of several that stand in boxes begins."""
_IN_PROSE = (
    re.compile(
        r"[(*_]*\b([A-Z])\b[)*_]*\s+is\s+(?:therefore\s+|thus\s+)?(?:the\s+)?"
        r"(?:correct|right|best|answer|only|true)\b"
    ),
    re.compile(
        r"(?i:\b(?:answer|response|choice|option|choose|pick|select|it|solution|result)(?:\s+is|'s|\s+must\s+be)?)"
        r"\s*[:=]?\s*[*_(\[]*([A-Z])\b(?!['’])(?!\s+[a-z]+\s)"
    ),
    re.compile(r"\(([A-Z])\)"),
    re.compile(r"(?m)^\s*[*_]*\(?([A-Z])[*_]*[.:)]*[*_]*\s*$"),
    re.compile(r"(?m)^\s*[*_]*([A-Z])[*_]*[.:)]\s"),
    re.compile(r"[\u4e00-\u9fff\uac00-\ud7af]\s*([A-Z])(?![A-Za-z])"),
    # `A` and `I` alone in a sentence are words, so they need one of the forms above.
    re.compile(r"(?<![\w'’])([B-HJ-Z])(?![\w'’])"),
)


@plugin("verifier", "choice")
class ChoiceVerifier:
    """Compares the letters that the response chooses with the prompt's answer."""

    def __init__(self, tags: Tags = DEFAULT_TAGS) -> None:
        self._tags = tags

    def __call__(self, prompt: Prompt, completion: str) -> float:
        """Return 1.0 if the response chooses the answer's letters, else 0.0.

        Raises ValueError if the answer is not a letter or several.
        """
        return float(self.decide(prompt, completion).right)

    def decide(self, prompt: Prompt, completion: str) -> Decision:
        """Return whether the response is right, and why. Raises ValueError as a call does."""
        golds = [read_gold(answer) for answer in alternatives(prompt)]
        statement = take_statement(_plain(completion), self._tags)
        if statement is None or statement.is_long:
            return Decision(False, "no statement", "")
        letters = _chosen(statement)
        stage = "no letter" if letters is None else f"letter {_listed(letters)}"
        return Decision(letters in golds, stage, statement.text)

    def read_as(self, prompt: Prompt) -> str:
        """Return what the answer is read as. Raises ValueError as a call does."""
        golds = [_listed(read_gold(answer)) for answer in alternatives(prompt)]
        return ", or ".join(f"letter {letters}" for letters in golds)

    def check_answer(self, prompt: Prompt) -> None:
        """Raise ValueError if the prompt's answer is not a letter or several."""
        for answer in alternatives(prompt):
            read_gold(answer)


def _listed(letters: frozenset[str]) -> str:
    return " and ".join(sorted(letters))


def read_gold(answer: str) -> frozenset[str]:
    """Return the letters of a gold answer. Raises ValueError if it is something else."""
    letters = _alone(gold_statement(_plain(answer)))
    if letters is None:
        raise ValueError(f"the answer {answer!r} is not a letter, or several, from A to Z")
    return letters


def _plain(text: str) -> str:
    """Return a text with full-width forms in their usual ones."""
    return "".join(
        unicodedata.normalize("NFKC", c) if "\uff00" <= c <= "\uffef" else c for c in text
    )


def _alone(text: str) -> frozenset[str] | None:
    """Return the letters of a text that is a letter, letters, or `B. Paris`; else None."""
    text = _WRAPPER.sub(r"\1", text).strip().strip("*_$`[] \\").strip()
    text = re.sub(r"(?i)^both\s+", "", text)
    match = _ALONE.fullmatch(text)
    if match is None:
        # "AC" and "A C" are two letters; in lower case they are words.
        text = text.rstrip(".")
        run = re.fullmatch(r"[A-Z](?:\s?[A-Z]){1,7}", text)
        return frozenset(run[0].replace(" ", "")) if run and len(set(text)) == len(text) else None
    head = re.match(rf"\s*({_LETTERS})", text)
    assert head is not None
    return _letters(head[1])


def _letters(text: str) -> frozenset[str]:
    return frozenset(re.findall(r"(?<![^\W\d_])[^\W\d_](?![^\W\d_])", text.upper()))


def _chosen(statement: Statement) -> frozenset[str] | None:
    """Return the letters that a statement chooses, if any."""
    text = _WRAPPER.sub(r"\1", statement.text).replace("$", "")
    if statement.form != "box" and _OR_ANOTHER.match(text):
        return None
    if statement.form != "text" and statement.form != "####":
        inner = take_statement(text)
        text = inner.text if inner is not None else text
        if len(boxed := set(_LETTERED.findall(text))) > 1:
            return frozenset(boxed)
        if (letters := _alone(text)) is not None:
            return letters
        if (letters := _leading(text)) is not None:
            return letters
    elif (letters := _alone(text)) is not None and (len(text.strip()) < 80 or "\n" not in text):
        return letters
    text = re.sub(r"\(([a-z])\)", lambda m: m[0].upper(), text)
    if is_undecided(text) or len(set(_NUMBERED.findall(text))) > 1:
        return None
    if several := _SEVERAL.findall(text):
        return _letters(several[-1])
    if (ending := _SEVERAL_AT_END.search(text)) and not _is_refused(text, *ending.span(1)):
        return _letters(ending[1])
    for pattern in _IN_PROSE:
        for match in reversed(list(pattern.finditer(text))):
            if not _is_refused(text, *match.span(1)):
                return frozenset((match[1].upper(),))
    return None


def _is_refused(text: str, start: int, end: int) -> bool:
    """Whether what stands around a letter denies it, leaves it open, or only says more of it."""
    if _OR_BEFORE.search(text, max(0, start - NEAR), start) or _OR_AFTER.match(text, end):
        return True
    listed = _LISTED_BEFORE.search(text, max(0, start - NEAR), start)
    first = start if listed is None else listed.start()
    return (
        is_denied(text, first, first)
        or is_doubted(text, first)
        or _ABOUT_IT.match(text, end) is not None
    )


def _leading(text: str) -> frozenset[str] | None:
    """Return the letters at the start of a statement: `B because ...`, `(B), not (C)`."""
    text = text.replace("*", "").strip()
    match = _LEADING_LETTER.match(text)
    if match is None or _ABOUT_IT.match(text, match.end(1)):
        return None
    rest = text[match.end() :]
    single = match[1].strip("()")
    # "a prime number": an article, or a lower-case word, is followed by a word that is no reason.
    word = single in "AI" or single.islower()
    if word and _MORE.match(rest):
        return None
    # "C; D would be too big" and "C, i.e. 25" choose C.
    several = len(_letters(match[1])) > 1 and re.match(
        r"\.e\.|\s+(?!are\b|because|since)[a-z]", rest
    )
    return (
        _letters(match[1][:3] if match[1][0] == "(" else match[1][0])
        if several
        else _letters(match[1])
    )
