"""Undoes disguised spelling: returns the possible readings of a prompt, each as a list of plain words.

It handles look-alike letters, digits for letters, accents, invisible characters, and words spaced out letter by letter.
It knows no list of words; `matching.py` looks up the readings. Every step is one pass over the text.
"""

from __future__ import annotations

import itertools
import re
import unicodedata
from collections.abc import Iterable, Iterator


def _pairs(source: str, target: str) -> dict[int, str]:
    assert len(source) == len(target), "each look-alike needs its letter"
    return {ord(s): t for s, t in zip(source, target, strict=True)}


# Letters that look Latin, from Unicode's confusables.txt, limited to the scripts that occur in practice.
LOOK_ALIKES = (
    _pairs("АВЕЅІЈКМНОРСТУХҮԌԚԜЗ", "ABESIJKMHOPCTYXYGQW3")
    | _pairs("авеѕіјкмнорстухүһԁӏԛԝпигьєз", "abesijkmhopctyxyhdlqwnurbe3")
    | _pairs("ΑΒΕΖΗΙΚΜΝΟΡΤΥΧαβεηικνορτυχγωσς", "ABEZHIKMNOPTYXabenikvoptuxywss")
    | _pairs("ıłøđŧħɡɑɩƒɛəʀɪɴʟʏʙɢʜᴀᴄᴅᴇᴊᴋᴍᴏᴘꜱᴛᴜᴠᴡᴢꜰǫ×", "ilodthgaifeerinlybghacdejkmopstuvwzfqx")
    | {0x1F150 + n: chr(97 + n) for n in range(26)}  # negative circled letters
    | {0x1F170 + n: chr(97 + n) for n in range(26)}  # negative squared letters
    | {0x1F1E6 + n: chr(97 + n) for n in range(26)}  # regional indicators
)

# Digits and signs that replace letters, in two readings, because 1, ! and | may replace i or l.
_LEET_SIGNS = "013456789@$€+!|"
LEET = tuple(_pairs(_LEET_SIGNS, f"o{il}easgtbgaset{il}{il}") for il in "il")

_MARKS_MAX = 3
"""Successive combining marks that are kept: more are decoration, and normalising long runs takes quadratic time."""

_KEPT_TILDE = str.maketrans({"ñ": "\ue000", "Ñ": "\ue000"})  # niña is a child, Nina a name
_EDGE = "!|+.,;:?()[]{}\"'"
_FRAGMENT_MAX = 2
_RUN_MIN = 3
# Blanks that Unicode classifies as letters, and two ligatures that expand to whole sentences.
_DROPPED = frozenset("\u115f\u1160\u3164\u034f\ufdfa\ufdfb")
_ACCENTS = dict.fromkeys(range(0x300, 0x370))
_WORD = re.compile(r"[^\W_]+(?:\*+[^\W_]+)*")
_GAP = re.compile(r"([\W_]+)")
_THREE_LETTERS = re.compile(r"(?<![^\W_])[^\W_](?:[\W_]+[^\W_]){2}(?![^\W_])")
_CHUNK = re.compile(r"\S+")
_TRIPLE = re.compile(r"(.)\1{2,}")
_STARS = re.compile(r"\*+")
_VOWELS = "aeiou"


def native(text: str) -> str:
    """Return the normal form that keeps each script: NFKC, lower case, no accents (but ñ), no invisibles."""
    if text.isascii():  # nothing below changes ASCII
        return text.lower()
    plain = unicodedata.normalize("NFKD", unicodedata.normalize("NFC", _visible(text)).translate(_KEPT_TILDE))
    return unicodedata.normalize("NFC", plain.translate(_ACCENTS)).casefold().replace("\ue000", "ñ")


def latin(text: str) -> str:
    """Return the normal form that replaces look-alikes of other scripts by the Latin letters they look like."""
    if text.isascii():
        return text.lower()
    plain = unicodedata.normalize("NFKD", _visible(text)).translate(_ACCENTS)
    return unicodedata.normalize("NFC", plain.translate(LOOK_ALIKES)).casefold()


def readings(prompt: str) -> Iterator[list[str]]:
    """Yield the different readings of a prompt as words, each followed by "" and its disguised words, undone.

    If letters are spaced out, there is one more reading, with the words that the gaps between them indicate.
    """
    seen: list[list[str]] = []
    base = latin(prompt)
    for text in dict.fromkeys((native(prompt), base, *(_unleet(base, table) for table in LEET))):
        for form in (text, _closed_up(text)) if _THREE_LETTERS.search(text) else (text,):
            words = _WORD.findall(form)
            if words not in seen:
                seen.append(words)
                yield [*words, *_undone(form, words)]


