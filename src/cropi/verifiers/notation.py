"""One notation for what people and models write in many: Unicode, LaTeX spelling, wrappers."""

from __future__ import annotations

import re
import unicodedata
from functools import lru_cache

from cropi.verifiers.dates_and_times import canonical_moment
from cropi.verifiers.number_words import in_digits

_SUPERSCRIPTS = "⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻ⁿ"
_SUPERSCRIPT_TABLE = str.maketrans(_SUPERSCRIPTS, "0123456789+-n")
_SUBSCRIPTS = "₀₁₂₃₄₅₆₇₈₉"
_SUBSCRIPT_TABLE = str.maketrans(_SUBSCRIPTS, "0123456789")
_SYMBOLS = {
    "−": "-", "–": "-", "—": "-", "‐": "-", "‑": "-", "∞": r"\infty ", "π": r"\pi ",
    "×": r"\times ", "·": r"\cdot ", "⋅": r"\cdot ", "∙": r"\cdot ", "÷": r"\div ", "≤": r"\leq ",
    "≥": r"\geq ",
    "⩽": r"\leq ", "⩾": r"\geq ", "≠": r"\neq ", "∈": r"\in ", "∪": r"\cup ", "∩": r"\cap ",
    "∅": r"\emptyset ", "Ø": r"\emptyset ", "±": r"\pm ", "∓": r"\mp ", "≈": r"\approx ",
    "°": r"^\circ ", "º": r"^\circ ", "∶": ":", "、": ",", "’": "'", "‘": "'", "“": '"', "”": '"',
    "⟨": "(", "⟩": ")", "ℝ": r"\mathbb{R}", "ℤ": r"\mathbb{Z}", "ℕ": r"\mathbb{N}",
    "ℚ": r"\mathbb{Q}", "…": r"\ldots ", "∠": r"\angle ", "θ": r"\theta ", "α": r"\alpha ",
    "β": r"\beta ", "λ": r"\lambda ", "φ": r"\phi ", "∖": r"\setminus ", "٫": ".", "٬": ",",
    "\u200b": "", "\ufeff": "", "\u2060": "", "＄": "$", "￡": "£", "￥": "¥", "％": "%", "。": ".",
    "→": r"\to ", "⇒": r"\Rightarrow ", "′": "'",
}  # fmt: skip
_SYMBOL_TABLE = str.maketrans(_SYMBOLS)
_MONEY = re.compile(
    r"(?:\\?\$(?P<dollars>\d[\d,]*)|(?P<before>\d[\d,]*)\s+dollars?),?\s+and\s+(?P<cents>\d\d)\s+cents?\b"
    r"|(?:\\text\w*\s*\{\s*(?P<boxed>Rs|USD|EUR|GBP)\.?\s*\}\s*|\b(?P<code>Rs|USD|EUR|GBP)\.?\s?)(?=\d)"
    r"|(?<=\d)/-(?![\w(\\])"
)
_CURRENCIES = {"Rs": "₹", "USD": "$", "EUR": "€", "GBP": "£"}
_ROOT = re.compile(r"([√∛∜])\s*(\((?:[^()]|\([^()]*\))*\)|\{[^{}]*\}|\d+(?:\.\d+)?|[^\W\d_]|\\\w+)")
_ROOTS = {"√": r"\sqrt", "∛": r"\sqrt[3]", "∜": r"\sqrt[4]"}
_REPEATING = re.compile(
    r"(?<![\d.])(\d{0,30})\.(\d{0,30}?)(?:\\(?:overline|bar|dot)\s*(?:\{(\d+)\}|(\d))|\((\d+)\))"
)
# 0.333... and 0.1666\ldots: a block three times, and then dots.
_CONTINUED = re.compile(
    r"(?<!\d)(\d{0,30})\.(\d{0,12}?)(\d{1,12}?)\3{2,12}(?:\\l?dots|\\cdots|\.\.\.)\s*$"
)
_THEREFORE = re.compile(
    r"^(?:\s*(?:∴|=>|\\(?:therefore|implies|Rightarrow|rightarrow|to)(?![a-zA-Z])))+"
)
_ORDINAL = re.compile(r"(?<=\d)\s*\^\s*\{\s*(?:\\(?:text|mathrm)\s*\{\s*)?(st|nd|rd|th)\s*\}?\s*\}")
_CHEMICAL = re.compile(
    r"\\(?:text|mathrm|ce)\s*\{((?:[A-Z][a-z]?(?:_(?:\d+|\{\d+\}))?)+)\}(?=\s*$|_)"
)
_RATE = re.compile(
    r"\\[dt]?frac\s*\{\s*\\text\s*\{(\w+)\}\s*\}\s*\{\s*\\text\s*\{(\w+)\}\s*((?:\^\d)?)\s*\}"
)
_BASE_IN_WORDS = re.compile(r"_\s*\{\s*(?:\\text\s*\{)?\s*([a-z]{3,})\s*\}?\s*\}")
_BASE_AFTER = re.compile(
    r"(?<=[\dA-F])[\s_{(,]{0,4}(?:\\text\s*\{)?[\s(,]{0,4}(?:in\s+)?base[\s\-}]{0,3}(\d+|[a-z]+)[\s)}]{0,4}$"
)
_REALS = re.compile(
    r"(?i)^(?:\\text\s*\{\s*)?(?:the\s+)?(?:set\s+of\s+)?(?:all|every)\s+"
    r"(?P<sign>(?:(?:non[- ]?)?(?:posi|nega)tive|non[- ]?zero)\s+)?"
    r"reals?(?:\s+(?:numbers?|values?))?(?:\s+x)?(?:\s+(?:except|other\s+than"
    r"|(?:such\s+that|with|where)\s+x\s*\\neq)\b(?:\s+for\b)?\s*\}?(?P<points>.+))?\s*\}?$"
)
_SIGNED = {
    "": r"\mathbb{R}", "positive": "x > 0", "negative": "x < 0", "nonnegative": r"x \geq 0",
    "nonpositive": r"x \leq 0", "nonzero": r"x \neq 0",
}  # fmt: skip
_SPELLINGS = (
    (_BASE_AFTER, lambda m: f"_{{{in_digits(m[1])}}}"),
    (re.compile(r"(?<=[\dA-F])_\s*\{?\s*\((\d+)\)\s*\}?"), r"_{\1}"),
    (re.compile(r"\(([\dA-F]+)\)(?=_\s*\{?\s*\d)"), r"\1"),
    (re.compile(r"\b0[xX][\da-fA-F]+\b"), lambda m: "0x" + m[0][2:].upper()),
    (re.compile(r"\\dot\s*\{?(\d)\}?(\d*)\\dot\s*\{?(\d)\}?"), r"\\overline{\1\2\3}"),
    (_THEREFORE, ""),
    (_CHEMICAL, r"\1"),
    (_BASE_IN_WORDS, lambda m: f"_{{{in_digits(m[1])}}}"),
    (_RATE, r"\\text{ \1/\2\3}"),
    (_ORDINAL, r"\1"),
    (re.compile(r"\\[dtc]frac(?![a-zA-Z])"), r"\\frac"),
    (re.compile(r"\\(?:left|right|[bB]igg?[lr]?)(?![a-zA-Z])\.?"), ""),
    (re.compile(r"\\(?:displaystyle|limits|mathstrut|underline|large|Large|bf)(?![a-zA-Z])"
                r"|\\(?:text)?color\s*\{\w+\}"), ""),
    (re.compile(r"\{\s*([,:])\s*\}"), r"\1"),
    (re.compile(r"<<[^<>\n]*>>"), ""),
    (_REPEATING, lambda m: _repeating(m)),
    (_CONTINUED, lambda m: _repeating(m)),
    (re.compile(r",\s*\\!\s*"), ","),
    (re.compile(r"(?<=\d)(?:\\,|\\ |\\;|\\:|~|\u00a0|\u202f|\u2009|\{\\,\})(?=\d{3}(?!\d))"), ","),
    (re.compile(r"(?<!\\)\\[,;:!> ]|~|&nbsp;"), " "),
    (re.compile(r"\\(?:quad|qquad|hspace\{[^{}]*\}|thinspace)(?![a-zA-Z])"), " "),
    (re.compile(r"\\leq?(?:slant)?(?![a-zA-Z])|<="), r"\\leq "),
    (re.compile(r"\\geq?(?:slant)?(?![a-zA-Z])|>="), r"\\geq "),
    (re.compile(r"\\lt(?![a-zA-Z])"), "<"),
    (re.compile(r"\\[lr]angle(?![a-zA-Z])"), lambda m: "(" if m[0][1] == "l" else ")"),
    (re.compile(r"\{?\s*(\w+)\s*\\choose\s*(\w+)\s*\}?"), r"\\binom{\1}{\2}"),
    (re.compile(r"\\lg(?![a-zA-Z])"), r"\\log_{10}"),
    (re.compile(r"\\pmod\s*(?:\{\s*(\w+)\s*\}|(\w))|\(\\?mod\s*(\w+)\)"),
     lambda m: rf"\pmod{{{m[1] or m[2] or m[3]}}}"),
    (re.compile(r"(?<=\d)\s*[xX]\s*(?=10\s*\^)|(?<=\d)\s+x\s+(?=[\d.])"), r" \\times "),
    (re.compile(r"\\gt(?![a-zA-Z])"), ">"),
    (re.compile(r"\\neq?(?![a-zA-Z])|!="), r"\\neq "),
    (re.compile(r"\\(?:varnothing|empty)(?![a-zA-Z])|\\\{\s*\\\}|^\{\s*\}$"), r"\\emptyset "),
    (re.compile(r"\\(?:lbrace|rbrace)(?![a-zA-Z])"), lambda m: r"\{" if "l" in m[0][:2] else r"\}"),
    (re.compile(r"\\(?:dots|cdots|dotsc|dotsb)(?![a-zA-Z])|\.\.\."), r"\\ldots "),
    (re.compile(r"\\(?:mathrm|operatorname|textit|text)\s*\{\s*(e|i|d)\s*\}"), r"\1 "),
    (re.compile(r"\^\s*\{\s*\\circ\s*\}|\\(?:text)?degree(?![a-zA-Z])"), r"^\\circ "),
    (re.compile(r"\\(?:mathbf|boldsymbol|bm|mathit|mathsf|mathtt)\s*\{([^{}]*)\}"), r"\1"),
    (re.compile(r"\\(?:text(?:bf|it|rm|normal|sf|tt)|[mh]box|mathrm|emph|operatorname)(?=\s*\{)"),
     r"\\text"),
    (re.compile(r"\\text\s*\{([^{}]*)\^\s*\{\s*(-?\d)\s*\}([^{}]*)\}"), r"\\text{\1^\2\3}"),
    (re.compile(r"\\text\s*\{\s*\}"), " "),
    (re.compile(r"\\text\s*\{(\s*-?[\d.,/]+\s*)\}"), r"\1"),
    (re.compile(r"(?<!\\)\\(?:%|#|&|_)"), lambda m: m[0][1:]),
    (re.compile(r"\\text(?:euro|dollar|sterling)(?:\{\})?|\\euro(?![a-zA-Z])|\\pounds(?![a-zA-Z])"),
     lambda m: "€" if "euro" in m[0] else "$" if "dollar" in m[0] else "£"),
    (re.compile(r"\s*(?<![a-zA-Z])(?:percent|pct|per cent)(?![a-zA-Z])"), "%"),
    (re.compile(r"\\text\s*\{\s*%\s*\}"), "%"),
    (re.compile(r"\\frac\s*(\d)\s*(\d)"), r"\\frac{\1}{\2}"),
    (re.compile(r"\\frac\s*(\d)\s*\{"), r"\\frac{\1}{"),
    (re.compile(r"\\frac\s*(\{[^{}]*\})\s*(\d)"), r"\\frac\1{\2}"),
    (re.compile(r"\\[dt]?binom\s*(\d)\s*(\d)"), r"\\binom{\1}{\2}"),
    (re.compile(r"(?<![\\a-zA-Z])(sin|cos|tan|ln|log|exp)(?=\()"), r"\\\1"),
    (re.compile(r"\\sqrt\s*(\d|[a-zA-Z](?![a-zA-Z]))"), r"\\sqrt{\1}"),
    (re.compile(r"\\?(?<![a-zA-Z])sqrt\s*\(((?:[^()]|\([^()]*\))*)\)"), r"\\sqrt{\1}"),
    (re.compile(r"(?<![\\a-zA-Z])(pi|inf(?=inity))(?:inity)?(?![a-zA-Z])"),
     lambda m: r"\pi " if m[1] == "pi" else r"\infty "),
    (re.compile(r"\*\*(?=\s*[\d({a-z-])(?<=[\w)}]\*\*)"), "^"),
    (_REALS, lambda m: _set_of_reals(m)),
    (re.compile(r"_\s*\{\s*(\w)\s*\}"), r"_\1"),
    (re.compile(r"\^\s*\{\s*(\w)\s*\}"), r"^\1"),
)  # fmt: skip
_APPROXIMATELY = re.compile(
    r"^(?:\\approx|\\simeq|~|≈"
    r"|(?:approximately|approx\.?|about|roughly|around|exactly|only|just)\b)\s*",
    re.IGNORECASE,
)
_DELIMITERS = (("$$", "$$"), ("$", "$"), (r"\(", r"\)"), (r"\[", r"\]"), ("**", "**"), ("__", "__"),
               ("*", "*"), ("`", "`"), ('"', '"'), ("'", "'"))  # fmt: skip


