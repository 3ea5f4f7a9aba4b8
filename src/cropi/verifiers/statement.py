"""The statement of a response: the part in which it says what its answer is.

In this order: what follows the thoughts, the answer tag in it, the answer in a JSON object that no
box follows, the last box, a last line with `####` (which ends a worked solution), the last "answer
is" or "answer:", an earlier line with `####`, a short last line with a label such as "Result:", and
otherwise all of it; or what comes after it, if that takes it back.
"""

from __future__ import annotations

import re
import string
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from cropi.verifiers.asserted import (
    asserted,
    is_cut_off,
    other_turns,
    own_turn,
    without_afterword,
    without_questions,
)
from cropi.verifiers.boxes import BOX, last_box, last_boxed
from cropi.verifiers.json_answers import answer_in_json
from cropi.verifiers.number_words import with_parts
from cropi.verifiers.polarity import NEGATION
from cropi.verifiers.retraction import taken_back
from cropi.verifiers.tags import DEFAULT_TAGS, Tags

Form = Literal["tag", "box", "phrase", "####", "text", "code"]

LONGEST = 4000
"""Characters of a statement that is read: what the answer is stands in the last part of a text."""
_WORD_CHARACTERS = string.ascii_letters + string.digits + "\\{}$.,"
_MARKS = r"[*_#`\s]"
_PHRASE = re.compile(
    r"(?:(?i:\b(?:answers?|(?:correct|right|best)\s+(?:option|choice|letter|statement)s?|respuesta|réponse|reponse|antwort|lösung|resposta|risposta|odpowiedź)\b"
    r"(?:(?:(?!\bis\b|n['’]t\b)[^.\n:=!?→]){0,60}?(?:\b(?:is|are|was|would\s+be|should\s+be|must\s+be|es|est|"
    rf"ist|é|è|lautet)\b(?:{_MARKS}*[:：])?|{_MARKS}*[:：=→]))|\bответ{_MARKS}*(?:[:：—–-]|равен)"
    rf"|(?:答案|答){_MARKS}*(?:应该是|应为|就是|是|为|為|[:：])+|(?:答え|正解|정답|답){_MARKS}*(?:は|은|[:：])|الإجابة(?:\s+\w+)?{_MARKS}*(?:هي|[:：])))"
)
_HASHES = re.compile(r"(?m)^.*?####[ \t]*([^\n]*)$")
_HEADING = re.compile(r"\d+[.):]\s+[^\W\d]|(?:step|part|case)\b", re.IGNORECASE)
_ABBREVIATION = (
    r"(?<!\b[ap]\.m)(?<!\b[ap]m)(?<!\bMr)(?<!\bMrs)(?<!\bMs)(?<!\bDr)(?<!\bSt)(?<!\bvs)(?<!\bRs)"
)
_SENTENCE_END = re.compile(
    rf"{_ABBREVIATION}(?<!\bsq)(?<!\bapprox)[.!?](?=\s)|(?<=[ap.]m)\.(?=\s+[A-Z])|[。！？]"
)
_COMPARATIVE = r"(?:more|less|fewer|greater|larger|smaller|bigger|higher|lower)"
_BOUND = re.compile(
    r"(?i)(?:\\text\w*\s*\{)?\s*(?:\w+ly\s+)?(?:at\s+(?:the\s+)?(?:very\s+)?(?:least|most)|up\s+to|over|under"
    rf"|above|below|between|(?:no\s+|any\s+)?(?:{_COMPARATIVE}|other)\s+than|not\b"
    r"|(?:divisible\s+by|congruent\s+to|proportional\s+to|coprime|relatively\s+prime)\b"
    r"|(?:any|some)(?:thing|\s+number)?\s+(?:but|except|above|below|other)"
    r"|(?:half|twice|double|triple)(?:\s+of)?\s+[*$\\(]*\d"
    r"|(?:the\s+|an?\s+)?(?:\w+\s+){0,2}(?:square|cube|fourth|root|reciprocal|opposite|inverse|logarithm|multiple"
    r"|divisor|factor|power|third|quarter|fraction|factorial|close|near|next)\s+(?:of|to)\s+[^=,]*\Z"
    rf"|[*$(]*-?[\d.,/]+[*$)]*\s+(?:(?:\w+\s+){{0,2}}(?:{_COMPARATIVE}\s+than|as\s+\w+\s+as)\b"
    r"|squared\b|cubed\b|factorial\b|halved\b|doubled\b|or\s+(?:more|less|fewer|above|over|below)\b))"
)
_CERTAIN = re.compile(
    r"(?i)^(?:(?:indeed|simply|therefore|thus|hence|then|clearly|exactly|precisely|obviously|certainly"
    r"|definitely|finally|actually|just|still|now|again|equal\s+to|given\s+by)\b:?,?\s+)+(?=\S)"
)
"""Adverbs between "the answer is" and what it is."""
_NOT_BUT = re.compile(
    r"(?i)^not\s+(?!only|just|merely|simply)[^\n]{1,80}?,?\s+but\s+(?:rather\s+|actually\s+)?"
    r"(?!(?:it|also|I|we|you|that|this|there|not|in|when|if|is|at|more|less)\b)(?=\S)"
)
"""`not 7 but` in "The answer is not 7 but 8"."""
_IS_THE_ANSWER = re.compile(
    r"(?:(?<=[.!?]\s)|(?<=\n)|\A)(?:(?:So|Thus|Hence|Therefore),?\s+)?"
    r"(?!(?i:(?:(?!\s(?:is|are)\s)[^.\n])*\b(?:I|we|you|doubt|if|whether|maybe|perhaps|what|which|that|this|it|there|could|might)\s))"
    r"(?P<stated>(?:[^.!?\n]|\.(?=\S)){1,80}?)\s+(?:is|are)\s+(?:the|our|my)\s+(?:(?:final|correct|right)\s+)*answers?\b"
)
_PHRASE_IN_BOX = re.compile(
    r"(?i)\A\\text\w*\s*\{\s*(?:the\s+)?(?:final\s+)?answer\s*(?:is\b:?|:)\s*\}\s*(?=\S)"
)
_LABEL = re.compile(
    r"(?i)[ \t>*_#-]{0,8}(?:(?:the|final|overall)\s+){0,2}"
    r"(?:ans|answer|result|solution|conclusion|outcome|total)\b"
    r"(?P<end>[*_ \t]{0,4}(?:(?:[:：→]|=>)[*_ \t]{0,4})?)"
)
_TABLE = re.compile(r"(?m)^[ \t]*\|(?:[ \t]*:?-+:?[ \t]*\|)+[ \t]*$")
_LONGEST_VALUE, _MOST_WORDS = 120, 4
_PROVED = r"(?:\\(?:qed|qedsymbol|blacksquare|square|Box)(?![a-zA-Z])|[∎□■]|Q\.?E\.?D\b)"
_END_OF_PROOF = re.compile(rf"(?:\$\s*{_PROVED}\s*\$|\s{_PROVED})(?=[\s.$]*\Z)")
_EQUALS = re.compile(r"\A\s*=\s*(?=[^=>\s])")
_FENCE = re.compile(r"(?m)^[ \t]*```[\w-]*[ \t]*$")
_PROGRAM = re.compile(
    r"(?ms)^[ \t]*```(?:python|py|c|c\+\+|cpp|java|javascript|js|typescript|ts|rust|go|ruby|r|julia"
    r"|matlab|sql|bash|sh|haskell|kotlin|swift|scala)\d*[ \t]*\n(.*?)(?:^[ \t]*```[ \t]*$|\Z)"
)


