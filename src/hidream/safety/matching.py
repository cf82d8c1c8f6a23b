"""Finds which kinds of words of the lexicon a prompt contains, by looking up its readings.

It knows how words are found (phrases, stems, compounds, harmless phrases, negation). `prompt.py` decides what follows.
All look-ups are in dictionaries, so the work grows linearly with the prompt.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cache

from hidream.safety import lexicon
from hidream.safety.age import speaks_of_age_under_18
from hidream.safety.spelling import fragments, looks_spaced_out, native, readings, variants


class Kind(StrEnum):
    """What a word of the lexicon is about."""

    EXPLICIT = "explicit"
    SUGGESTIVE = "suggestive"
    MINOR = "minor"
    MINOR_SEXUAL = "minor_sexual"
    GORE = "gore"
    SELF_HARM = "self_harm"
    HATE = "hate"
    HARMLESS = "harmless"


_NEGATIONS = frozenset({"no", "not", "non", "without", "zero", "never", "avoid"})
_YOUTH_REACH = 3
_PREFIX = 3
_PART_MIN = 3
_KATAKANA = "[ァ-ヺー]"
_CJK_FIRST = "\u3040"

_Entry = tuple[tuple[str, ...], Kind]


@dataclass(frozen=True, slots=True)
class Found:
    """The kinds of words in a prompt: all that are `named`, and those `affirmed`, without a negation before them."""

    named: frozenset[Kind]
    affirmed: frozenset[Kind]


@dataclass(frozen=True, slots=True)
class _Index:
    """The lexicon, ready for look-up.

    `phrases`: first word to (the words after it, kind). `stems`: first three letters to (stem, kind).
    `parts`: the words that compounds are split into, and `part_heads` their first three letters.
    """

    phrases: dict[str, list[_Entry]] = field(default_factory=dict)
    stems: dict[str, list[tuple[str, Kind]]] = field(default_factory=dict)
    parts: set[str] = field(default_factory=set)
    part_heads: set[str] = field(default_factory=set)


def find(prompt: str) -> Found:
    """Return which kinds of words a prompt contains in any of its readings."""
    named: set[Kind] = set()
    affirmed: set[Kind] = set()
    for words in readings(prompt):
        for kind, negated in _hits(words):
            named.add(kind)
            if not negated:
                affirmed.add(kind)
        named.update(_anywhere("".join(words)))
        for run in fragments(words):
            named.update(_spaced_out(run))
        if speaks_of_age_under_18(words):
            named.add(Kind.MINOR)
    if any(char >= _CJK_FIRST for char in prompt):
        kinds = set(_cjk(native(prompt)))
        named |= kinds
        affirmed |= kinds
    return Found(frozenset(named), frozenset(affirmed))


@cache
def _entries(text: str) -> tuple[str, ...]:
    return tuple(native(" ".join(entry.split())) for entry in text.split(",") if entry.strip())


def _with_plurals(word: str) -> list[str]:
    if word.endswith("*"):
        return [word]
    if word.endswith(("s", "x", "ch", "sh")):
        return [word, word + "es"]
    return [word, word + "s", word[:-1] + "ies"] if word.endswith("y") else [word, word + "s"]


@cache
def _index() -> _Index:
    index = _Index(parts=set(_entries(lexicon.JOINED_WORDS)))
    for kind in Kind:
        for entry in _entries(getattr(lexicon, kind.name)):
            *head, last = entry.split()
            if entry.endswith("*") and not head:
                index.stems.setdefault(last[:_PREFIX], []).append((last[:-1], kind))
            else:
                for form in _with_plurals(last):
                    first, *rest = *head, form
                    index.phrases.setdefault(first, []).append((tuple(rest), kind))
            if not head and kind in {Kind.EXPLICIT, Kind.SUGGESTIVE, Kind.MINOR}:
                index.parts.update(form.removesuffix("*") for form in _with_plurals(last))
    index.parts.difference_update([part for part in index.parts if len(part) < _PART_MIN])
    index.part_heads.update(part[:_PART_MIN] for part in index.parts)
    return index


def _hits(words: Sequence[str]) -> Iterator[tuple[Kind, bool]]:
    """Yield (kind, negated) of each entry found in `words` outside the harmless phrases."""
    memo = {word: variants(word) for word in set(words)}
    forms = [memo[word] for word in words]
    starts = {word for word in memo if _may_start(memo[word])}
    matches = [match for i, word in enumerate(words) if word in starts for match in _matches_at(forms, i)]
    covered = {i for start, end, kind in matches if kind is Kind.HARMLESS for i in range(start, end)}
    for start, end, kind in matches:
        if kind is not Kind.HARMLESS and covered.isdisjoint(range(start, end)):
            yield kind, start > 0 and words[start - 1] in _NEGATIONS
    if _has_youth(words):
        yield Kind.MINOR, False
    for form in {form for forms_of_word in memo.values() for form in forms_of_word}:
        parts = _compound(form)
        for part in parts:
            yield from ((kind, False) for _, _, kind in _matches_at([(part,)], 0))
        if _has_youth(parts):
            yield Kind.MINOR, False


def _may_start(forms: Iterable[str]) -> bool:
    """Whether an entry may begin with one of `forms`: asked once for each different word."""
    index = _index()
    return any(form in index.phrases or form[:_PREFIX] in index.stems for form in forms)


def _matches_at(forms: Sequence[Iterable[str]], i: int) -> Iterator[tuple[int, int, Kind]]:
    """Yield (start, end, kind) of the entries that begin at word `i`."""
    index = _index()
    for form in forms[i]:
        for rest, kind in index.phrases.get(form, ()):
            end = i + 1 + len(rest)
            if end <= len(forms) and all(map(_is_form, rest, forms[i + 1 : end])):
                yield i, end, kind
        for stem, kind in index.stems.get(form[:_PREFIX], ()):
            if form.startswith(stem):
                yield i, i + 1, kind


def _is_form(word: str, forms: Iterable[str]) -> bool:
    """Whether a word of an entry, perhaps a stem, is among the forms of a word of the prompt."""
    if word.endswith("*"):
        return any(form.startswith(word[:-1]) for form in forms)
    return word in forms


def _compound(word: str) -> list[str]:
    """Split a word that consists of listed words only; empty if it does not."""
    index = _index()
    if len(word) < 2 * _PART_MIN or word[:_PART_MIN] not in index.part_heads or word in index.parts:
        return []
    came_from = {0: 0}
    for start in range(len(word) - _PART_MIN + 1):
        if start in came_from and word[start : start + _PART_MIN] in index.part_heads:
            for end in range(start + _PART_MIN, min(start + _longest_part(), len(word)) + 1):
                if word[start:end] in index.parts:
                    came_from.setdefault(end, start)
    parts, end = [], len(word)
    while end in came_from and end > 0:
        parts.append(word[came_from[end] : end])
        end = came_from[end]
    return parts[::-1]


@cache
def _longest_part() -> int:
    return max(map(len, _index().parts))


def _has_youth(words: Sequence[str]) -> bool:
    """Whether a word such as "young" comes shortly before one such as "girl"."""
    youth, nouns = _youth_words()
    last = -_YOUTH_REACH - 1
    for i, word in enumerate(words):
        if word in nouns and i - last <= _YOUTH_REACH:
            return True
        if word in youth:
            last = i
    return False


@cache
def _youth_words() -> tuple[frozenset[str], frozenset[str]]:
    nouns = {form for noun in _entries(lexicon.YOUTH_NOUNS) for form in _with_plurals(noun)}
    return frozenset(_entries(lexicon.YOUTH)), frozenset(nouns)


def _anywhere(squeezed: str) -> Iterator[Kind]:
    """Yield the kinds of the long stems that are found in the letters of the prompt, whatever separates them."""
    for kind in (Kind.EXPLICIT, Kind.SUGGESTIVE, Kind.MINOR, Kind.MINOR_SEXUAL):
        if any(stem in squeezed for stem in _entries(getattr(lexicon, f"ANYWHERE_{kind.name}"))):
            yield kind


def _spaced_out(run: Sequence[str]) -> Iterator[Kind]:
    """Yield the kinds of the entries whose letters are found in a sequence of fragments, at any place in it.

    No gap shows where such words end ("x n u d e c h i l d y"), so "g r a p e" contains an entry too. This is why only
    the rule about minors uses it, which ignores context.
    """
    table, begun = _squeezed()
    for first in range(len(run)):
        text, singles = "", 0
        for i in range(first, len(run)):
            text += run[i]
            singles += len(run[i]) == 1
            if text in table and looks_spaced_out(i - first + 1, singles):
                yield table[text]
            if text not in begun:
                break


@cache
def _squeezed() -> tuple[dict[str, Kind], frozenset[str]]:
    """Return what is searched in letters without gaps, with its kind, and all prefixes of these entries."""
    table = {
        entry.replace(" ", "").removesuffix("*"): kind
        for kind in (Kind.EXPLICIT, Kind.SUGGESTIVE, Kind.MINOR, Kind.MINOR_SEXUAL)
        for entry in _entries(getattr(lexicon, kind.name))
    }
    youth, nouns = _youth_words()
    table |= {young + noun: Kind.MINOR for young in youth for noun in nouns}
    return table, frozenset(entry[:end] for entry in table for end in range(1, len(entry)))


def _cjk(text: str) -> Iterator[Kind]:
    """Yield the kinds of the Chinese and Japanese entries in `text`; only its letters are compared."""
    squeezed = "".join(filter(str.isalnum, text))
    for phrase in _entries(lexicon.CJK_HARMLESS):
        squeezed = squeezed.replace(phrase, "·")
    for kind in Kind:
        if kind is not Kind.HARMLESS:
            entries = _entries(getattr(lexicon, f"CJK_{kind.name}"))
            if any(entry in squeezed and _is_whole_katakana_word(entry, squeezed) for entry in entries):
                yield kind


def _is_whole_katakana_word(entry: str, text: str) -> bool:
    """Whether an entry is in `text`; a katakana entry only as a whole word: ロリ is not in カロリー."""
    before = f"(?<!{_KATAKANA})" if re.match(_KATAKANA, entry[0]) else ""
    after = f"(?!{_KATAKANA})" if re.match(_KATAKANA, entry[-1]) else ""
    return re.search(before + re.escape(entry) + after, text) is not None
