"""Whether a clause affirms what it names: the grammar of denying, doubting and reporting.

Words of denial have no end, but the ways in which one clause holds another, or turns it round, are
few: a negation, an "if", a modal, a verb of opinion with somebody else as its subject. So the words
around "the answer is" must be one of the ways to affirm it; what is none of them asserts nothing.
"""

from __future__ import annotations

import re

NEAR = 160
"""Characters before a candidate that say what it is; all of a long response would take too long."""
_NOBODY = (
    r"\b(?:nobody|none|nothing|nowhere|neither|no\s+one|hardly\s+any\w*|(?:by|under|in)\s+no)\b"
)
_REFUSING = (
    r"\b(?:(?:rul(?:e|es|ed|ing)\s+out)|(?:eliminat|exclud|refut|disprov)(?:e|es|ed|ing)"
    r"|(?:discard|reject|dismiss)(?:s|es|ed|ing)?)\b"
)
NEGATION = re.compile(
    rf"""(?ix) \b(?:not|never|cannot|nor|hardly|scarcely)\b | n['’]t\b | {_NOBODY}
    | \bno\s+(?:way|reason|chance|evidence|proof)\b | {_REFUSING}"""
)
_OPINION = (
    r"\b(?:think|believe|say|claim|guess|suspect|argue|suggest|assert|answer|allege|insist|assume"
    r"|suppose|expect|conclude|pick|choose)(?:s|d|ed)?\b|\b(?:thought|said|chose)\b"
)
_OTHERS = (
    r"\b(?:many|some|most|few|several|people|students|others|one|someone|everyone|anyone|they|he"
    r"|she|you|who(?:ever)?)\b"
)
_OTHERS_OPINION = re.compile(rf"(?i){_OTHERS}[^.,;:]*?(?:{_OPINION})[^.,;:\d]*$")
_CROWD = re.compile(r"(?i)\b(?:most|many|some|few|several|people|students|others)\b")
_UNREAL = re.compile(
    r"""(?ix) \b(?:whether|perhaps|maybe|possibly|suppose|assume|imagine|pretend)\b
    | \b(?:I|we)\s+(?:\w+ly\s+)?doubt\b
    | \bto\s+(?:say|answer|guess|think|claim|conclude)\b
    | \b(?:might|may|could)\s+(?:\w+\s+)?be\b(?:\s+(?:option|choice))?[\s*_$(\\]*$
    | \bif\s+(?:\w+\s+){1,3}(?:were|was|is|equals|be)\b[\s*_$(\\]*$"""
)
_LIMIT = re.compile(
    r"(?i)(?:\bthan|\bexceed(?:s|ing)?|\bat\s+(?:least|most)|(?<!\brounds\s)(?<!\brounded\s)\bup\s+to|(?<!\d\s)\b(?:over|under)|\bbelow|\babove"
    r"|\b(?:anything|everything|all)\s+(?:but|except)|\bexcept|\binstead\s+of|\bbound\s+(?:is|of))[\s*_$\\(]*$"
)
_UNDECIDED = re.compile(
    r"""(?ix) \b(?:I|we)\b [^.!?\n]{0,80}?
      (?: \b(?:(?:can|could|did|do|was|were|am|are)\s+not|cannot)\b | n['’]t\b )
      (?:\s+(?:\w+ly|yet|able\s+to|manage\s+to))*
      \s+(?: know | sure | find | solve | determine | decide | tell | say | reach | choose\s+between
        | get\s+an?\b )
    | \b(?:I|we)\b [^.!?\n]{0,80}? \b(?:unable|failed|torn|unsure)\b
    | ['’]m\s+(?:not\s+sure|unable|torn|unsure)\b"""
)
_UNANSWERABLE = re.compile(
    r"(?i)\b(?:not\s+enough|insufficient)\s+information\b|\bmore\s+information\s+is\b"
    r"|\b(?:problem|question|answer|value|it|this)\s+cannot\s+be\s+(?:determined|solved|answered)\b"
    r"(?!\s+(?:is|are|was|were)\b)"
)
_COPULA = re.compile(r"(?i)\b(?:is|are|was|were|equals?|has|have|had|leaves?)\b(?!\s*n[o'’]t)|=")
_CONCLUDES = re.compile(r"(?i)[.!?,;\n][^.!?\n]*(?:=|\b(?:but|so|thus|hence|therefore)\b)")
_ADVERBS = re.compile(r"(?i)(?:\s*(?:\w+ly|even|ever|yet|quite))*\s*")
_HOLDS = re.compile(rf"(?i)\bthat\b|{_OPINION}|\b(?:show|prove|see|true|case|sure|certain)\b")
_RELATIVE = re.compile(r"(?i)\b(?:who|which|that|whose|where|whom)\b[^.]*$")
_BREAK = r"[.!?;:](?=\s)|\n|,\s|[。！？，；：]"
_CLAUSE = re.compile(
    rf"{_BREAK}|(?i:\b(?:so|(?<!thing\s)(?<!all\s)but|thus|hence|therefore|then|because|since|and|while|although)\b)"
)
_MATRIX = re.compile(rf"{_BREAK}|(?i:\b(?:so|but|and)\b)")
_NO_DOUBT = re.compile(
    r"(?i)(?:\b(?:there|it)\s+is\s+|\bI\s+have\s+)?\b(?:no|not|without|beyond)\s+"
    r"(?:(?:a|any|reasonable|hard)\s+){0,2}(?:doubt\w*|to\s+see)\b"
)
_AFFIRMING = re.compile(
    r"""(?ix) \s* (?:(?:thus|hence|therefore|then|finally|now|here|again|also|indeed|overall|that|in
        |fact|well|yes|ok|conclusion|summary|total|consequently|where|which|\w+ly)\b [\s,]*)*
    (?: (?:I|we|you|one)\s (?:(?:can|may|will|must|do|now|also|then|have|\w+ly)\s){0,3}
        (?:conclude|find|see|know|deduce|infer|obtain|determine|verify|confirm|derive|get|have|note|show
            |say|found|got|concluded|verified|confirmed)
        | (?:I|we) (?:\swould|['’]d)?\s (?:\w+ly\s)? (?:think|believe|say|guess)
        | (?:I\sam|we\sare|I['’]m|we['’]re)\s (?:\w+ly\s)? (?:sure|certain|confident|convinced)
        | (?:[^\s.]+\s){1,6}?
            (?:show|prove|confirm|mean|implie|give|yield|indicate|demonstrate|verifie|make|tell)s?
            (?:\sus)?
        | my\s\w+\s(?:says|tells\sme)
        | (?:it\s)? (?:follows|turns\sout)
        | it\sis\s (?:\w+ly\s)? (?:clear|evident|obvious|true|certain|easy\sto\ssee)
        | (?:in|for|after|by|using|from|with|when|at|on|since|as|because|given|adding|once|of|among)
            \s (?:(?!thought|believed|said|guessed).)*
    )? (?:\sthat)? [\s,]*"""
)
"""The ways in which words before "the answer is" leave it asserted."""
_HOLDING_OFF = re.compile(
    r"(?i)\b(?:if|whether|unless|might|could)\b|(?<!easy )(?<!\bus )\bto\s+\w+(?:\s+that)?\s*$"
)
_ANSWER_IS = re.compile(
    r"""(?ix) \b(?:the|my|our|an?)\s+ (?:\w+\s+){0,2}? (?:answer|result|solution|option|choice)\b
    (?P<gap>[^.\n:=!?]{0,60}?)
    \s(?:is|was|are|were|(?P<would>would)\s(?:\w+\s)?be|(?:must|should)\sbe)\b"""
)
_WRONG_KIND = re.compile(r"(?i)\b(?:wrong|incorrect|false|naive|tempting)\b")
_CONDITION = re.compile(
    r"(?i)\b(?:if|assum\w+|suppos\w+|were|had|unless|otherwise|ignoring|without|only)\b"
)
_ABOUT_IT = re.compile(
    rf"""(?ix) [\s*_$)\\]*
    (?: (?:is|was|would\s+be|cannot\s+be)\b (?!\s+(?:\w+ly\s+)?
            (?:the|our|my|his|her|its|their|your|what|how|therefore|thus|also|indeed|correct|right|true|left|needed
            |required|obtained|necessary|reached|spent|paid|gone|\d|\$|\\))
      | (?:can|may|must|could|should)\s+(?:\w+\s+)?be\s+{_REFUSING} | fails?\b
      | (?:are|were)\s+ (?:not|too|wrong|incorrect|impossible)\b | (?:is|are|was|were)n['’]t\b
      | (?:\w+\s+)? (?!(?:is|as|was|equals|gives|satisfies|matches)\b) [a-z]+s\s+(?:the|both)\b )"""
)


