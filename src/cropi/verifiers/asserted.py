"""What a response asserts: its own turn, without what it only supposes, doubts or denies.

Sentences such as "If the answer is 9, ..." or "I doubt that the answer is 9" name an answer that is
not the response's; they are left out before a statement is looked for. A text that breaks off in
the middle of a sentence, or after "The answer is:", asserts no answer by its last number.
"""

from __future__ import annotations

import re
from itertools import islice

from cropi.verifiers.polarity import NEGATION, denied_answers

# Marks of chat templates: special tokens that a tokenizer decoded, or a model wrote as text.
_OWN_TURN = re.compile(
    r"\s*(?:<\|im_start\|>\s*assistant|<\|start_header_id\|>\s*assistant\s*<\|end_header_id\|>"
    r"|<start_of_turn>\s*model|<\|assistant\|>|<｜Assistant｜>)\s*"
)
_END_OF_TURN = re.compile(
    r"<\|(?:im_end|im_start|endoftext|eot_id|eom_id|end_of_text|start_header_id|return|user)\|>"
    r"|<(?:end_of_turn|start_of_turn|eos|pad)>|</s>|<｜(?:end▁of▁sentence|User)｜>|<\|end\|>\s*\Z"
)

_DOUBTED = re.compile(
    r"(?i)\b(?:doubt|deny|dispute|reject|unlikely|unclear|unsure)\w*(?:\s+(?:that|to|whether))*\s+it(?:['’]s|\s+is|\s+was)\b"
    r"|\banswers?\s+(?:could|might|may)\s+(?:\w+ly\s+|well\s+)?be\b(?!\s+[a-z]+(?:ed|en|und|own)\b)"
    r"|\banswers?\s+(?:used\s+to\s+be|(?:would|could|should|might)\s+have\s+been)\b"
)
_REJECTED = (
    r"(?:(?<=[.!?]\s)|(?<=\n)|\A)[*_]{0,2}(?=[-\d$(\[\\]|[A-J][).:\s])(?:[^.!?\n]|\.(?=\d)){1,160}?"
    r"\b(?:is|are|was|were|would\s+be|must\s+be)\s+(?:\w+ly\s+)?"
    r"(?:wrong|incorrect|impossible|not\s+(?:the\s+)?(?:right|correct|possible|answer))"
    r"(?=[.!*_\s]*(?:\n|\Z|[.!]\s))"
)
"""A sentence that says of a value that it is wrong."""
_SENTENCE_START = re.compile(r"(?:[.!?;]\s|\n|,\s*but\b|[。！？])")
_SENTENCE_END = re.compile(r"[.!?;](?=\s|\Z)|\n|,\s*(?=but\b)|[。！？]|\Z")
_CONSEQUENCE = re.compile(r"\s*(?:Then|This would|That would|It would)\b")
_QUESTION = re.compile(
    r"(?i)(?:(?<=[.!?]\s)|(?<=\n)|\A)[ \t]{0,8}(?:(?:so|but|and|or|hmm|well),?\s+)?"
    r"(?:what|which|how|why|when|where"
    r"|who|is|are|was|does|do|did|can|could|would|should|will|might|maybe|perhaps)\b(?:[^.!?\n]|\.(?=[\d\\]))*\?(?=\s|\Z)"
)

