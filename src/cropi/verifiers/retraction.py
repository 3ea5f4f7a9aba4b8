"""Whether a response takes back the answer that it gave, and what it says then.

`The answer is 8. Wait, I counted Monday twice, there are 7.` states 7, and `The answer is 8. But
this contradicts the second condition.` states nothing.
"""

from __future__ import annotations

import re

from cropi.verifiers.polarity import NEGATION

_WRONG = (
    r"(?:\w+ly\s+)?(?:not|wrong|incorrect|false|impossible|absurd|invalid|too"
    r"|(?:a\s+)?(?:mistake|contradiction))\b"
)
_CUE = re.compile(
    rf"""(?ix) (?:(?<=[.!?;:。}}])["')*_$]{{0,4}}\s{{1,20}} | \n\s{{0,20}} | (?P<within>,\s))
    (?P<cue> (?:(?:but|oh|ah|and|hmm+)\b[\s,.]{{0,5}})?
      (?: wait | oops | sorry | hold\s+on | (?:scratch|strike)\s+that | correction | hmm+ | actually
        | on\s+second\s+thoughts? | my\s+(?:mistake|bad|error) | no(?=\s?[,.!:—–-]|\s+wait)
        | I\s+(?:\w+\s+)?(?:made|misread|miscount\w*|miscalculated|forgot|overlooked|missed)
        | let\s+me\s+(?:re\w+|correct|fix|double)
        | that(?:['’]s|\s+is|\s+was)\s+(?:not\s+(?:quite\s+)?(?:right|correct|it)|wrong|incorrect)
        | that\s+can(?:not|['’]t)\s+be\s+(?:right|correct|true|it)
      )\b
    | (?P<objection> (?:but|however|yet|unfortunately),?\s+(?:this|that|it)
        (?: \s(?!(?:is|was)\s|can\b|may\b|does\s+not\s+(?:matter|depend))
          | (?:['’]s|\s(?:is|was))\s+(?={_WRONG}) )
      | which\s+(?:\w+ly\s+)?(?:contradicts|violates|fails|is\s+(?={_WRONG})|does\s+not|cannot)\b )
    )"""
)
_SUBSTANCE = re.compile(
    r"\d|\\[a-zA-Z]|\b[B-HJ-Z]\b|(?i:\b(?:it|that)(?:['’]s|\s+is)\b|\b(?:should|must|wrong|mistake)\b)"
)
_CUE_WORDS = re.compile(r"(?i)(?:(?:no|wait|actually|sorry|oops|hmm+)\b[\s,.!:—–]*)+")
_INSTEAD = re.compile(
    r"(?i)(?!(?:let|I|we|this|that|it|is|so|if|the|check|maybe|perhaps)\b)\S{1,40}(?:\s\S{1,20}){0,4}[.!\s]*"
)
"""`14` of "9, no, wait, 14"."""
_CHECKS = re.compile(r"(?i)\b(?:check|verify|confirm|make\s+sure|see\s+if)")
_AGREES = re.compile(
    r"(?i)\b(?:yes|correct|right|match\w*|confirm\w*|checks?\s+out|consistent|holds|agrees?|verified"
    r"|good|works)\b"
)
_SENTENCE = re.compile(r"(?<=[.!?])\s+|\n")


def taken_back(text: str, place: int) -> str | None:
    """Return what a text says from where it takes back what stands before `place` or after it.

    None if it takes nothing back: it only checks and agrees, or adds a remark.
    """
    cues = [m for m in _CUE.finditer(text, place) if _is_cue(text, m)]
    if not cues:
        return None
    rest = text[cues[-1].start("cue") :]
    if cues[-1]["objection"]:
        return rest
    if cues[-1]["within"]:
        instead = _CUE_WORDS.sub("", rest, count=1)
        if _INSTEAD.fullmatch(instead) and not _AGREES.search(instead):
            return instead
    opening, ending = _SENTENCE.split(rest)[0], _SENTENCE.split(rest.strip())[-1]
    if _CHECKS.search(opening) and _AGREES.search(ending) and not NEGATION.search(ending):
        return None
    return rest if _SUBSTANCE.search(rest) or NEGATION.search(rest) else None


def _is_cue(text: str, cue: re.Match[str]) -> bool:
    """Whether a cue starts a sentence, objects, or stands between commas: `9, no, wait, 14`."""
    return (
        not cue["within"]
        or cue["objection"] is not None
        or re.match(r"\s?[,:—–-]", text[cue.end("cue") :][:2]) is not None
    )