def _repeating(match: re.Match[str]) -> str:
    """Return a repeating decimal as a fraction: 0.1\\overline{6} is 15/90."""
    whole, start, *blocks = match.groups()
    block = next(b for b in blocks if b)
    numerator = int((whole or "") + start + block) - int((whole or "") + start or "0")
    return f"\\frac{{{numerator}}}{{{'9' * len(block) + '0' * len(start)}}}"


def _set_of_reals(match: re.Match[str]) -> str:
    """Return all real numbers, or those with one sign or except some points, in symbols."""
    sign, points = re.sub(r"[-\s]", "", match["sign"] or "").lower(), match["points"]
    if not points:
        return _SIGNED[sign]
    closes = points.count("}") > points.count("{")
    return match[0] if sign else f"x \\neq {points.strip()[: -1 if closes else None]}"


@lru_cache(maxsize=65536)
def normalise(text: str) -> str:
    """Return a statement in one notation: ASCII digits, LaTeX commands in one spelling, no marks.

    What it means stays the same; `\\text{...}` stays, because it tells words from variables.
    """
    text = ascii_notation(text)
    text = unwrapped(text)
    text = _INLINE.sub(_without_delimiters, text).replace(r"\$", "$")
    for pattern, replacement in _SPELLINGS:
        text = pattern.sub(replacement, text)
    text = _APPROXIMATELY.sub("", unwrapped(text).strip())
    return re.sub(r"\s+", " ", text).strip()