@dataclass(frozen=True, slots=True)
class Statement:
    """A statement and the form in which it was made."""

    text: str
    form: Form

    @property
    def is_long(self) -> bool:
        """Whether it is too long to be read; it can still be the answer's text."""
        return len(self.text) > LONGEST + LONGEST // 2

    @property
    def is_bound(self) -> bool:
        """Whether it states a bound or a difference (`at least 9`, `9 more than x`), no value."""
        return self.form != "text" and _BOUND.match(self.text) is not None


def take_statement(response: str, tags: Tags = DEFAULT_TAGS) -> Statement | None:
    """Return the statement of a response; None if it ends in its thoughts, box or sentence."""
    exchange = _first_exchange(own_turn(response), tags)
    text = None if exchange is None else tags.after_thoughts(exchange)
    if text is None:
        return None
    tagged = tags.tagged(text)
    text = text if tagged is None else tagged
    prose = _PROGRAM.sub("", text)
    if not prose.strip() and (programs := _PROGRAM.findall(text)):
        return Statement(programs[-1].strip(), "code")
    text = _END_OF_PROOF.sub("", asserted(_FENCE.sub("", prose)).strip())
    text = with_parts(text.strip())
    for form, take in _TAKERS:
        if (statement := take(text)) is not None:
            rest = taken_back(text, statement[1])
            if rest is not None:
                return _rest(rest)
            stated = _PHRASE_IN_BOX.sub("", statement[0]) if form == "box" else statement[0]
            return Statement(_EQUALS.sub("", stated), form)
        if form == "box" and BOX.search(text):
            return None  # it was cut off within its box
    if tagged is not None:
        return Statement(_EQUALS.sub("", text), "tag")
    text = _last_part(text)
    return None if is_cut_off(text) else _rest(taken_back(text, 0) or text)