_CUT_OFF = re.compile(
    r"(?i)(?:\s(?:the|an|and|or|but|of|by|to|with|from|into|that|which|then|we|our|their|is|are|was"
    r"|if|because|since|than|therefore|thus|hence|add|subtract|multiply|divide|get|must|should|will"
    r"|let(?:['’]s|\s+us)?)"
    r"|[^\d\s]\s*,|\s[-+*/×÷]|=|[:：][*_]{0,3})\s*\Z"
    r"|\banswers?(?:[*_`\s]*[:：]|\s+(?:is|are|was|to\b[^.\n]{0,60}\bis)\b)[*_`\s$:：]*\Z"
    r"|\n[#*_ \t]{0,12}(?:(?:final|the)[ \t]+){0,2}"
    r"(?:answer|conclusion|result|solution|summary)[*_\s]*\Z"
)
_NEW_CLAUSE = re.compile(
    r"\d[*_$)}]*(?:\s[^\W\d]+){0,2}(?:,\s+(?!which\s+(?:is|are))|\s+(?:and|but|so|then|which|because|where|while)\s)"
    r"\s*(?:[^\W\d]+\s+){2,40}[^\W\d]+\s*\Z"
)
"""After the last number another clause begins, and the text ends in it without a full stop."""
_PLAN = re.compile(
    r"(?i)(?:\A|[.!?]\s|\n)[\s*#]{0,8}(?:(?:ok|okay|so|now|first|well|alright),?\s+){0,2}"
    r"(?:let\s+(?:me|us)|let['’]s|I['’]ll|I\s+will)\s+(?:\w+\s+)?(?:solve|work|break|go(?!\s+(?:with|for)\b)|start|begin|try"
    r"|check|think|look|find|compute|calculate|determine|figure|consider|do)\b[^.!?:=\n]*[.!?]?\s*\Z"
)
"""A last sentence that says what comes next: "Let me solve this in 5 steps."."""
_OTHER_TURN = re.compile(
    r"(?im)^[ \t]*(?:#{1,6}\s*|\*\*)?(?:(?P<role>human|user|instruction)|question|q|problem"
    r"|exercise)(?:\*\*)?:"
)
_MOST_TURNS = 16
_AFTERWORD = re.compile(
    r"(?i)[\s*_#>-]{0,8}"
    r"(?:(?:a\s+)?(?:quick\s+)?(?:note|remark|check\w*|verif\w+|tip|p\.?\s?s)\b[\s*_]{0,8}[:.]"
    r"|\(see\b|I\s+(?:have\s+)?(?:double[- ]?)?(?:checked|verified)\b"
    r"|(?:let\s+me\s+know|i\s+hope|hope\s+(?:this|that)|feel\s+free|please|would\s+you\s+like"
    r"|if\s+you\s+(?:have|need|want)|do\s+you)\b)"
)
_CLOSING = re.compile(
    r"(?i)\s*(?:so,?\s+)?(?:that|this)(?:['’]s|\s+is)\s+(?:the|our|my)\s+(?:final\s+)?(?:answer|result)[.!]*"
)
_ASIDE = re.compile(
    r"(?<=[.!?]\s)(?:For (?:reference|comparison|context)|(?:By|In) comparison|Incidentally"
    r"|By the way|Note that|Notice that"
    r"|(?:All|Both)(?=[^.!?\n]*\b(?:satisfied|met|fulfilled|hold)\b))\b[^.!?\n]*(?:[.](?=\d)[^.!?\n]*)*[.!?]?\s*\Z"
)
_MORE_THAN_A_CHECK = re.compile(
    r"(?i)\b(?:wrong|incorrect|mistake|error|contradict\w*|instead|should|so|thus|therefore|hence"
    r"|answer)\b|≠|\\ne"
)


def own_turn(response: str) -> str:
    """Return the first turn of a response: what comes before a chat template's end of turn."""
    opened = _OWN_TURN.match(response)
    text = response[opened.end() :] if opened else response
    ended = _END_OF_TURN.search(text)
    return text[: ended.start()] if ended else text


def asserted(text: str) -> str:
    """Return a text without the clauses that suppose, doubt or deny an answer."""
    asserting, place = [], 0
    doubted = [match.span() for match in _DOUBTED.finditer(text)]
    doubted += [match.span() for match in re.finditer(_REJECTED, text)]
    for first, last in sorted(doubted + denied_answers(text)):
        if first < place:
            continue
        starts = [m.end() for m in _SENTENCE_START.finditer(text, place, first)]
        asserting.append(text[place : starts[-1] if starts else place])
        place = _end_of_sentence(text, last)
        if _CONSEQUENCE.match(text, place):
            place = _end_of_sentence(text, place)
    return "".join((*asserting, text[place:]))


def _end_of_sentence(text: str, place: int) -> int:
    ended = _SENTENCE_END.search(text, place)
    assert ended is not None  # the end of the text is one
    return ended.end()


def without_questions(text: str) -> str:
    """Return a text in prose without the sentences that ask."""
    return _QUESTION.sub("", text)


def without_afterword(text: str) -> str:
    """Return a text in prose without a last paragraph that only checks, or turns to the reader.

    Nor with a last sentence that compares or adds: "For reference, last year she sold 9."
    """
    aside = _ASIDE.search(text)
    if aside is not None and not _MORE_THAN_A_CHECK.search(aside[0]):
        text = text[: aside.start()]
    before, _, last = text.rstrip().rpartition("\n\n")
    if before and _CLOSING.fullmatch(last):
        return before
    if not before or _AFTERWORD.match(last) is None:
        return text
    return text if _MORE_THAN_A_CHECK.search(last) or NEGATION.search(last) else before


def is_cut_off(text: str) -> bool:
    """Whether a text in prose breaks off before its answer."""
    return any(pattern.search(text) for pattern in (_CUT_OFF, _NEW_CLAUSE, _PLAN))


def other_turns(text: str) -> list[tuple[int, bool]]:
    """Return where a text may start another turn by itself, and whether in a chat's role.

    A line `User:` is a role's; a line `Question:` is one that it asks by itself.
    """
    turns = islice(_OTHER_TURN.finditer(text), _MOST_TURNS)
    return [(m.start(), m["role"] is not None) for m in turns]