_INLINE = re.compile(r"(?<![\\$])\$(?!\s)([^$]*?)(?<!\s)\$(?!\d)|\\\((.*?)\\\)")


def _without_delimiters(match: re.Match[str]) -> str:
    """Return what `$...$` holds; two amounts of dollars with prose between stay as they are."""
    inside: str = match[1] if match[1] is not None else match[2]
    return match[0] if re.search(r"(?<![\\{A-Za-z])[A-Za-z]{2,}\s", inside) else inside


@lru_cache(maxsize=65536)
def ascii_notation(text: str) -> str:
    """Return a text with Unicode digits, fractions, powers, roots and operators in LaTeX."""
    text = _MONEY.sub(_amount, text)
    if text.isascii():
        return text
    text = unicodedata.normalize("NFC", text)
    text = _ROOT.sub(lambda m: f"{_ROOTS[m[1]]}{{{_inside(m[2])}}}", text)
    text = re.sub(
        f"[{_SUPERSCRIPTS}]+", lambda m: f"^{{{m[0].translate(_SUPERSCRIPT_TABLE)}}}", text
    )
    text = re.sub(f"[{_SUBSCRIPTS}]+", lambda m: f"_{{{m[0].translate(_SUBSCRIPT_TABLE)}}}", text)
    text = re.sub(r"(?<=\d)[\u00a0\u202f\u2009](?=\d{3}(?!\d))", ",", text)
    text = text.translate(_SYMBOL_TABLE)
    return "".join(c if c.isascii() else _ascii_character(c) for c in text)