def _rest(text: str) -> Statement:
    """Return the statement of a text in prose."""
    text = without_questions(without_afterword(text))
    return Statement(_EQUALS.sub("", text.strip()), "text")


def _last_part(text: str) -> str:
    """Return a text in prose, without the middle of a long one: `Yes` may be its first line."""
    if len(text) <= LONGEST:
        return text
    first, tail = text[: LONGEST // 4].partition("\n")[0], text[-LONGEST:]
    return f"{first}\n{tail.lstrip(_WORD_CHARACTERS).lstrip()}"


def _first_exchange(text: str, tags: Tags) -> str | None:
    """Return a text up to where it goes on in another's role after an answer.

    None if it goes on to ask and answer a question by itself: what it states is then not clear.
    """
    for end, is_role in other_turns(text):
        before = tags.after_thoughts(text[:end])
        if before is not None and any(take(before) is not None for _, take in _TAKERS):
            return text[:end] if is_role else None
    return text


def gold_statement(answer: str) -> str:
    """Return the statement of a row's answer: after `####`, in the last box, or all of it."""
    hashes = answer.strip().rpartition("####")
    if hashes[1]:
        return hashes[2].strip()
    boxed = last_boxed(answer)
    if boxed is not None:
        return boxed
    text = DEFAULT_TAGS.tagged(answer) or answer.strip()
    leading = re.match(r"(?i)[*_\s]*(?:the\s+)?(?:final\s+)?answer\b", text)
    return (leading and phrased(text)) or text


def phrased(text: str) -> str | None:
    """Return what follows the last "answer is" or "answer:" in its sentence, or on the next line.

    None without such words, or if nothing follows them.
    """
    last = _last_phrase(text)
    return last and last[0]


def _last_phrase(text: str) -> tuple[str, int] | None:
    """Return what the last "answer is" or "answer:" states, and where that starts."""
    for match in sorted(_PHRASE.finditer(text), key=lambda m: -m.end()):
        rest = text[match.end() : match.end() + LONGEST]
        rest = re.sub(r"^\s*\}\s*", "", rest)
        opening = re.match(r"[*_`:：\s]*?([*_`]*)(?![*_`:：\s])", rest)
        rest = re.sub(r"^[*_`:：\s]+", "", rest)
        start = text.find(rest[:1], match.end()) if rest else match.end()
        display = re.match(
            r"(\$\$.+?\$\$|\\\[.+?\\\]|\\begin\{(\w+\*?)\}.+?\\end\{\2\})", rest, re.DOTALL
        )
        line = display.group(1) if display else rest.partition("\n")[0].strip()
        line = re.sub(r"\s*(?:です|である|でした|입니다|이다)[。.]?\s*$", "", line)
        line = _CERTAIN.sub("", first_sentence(line.partition("####")[2] or line), count=1)
        # The mark that closes "**Answer: 12**" was opened before the phrase.
        line = line.rstrip(".").removesuffix("**") if line.count("**") % 2 else line
        if opening and opening[1] in ("*", "_", "`"):
            line = re.sub(rf"(?<=\S){re.escape(opening[1])}(?=[\s.,;:!?]|\Z)", "", line, count=1)
        line = _NOT_BUT.sub("", line)
        if re.match(r"(?i)(?:\w+ly\s+)?not\b", line):
            continue  # what it is comes after what it is not
        if line.strip("*_.$ "):
            return line, start + 1
    return None


def first_sentence(line: str) -> str:
    """Return the first sentence of a line."""
    return _SENTENCE_END.split(line, maxsplit=1)[0].strip()


def sentences_of(text: str) -> list[str]:
    """Return the sentences of a text, at least one."""
    return [s.strip() for s in _SENTENCE_END.split(text) if s.strip(" .!?")] or [text.strip()]


def _ending_in_hashes(text: str) -> tuple[str, int] | None:
    """Return what follows `####` in the last line, if that line starts with it, and where."""
    last = text.strip().rpartition("\n")[2].strip()
    stated = last.removeprefix("####").strip()
    if not last.startswith("####") or not stated or _HEADING.match(stated):
        return None
    return phrased(stated) or stated, text.rindex(last)


def _hashed(text: str) -> tuple[str, int] | None:
    """Return what follows the last `####`, unless that line is a section's heading, and where."""
    matches = list(_HASHES.finditer(text))
    if not matches:
        return None
    stated, last = matches[-1].group(1).strip(), matches[-1].end() >= len(text.rstrip())
    if not stated or _HEADING.match(stated) or not (last or re.match(r"[-+\d$\\.€£(]", stated)):
        return None
    return stated, matches[-1].start(1)


def _called_the_answer(text: str) -> tuple[str, int] | None:
    """Return what a sentence near the end says is the answer: `42 is the answer.`, and where."""
    matches = list(_IS_THE_ANSWER.finditer(text, max(0, len(text) - LONGEST)))
    if not matches or NEGATION.search(matches[-1]["stated"]):
        return None
    return matches[-1]["stated"], matches[-1].end()


def _labelled(text: str) -> tuple[str, int] | None:
    """Return a short last line that is labelled or headed as the answer, or a table's last cell."""
    before, _, last = text.rstrip().rpartition("\n")
    cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", last.strip().strip("|"))]
    label, heading = _LABEL.match(last), before.rstrip().rpartition("\n")[2]
    headed = _LABEL.fullmatch(heading)
    if last.strip()[:1] == "|" == last.rstrip()[-1:] and _TABLE.search(before):
        stated = cells[-1] if len(cells) > 1 else ""
    elif label is not None and re.search(r"[:：→>]", label["end"]):
        stated = last[label.end() :]
    elif headed is not None and re.match(r"(?i)\s*(?:#|\*\*|(?:final\s+)?answer\s*\Z)", heading):
        stated = last
    else:
        return None
    words = re.findall(r"[^\W\d_]{3,}", re.sub(r"\$[^$]*\$|\\[a-zA-Z]+", " ", stated))
    if not stated.strip("*_$ ") or len(stated) > _LONGEST_VALUE or len(words) > _MOST_WORDS:
        return None
    return stated.strip("*_ \t"), len(text.rstrip())


_TAKERS: tuple[tuple[Form, Callable[[str], tuple[str, int] | None]], ...] = (
    ("tag", answer_in_json),
    ("box", last_box),
    ("####", _ending_in_hashes),
    ("phrase", _last_phrase),
    ("####", _hashed),
    ("phrase", _called_the_answer),
    ("phrase", _labelled),
)