def fragments(words: Iterable[str]) -> Iterator[list[str]]:
    """Yield each sequence of words of one or two letters, which may contain spaced-out words without gaps between."""
    run: list[str] = []
    for word in (*words, "end"):
        if 0 < len(word) <= _FRAGMENT_MAX:
            run.append(word)
        elif run:
            yield run
            run = []


def looks_spaced_out(fragment_count: int, single_count: int) -> bool:
    """Whether fragments, some of them single letters, are likely a spaced-out word: "a b" and "it is an" are not."""
    return fragment_count >= _RUN_MIN and 2 * single_count >= fragment_count


def variants(word: str) -> tuple[str, ...]:
    """Return the word, its forms without stretched letters ("soooo"), and those with a vowel for "*" ("w*rd")."""
    if word.isalpha() and not _TRIPLE.search(word):
        return (word,)
    plain = word.replace("*", "")
    forms = {word, plain}
    if "*" in word and not plain.isdigit():
        forms |= {_STARS.sub(vowel, word) for vowel in _VOWELS}
    forms |= {_TRIPLE.sub(r"\1", plain), _TRIPLE.sub(r"\1\1", plain)}
    return tuple(sorted(forms))


def _visible(text: str) -> str:
    """Drop format characters (zero width, direction, tags) and combining marks beyond three in a row."""
    if not any(unicodedata.combining(char) or _is_dropped(char) for char in set(text)):
        return text
    kept, marks = [], 0
    for char in text:
        if not _is_dropped(char):
            marks = marks + 1 if unicodedata.combining(char) else 0
            kept.append(char if marks <= _MARKS_MAX else "")
    return "".join(kept)


def _is_dropped(char: str) -> bool:
    return char in _DROPPED or unicodedata.category(char) == "Cf"


def _unleet(text: str, table: dict[int, str]) -> str:
    """Read digits and signs as letters; numbers stay, and signs at the edge of a word are punctuation.

    Blanks are kept, because they show where spaced-out words end.
    """

    def letters(found: re.Match[str]) -> str:
        chunk = found[0].strip(_EDGE) if len(found[0]) > 1 else found[0]  # "c h ! l d"
        return chunk if chunk.isalpha() or _is_number(chunk) else chunk.translate(table)

    return _CHUNK.sub(letters, text)


def _closed_up(text: str) -> str:
    """Join spaced-out letters to words that end at wider gaps: "x. n u d e   1 5 y" becomes "x. nude   15 y"."""
    words, gaps = _GAP.split(text)[::2], _GAP.findall(text)
    pairs = zip(gaps, itertools.pairwise(words), strict=True)
    inner = [gap if len(a) == len(b) == 1 and a.isdecimal() == b.isdecimal() else "" for gap, (a, b) in pairs]
    kept = [gap if _parts_words(inner, i) else "" for i, gap in enumerate(gaps)]
    return "".join(word + gap for word, gap in zip(words, [*kept, ""], strict=True))


def _parts_words(inner: list[str], i: int) -> bool:
    """Whether a gap separates words, not letters: wider than a neighbour, or as wide as both but of other signs.

    `inner` has the gaps between two letters or two digits, and "" for all others.
    """
    if not inner[i]:
        return True
    width, beside = len(inner[i]), [gap for gap in (*inner[max(i - 1, 0) : i], *inner[i + 1 : i + 2]) if gap]
    narrowest = min(map(len, beside), default=width + 1)
    return width > narrowest or (width == narrowest and inner[i] not in beside)


def _is_number(chunk: str) -> bool:
    return len(chunk) > 1 and not any(map(str.isalpha, chunk))


def _undone(text: str, words: list[str]) -> Iterator[str]:
    """Yield "" and the joined word for each word split by signs ("wo.rd") or spaced out ("w o r d")."""
    for chunk in text.split():
        parts = _WORD.findall(chunk) if not chunk.isalnum() else ()
        if len(parts) > 1 and min(map(len, parts)) <= _FRAGMENT_MAX:
            yield from ("", "".join(parts))
    for run in fragments(words):
        yield from _joined(run)


def _joined(run: list[str]) -> Iterator[str]:
    """Yield "" and the joined word of a run of fragments, with and without the short words around it."""
    first, last = 0, len(run)
    while first < last and _is_short_word(run[first]):
        first += 1
    while last > first and _is_short_word(run[last - 1]):
        last -= 1
    for part in {tuple(run), tuple(run[first:last])}:
        singles = sum(len(fragment) == 1 for fragment in part)
        if looks_spaced_out(len(part), singles):
            yield from ("", "".join(part))


def _is_short_word(word: str) -> bool:
    return len(word) == _FRAGMENT_MAX or word in {"a", "i", "o"}