def _amount(match: re.Match[str]) -> str:
    """Return `Rs.` or `USD` as its sign, `/-` as nothing, and dollars and cents as one number."""
    if match["cents"]:
        return f"${match['dollars'] or match['before']}.{match['cents']}"
    return _CURRENCIES.get(match["boxed"] or match["code"] or "", "")


def _inside(text: str) -> str:
    return text[1:-1] if text[0] in "({" else text


def _ascii_character(character: str) -> str:
    """Return a digit, a fraction or a full-width form in ASCII; other characters as they are."""
    digit = unicodedata.decimal(character, None)
    if digit is not None:
        return str(digit)
    compatible = unicodedata.normalize("NFKC", character)
    if "\u2044" in compatible:
        numerator, _, denominator = compatible.partition("\u2044")
        return f"\\frac{{{numerator}}}{{{denominator}}}" if denominator else character
    return compatible if compatible.isascii() else character


_ORNAMENT = re.compile(r"[\s\u2600-\u27bf\u2b00-\u2bff\U0001f000-\U0001faff\ufe0f\u200d]")
_FINAL = re.compile(r"(?<!\\)(?<!\.\.)(?<![ap]\.m)(?<![ap]\.\sm)[.;]$|(?<=[^\W\d_]{2})!$")


def unwrapped(text: str) -> str:
    """Return a text without delimiters, bold marks, emojis and the final full stop around it."""
    text = text if text.isascii() else _without_ornaments(text)
    while True:
        before, text = text, text.strip()
        if _FINAL.search(text):
            text = text[:-1].rstrip()
        for opening, closing in _DELIMITERS:
            inside = text[len(opening) : -len(closing)]
            if (
                len(text) > len(opening) + len(closing)
                and text.startswith(opening)
                and text.endswith(closing)
                and opening[-1] not in inside.replace("\\$", "").replace("\\(", "")
                and not inside.endswith("\\")
            ):
                text = inside
        if text == before:
            return text


