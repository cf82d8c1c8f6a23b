"""Undoes disguised spelling: one prompt in, its possible readings out, each a list of plain words.

Look-alike letters, digits for letters, accents, invisible characters, words spaced out letter by letter.
It knows no list of words; `matching.py` looks the readings up. Every step is one pass over the text.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator


def _pairs(source: str, target: str) -> dict[int, str]:
    assert len(source) == len(target), "each look-alike needs its letter"
    return {ord(s): t for s, t in zip(source, target, strict=True)}


# Letters that look Latin. After Unicode's confusables.txt, reduced to the scripts met in practice.
LOOK_ALIKES = (
    _pairs("АВЕЅІЈКМНОРСТУХҮԌԚԜЗ", "ABESIJKMHOPCTYXYGQW3")
    | _pairs("авеѕіјкмнорстухүһԁӏԛԝпигьєз", "abesijkmhopctyxyhdlqwnurbe3")
    | _pairs("ΑΒΕΖΗΙΚΜΝΟΡΤΥΧαβεηικνορτυχγωσς", "ABEZHIKMNOPTYXabenikvoptuxywss")
    | _pairs("ıłøđŧħɡɑɩƒɛəʀɪɴʟʏʙɢʜᴀᴄᴅᴇᴊᴋᴍᴏᴘꜱᴛᴜᴠᴡᴢꜰǫ×", "ilodthgaifeerinlybghacdejkmopstuvwzfqx")
    | {0x1F150 + n: chr(97 + n) for n in range(26)}  # negative circled letters
    | {0x1F170 + n: chr(97 + n) for n in range(26)}  # negative squared letters
    | {0x1F1E6 + n: chr(97 + n) for n in range(26)}  # regional indicators
)

# Digits and signs for letters, in two readings, because 1, ! and | are written for i and for l.
_LEET_SIGNS = "013456789@$€+!|"
LEET = tuple(_pairs(_LEET_SIGNS, f"o{il}easgtbgaset{il}{il}") for il in "il")

_MARKS_MAX = 3
"""Combining marks kept in a row: more is decoration, and to normalise long runs of them is quadratic."""

_KEPT_TILDE = str.maketrans({"ñ": "\ue000", "Ñ": "\ue000"})  # niña is a child, Nina a name
_EDGE = "!|+.,;:?()[]{}\"'"
_FRAGMENT_MAX = 2
_RUN_MIN = 3
# Blanks that Unicode calls letters, and two ligatures that unfold to whole sentences.
_DROPPED = frozenset("\u115f\u1160\u3164\u034f\ufdfa\ufdfb")
_ACCENTS = dict.fromkeys(range(0x300, 0x370))
_WORD = re.compile(r"[^\W_]+(?:\*+[^\W_]+)*")
_TRIPLE = re.compile(r"(.)\1{2,}")
_STARS = re.compile(r"\*+")
_VOWELS = "aeiou"


def native(text: str) -> str:
    """Return the normal form that keeps each script: NFKC, lower case, no accents (but ñ), no invisibles."""
    if text.isascii():  # which all of this leaves as it is
        return text.lower()
    plain = unicodedata.normalize("NFKD", unicodedata.normalize("NFC", _visible(text)).translate(_KEPT_TILDE))
    return unicodedata.normalize("NFC", plain.translate(_ACCENTS)).casefold().replace("\ue000", "ñ")


def latin(text: str) -> str:
    """Return the normal form in which look-alikes of other scripts are the Latin letters they look like."""
    if text.isascii():
        return text.lower()
    plain = unicodedata.normalize("NFKD", _visible(text)).translate(_ACCENTS)
    return unicodedata.normalize("NFC", plain.translate(LOOK_ALIKES)).casefold()


def readings(prompt: str) -> Iterator[list[str]]:
    """Yield the different readings of a prompt as words; at the end, after "", its undone disguised words."""
    seen: list[list[str]] = []
    base = latin(prompt)
    for text in dict.fromkeys((native(prompt), base, *(_unleet(base, table) for table in LEET))):
        words = _WORD.findall(text)
        if words not in seen:
            seen.append(words)
            yield [*words, *_undone(text, words)]


def variants(word: str) -> tuple[str, ...]:
    """Return the word, also without stretched letters ("soooo"), and with a vowel for "*" ("w*rd")."""
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
    """Read digits and signs as letters; numbers stay, and signs at the edge of a word are punctuation."""
    chunks = (chunk.strip(_EDGE) for chunk in text.split())
    return " ".join(chunk if chunk.isalpha() or _is_number(chunk) else chunk.translate(table) for chunk in chunks)


def _is_number(chunk: str) -> bool:
    return len(chunk) > 1 and not any(map(str.isalpha, chunk))


def _undone(text: str, words: list[str]) -> Iterator[str]:
    """Yield "" and the joined word for each word split by signs ("wo.rd") or spaced out ("w o r d")."""
    for chunk in text.split():
        parts = _WORD.findall(chunk) if not chunk.isalnum() else ()
        if len(parts) > 1 and min(map(len, parts)) <= _FRAGMENT_MAX:
            yield from ("", "".join(parts))
    run: list[str] = []
    for word in (*words, "end"):
        if len(word) <= _FRAGMENT_MAX:
            run.append(word)
        elif run:
            yield from _joined(run)
            run = []


def _joined(run: list[str]) -> Iterator[str]:
    """Yield "" and the joined word of a run of fragments, with and without the short words around it."""
    first, last = 0, len(run)
    while first < last and _is_short_word(run[first]):
        first += 1
    while last > first and _is_short_word(run[last - 1]):
        last -= 1
    for part in {tuple(run), tuple(run[first:last])}:
        singles = sum(len(fragment) == 1 for fragment in part)
        if len(part) >= _RUN_MIN and 2 * singles >= len(part):  # "a b" and "it is an" are no disguise
            yield from ("", "".join(part))


def _is_short_word(word: str) -> bool:
    return len(word) == _FRAGMENT_MAX or word in {"a", "i", "o"}