def denied_answers(text: str) -> list[tuple[int, int]]:
    """Return where a text says "the answer is" in a clause that does not affirm it.

    `So we find that the answer is 9` affirms it; `Many would say that`, `If`, `It is tempting to
    say that` do not.
    """
    return [match.span() for match in _ANSWER_IS.finditer(text) if not _is_affirmed(text, match)]


def _is_affirmed(text: str, match: re.Match[str]) -> bool:
    if _WRONG_KIND.search(match[0]) or NEGATION.search(match["gap"]) or _CROWD.search(match["gap"]):
        return False
    near = re.sub(r"[*_#\"]+", " ", text[max(0, match.start() - NEAR) : match.start()])
    after = re.split(r"[.!?](?:\s|\Z)|\n", text[match.end() : match.end() + NEAR], maxsplit=1)[0]
    sentence = re.split(r"[.!?]\s|\n", near)[-1] + after
    if match["would"] and _CONDITION.search(sentence):
        return False
    matrix = re.sub(r"\\[a-z]+|[{(]+", " ", _MATRIX.split(near)[-1])
    matrix = re.sub(r"\s+", " ", _NO_DOUBT.sub(" ", matrix)).strip()
    if not matrix.isascii():
        return True  # only English grammar is known here
    if _AFFIRMING.fullmatch(matrix) is None or _HOLDING_OFF.search(matrix):
        return False
    return NEGATION.search(matrix) is None or re.match(r"(?i)since|because|as", matrix) is not None


