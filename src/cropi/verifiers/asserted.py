"""What a response asserts: its own turn, without what it only supposes, doubts or denies.

Sentences such as "If the answer is 9, ..." or "I doubt that the answer is 9" name an answer that is
not the response's; they are left out before a statement is looked for. A text that breaks off in
the middle of a sentence, or after "The answer is:", asserts no answer by its last number.
"""

from __future__ import annotations

import re

# Marks of chat templates: special tokens that a tokenizer decoded, or a model wrote as text.
_OWN_TURN = re.compile(
    r"\s*(?:<\|im_start\|>\s*assistant|<\|start_header_id\|>\s*assistant\s*<\|end_header_id\|>"
    r"|<start_of_turn>\s*model|<\|assistant\|>|<｜Assistant｜>)\s*"
)
_END_OF_TURN = re.compile(
    r"<\|(?:im_end|im_start|endoftext|eot_id|eom_id|end_of_text|start_header_id|return|user)\|>"
    r"|<(?:end_of_turn|start_of_turn|eos|pad)>|</s>|<｜(?:end▁of▁sentence|User)｜>|<\|end\|>\s*\Z"
)

_ANSWER = (
    r"(?:\s+(?:that|how|why|whether|if))?\s+(?:(?:the|my|your|our|an?)\s+)?(?:\w+\s+)?"
    r"(?:answer|result|solution|option|choice)\b"
)
_VALUE = r"\s+(?:is|was|were|equals|=)\s+[*_$(\\]*(?:-?\d|[A-Z]\b|[a-z]+\{)"
_OPINION = (
    r"(?:thinks?|thought|believes?d?|say|says|said|claims?|claimed|mean|agree|guess(?:ed)?|assumed?"
    r"|expect|suspect|argued?|supposed?)"
)
_WRONG = (
    r"(?:\s+\w+ly|\s+all|\s+both|\s+therefore|\s+thus)*\s+(?:wrong|incorrect|false|impossible|absurd"
    r"|invalid|implausible|out\b|too\s+\w+|a\s+(?:mistake|contradiction)"
    r"|not\s+(?:\w+ly\s+)?(?:right|correct|possible|true|valid|the\s+(?:right|correct|answer)))\b"
)
_SUPPOSED = re.compile(
    r"(?i)(?:\b(?:if|suppose|supposing|assume|assuming|imagine|pretend|whether|unless)"
    r"|\blet(?:['’]s|\s+us)\s+say)"
    rf"(?:,?\s+(?:for\s+(?:now|example|instance)|we|you|then)\b,?)*{_ANSWER}{_VALUE}"
    r"|\banswers?\s+(?:would|could|might)\s+(?:have\s+)?(?:be|been)\b[^.\n]*?\b(?:if|had|were)\b"
)
_DOUBTED = re.compile(
    r"(?i)(?:(?<!no )(?<!not )(?<!without )(?<!without a )(?<!beyond )"
    r"\b(?:doubt|deny|dispute|reject)\w*"
    r"(?:\s+(?:very\s+much|strongly|the\s+claim))?"
    r"|\b(?:false|untrue|wrong|incorrect|unlikely|impossible|unclear|unsure|(?:not|never|n['’]t)\s+(?:\w+ly\s+)?"
    r"(?:true|sure|certain|clear|likely|possible|plausible|convinced|persuaded|confident|the\s+case))(?:\s+to\s+\w+)?"
    rf"|(?:\b(?:not|never|cannot|nobody|no\s*one|none|hardly)|n['’]t)(?:\s+\w+)?\s+(?:{_OPINION}|see|show|prove|conclude)"
    r"|\bno\s+(?:way|reason|chance|evidence|proof)|\b\w+\s+(?:claims?|claimed|alleges?)"
    r"|\b(?:one|you|some|many|people|others|students|they|he|she)\s+(?:(?:might|may|could|would|can)\s+)?"
    rf"(?:\w+ly\s+|often\s+)?{_OPINION}|\b(?:might|may|could)\s+(?:\w+ly\s+)?{_OPINION}"
    r"|\b(?:(?:guess|idea|claim|attempt|intuition)\s+was|(?:I|we)\s+(?:first\s+|originally\s+)?thought))"
    rf"(?:{_ANSWER}|(?:\s+that)?\s+it(?:['’]s|\s+is|\s+was)\b)"
    r"|\banswers?\s+(?:could|might|may)\s+(?:\w+ly\s+|well\s+)?be\b(?!\s+[a-z]+(?:ed|en|und|own)\b)"
    r"|\banswers?\s+(?:used\s+to\s+be|(?:would|could|should|might)\s+have\s+been)\b"
    r"|\b(?:nothing|nobody|hardly|scarcely|few|mistake|error|wrong|premature|tempting|foolish|myth"
    rf"|misconception|trap)\b[^.,;:\n]{{0,50}}?\sthat{_ANSWER}"
)
_REFUTED = re.compile(
    rf"(?i)\d[*_$)]*,\s+(?:which|but\s+(?:that|this|it))(?:['’]s|\s+(?:is|was)){_WRONG}"
    r"|\b(?:answer|result|solution)\s+(?:is|was)\s+(?:[^.\n]|\.\d){1,40}?[.,;]\s+(?:(?:but|however|and),?\s+)?"
    rf"(?:which|that|this|it)(?:['’]s|\s+(?:is|was|would\s+be|seems)){_WRONG}"
)
_SENTENCE_START = re.compile(r"(?:[.!?;]\s|\n|,\s*but\b|[。！？])")
_SENTENCE_END = re.compile(r"[.!?;](?=\s|\Z)|\n|,\s*(?=but\b)|[。！？]|\Z")
_CONSEQUENCE = re.compile(r"\s*(?:Then|This would|That would|It would)\b")
_QUESTION = re.compile(
    r"(?i)(?:(?<=[.!?]\s)|(?<=\n)|\A)[ \t]{0,8}(?:(?:so|but|and|or|hmm|well),?\s+)?"
    r"(?:what|which|how|why|when|where"
    r"|who|is|are|was|does|do|did|can|could|would|should|will|might|maybe|perhaps)\b[^.!?\n]*\?(?=\s|\Z)"
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


_LETTER = r"[*_(]{0,3}\b[A-Z]\b[*_)]{0,3}"
_REFUSED_LETTER = re.compile(
    rf"(?:{_LETTER}(?:,\s?(?:and\s|or\s)?|\s(?:and|or|through|to)\s|\s?[-–]\s?)){{0,8}}"
    rf"{_LETTER.replace('A-Z', 'A-HJ-Z')}\s+(?i:(?:is|are|was|were|would\s+be|seems?){_WRONG}"
    r"|(?:fails?|cannot\b|can['’]t\b|does(?:\s+not|n['’]t)\s+(?:work|fit|hold|match)"
    r"|(?:can|may|must|should)\s+be\s+(?:eliminated|excluded|rejected|ruled\s+out|discarded)))"
)
"""`I` is rather the pronoun."""


def own_turn(response: str) -> str:
    """Return the first turn of a response: what comes before a chat template's end of turn."""
    opened = _OWN_TURN.match(response)
    text = response[opened.end() :] if opened else response
    ended = _END_OF_TURN.search(text)
    return text[: ended.start()] if ended else text


def asserted(text: str) -> str:
    """Return a text without the clauses that suppose, doubt or deny an answer."""
    asserting, place = [], 0
    clauses = (m for pattern in (_SUPPOSED, _DOUBTED, _REFUTED) for m in pattern.finditer(text))
    for match in sorted(clauses, key=lambda m: m.start()):
        if match.start() < place:
            continue
        starts = [m.end() for m in _SENTENCE_START.finditer(text, place, match.start())]
        asserting.append(text[place : starts[-1] if starts else place])
        place = _end_of_sentence(text, match.end())
        if match.re is _SUPPOSED and _CONSEQUENCE.match(text, place):
            place = _end_of_sentence(text, place)
    return "".join((*asserting, text[place:]))


def _end_of_sentence(text: str, place: int) -> int:
    ended = _SENTENCE_END.search(text, place)
    assert ended is not None  # the end of the text is one
    return ended.end()


def without_questions(text: str) -> str:
    """Return a text in prose without the sentences that ask."""
    return _QUESTION.sub("", text)


def is_cut_off(text: str) -> bool:
    """Whether a text in prose breaks off before its answer."""
    return _CUT_OFF.search(text) is not None


def without_refused_letters(text: str) -> str:
    """Return a text without the letters that it calls wrong: `C is too small`."""
    return _REFUSED_LETTER.sub(" ", text)