def _without_ornaments(text: str) -> str:
    """Return a text without the emojis before and after it; emojis alone as they are."""
    start, end = 0, len(text)
    while start < end and _ORNAMENT.match(text[start]):
        start += 1
    while start < end and _ORNAMENT.match(text[end - 1]):
        end -= 1
    return text[start:end] or text


_TEXT = re.compile(r"\\text\w*\s*\{([^{}]*)\}")
_NO_SOLUTION = re.compile(
    r"(?i)(?:there (?:is|are) )?"
    r"(?:no (?:(?:real|integer|such|valid) )?solutions?|(?:the )?empty set)"
)
_ENDLESS = re.compile(
    r"(?i)(?:there (?:is|are) )?(?:infinitely many|infinite)(?: (?:real )?solutions)?"
)
_ENUMERATION = re.compile(r"\(?([A-Za-z])\)|(?:[Oo]ption|[Cc]hoice)\s+\(?([A-Z])\)?")


@lru_cache(maxsize=65536)
def canonical_text(text: str) -> str:
    """Return a normalised text for comparison as text: without wrappers, case and spacing.

    The case of single letters stays: x and X, or A and a, are different variables.
    """
    plain = normalise(unwrapped(_TEXT.sub(r"\1", text)))
    plain = _TEXT.sub(r"\1", plain)
    letter = _ENUMERATION.fullmatch(plain)
    if letter:
        return (letter[1] or letter[2]).upper()
    moment = canonical_moment(plain)
    if moment is not None:
        return moment
    if _NO_SOLUTION.fullmatch(plain):
        return "\\emptyset"
    if _ENDLESS.fullmatch(plain):
        return "\\infty"
    plain = re.sub(r"^(\d+)\s*to\s*(\d+)$", r"\1:\2", plain)
    plain = re.sub(r"(?i)^(?:the|an?)\s+(?=[^\W\d_]{2})", "", plain)
    plain = re.sub(r"(?<!\\)\b[^\W\d_]{2,}", lambda m: m[0].casefold(), plain)
    plain = re.sub(r"\b([ap])\.\s?m\b\.?", r"\1m", plain)
    plain = re.sub(r"(?<=[^\W\d_])\s+(?=[^\W\d_])", "\x00", plain)
    return re.sub(r"\s+", "", plain).replace("\x00", " ")