def is_undecided(text: str) -> bool:
    """Whether the author of a text says to have found no answer, and draws none later."""
    return _ends_in(_UNDECIDED, text)


def gives_up(text: str) -> bool:
    """Whether a text in prose ends in being undecided, or in saying that there is no answer."""
    return _ends_in(_UNDECIDED, text) or _ends_in(_UNANSWERABLE, text)


def _ends_in(giving_up: re.Pattern[str], text: str) -> bool:
    match = giving_up.search(text)
    return match is not None and _CONCLUDES.search(text, match.end()) is None


def is_denied(text: str, start: int, end: int) -> bool:
    """Whether the clause around a candidate denies it, doubts it is about it, or bounds it.

    `We can rule out 9`, `It cannot possibly be 9`, `Nobody says that it is 9`, `9 is extraneous`
    and `at least 9` do. A negation of something else does not: `Those who do not swim are 9`.
    """
    clause = _clause(text, start)
    if _LIMIT.search(clause) or _ABOUT_IT.match(text[end : end + NEAR]):
        return True
    negations = list(NEGATION.finditer(clause))
    if not negations:
        return _OTHERS_OPINION.search(clause) is not None
    before, after = clause[: negations[-1].start()], clause[negations[-1].end() :]
    says = _COPULA.search(after)
    if says is None or re.fullmatch(_NOBODY, negations[-1][0], re.IGNORECASE):
        return True
    if _ADVERBS.fullmatch(after[: says.start()]):
        return True  # it is the verb that is negated: "does not even have"
    return _RELATIVE.search(before) is None and _HOLDS.search(after[: says.start()]) is not None


def is_doubted(text: str, place: int) -> bool:
    """Whether the clause that leads to a place leaves open what stands there: `It might be 9`."""
    return _UNREAL.search(_clause(text, place)) is not None


def _clause(text: str, place: int) -> str:
    return _CLAUSE.split(text[max(0, place - NEAR) : place])[-1]
