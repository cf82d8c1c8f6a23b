"""Finds ages under 18 among words: "15 year old", "fifteen-year-old", "aged 9", "9yo", "15 ans", "15岁"."""

from __future__ import annotations

import re
from collections.abc import Sequence

ADULT_YEARS = 18


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


NUMBERS = _words("""
one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen
eins zwei drei vier funf sechs sieben acht neun zehn elf zwolf dreizehn vierzehn funfzehn sechzehn siebzehn
un deux trois quatre cinq six sept huit neuf dix onze douze treize quatorze quinze seize dixsept
uno dos tres cuatro cinco seis siete ocho nueve diez once doce trece catorce quince dieciseis diecisiete
due tre quattro cinque sei sette otto nove dieci undici dodici tredici quattordici quindici sedici
diciassette um dois quatro sete oito dez doze treze dezesseis dezessete
""")
"""Words for 1 to 17 in English, German, French, Spanish, Italian and Portuguese."""

_ALONE = _words("yo yrold yearold yearolds jahrige jahriger jahriges jahrigen летняя летнии летние летнеи летнего")
_YEARS = _words("year years yr yrs y jahre ans anos años anni лет год года")
_OLD = _words("old olds o of young girl boy girls boys alt")
_YEARS_ALONE = _words("yr yrs ans anos años anni jahre лет")
_BEFORE = _words("age aged ages under below looks turning turns")
_GIRL_OR_BOY = _words("girl boy daughter son niece nephew sister brother")
_BARE_AGE_MIN = 3  # below that, "girl:1.2" is a weight and "girl 2" a count
_GLUED = re.compile(r"(\d{1,2})(?:yo|yr|yrs|y|years?|yearolds?|yrold|jahrige[rsn]?|岁|歲|歳|才)(?!\w)")
_ORDINAL = re.compile(r"(\d{1,2})(?:st|nd|rd|th)")
_CJK_AGE = re.compile(r"(?<![\d一二三四五六七八九十百])(\d{1,2}|[一二三四五六七八九十]{1,3})(?:岁|歲|歳|才)")
_KANJI = {sign: value for value, sign in enumerate("一二三四五六七八九十", start=1)}


def speaks_of_age_under_18(words: Sequence[str]) -> bool:
    """Whether `words` contain an age under 18; a number alone, a price or a measure is not an age."""
    for i, word in enumerate(words):
        if word not in NUMBERS and word.isalpha() and word.isascii():
            continue
        following = [*words[i + 1 : i + 3], "", ""]
        if _under_18(word) and (_is_age(following[0], following[1]) or _announced(words, i, following[0])):
            return True
        if _glued_under_18(word, following[0]):
            return True
    return False


def _is_age(first: str, second: str) -> bool:
    """Whether the words after a number make it an age."""
    return first in _ALONE or first in _YEARS_ALONE or (first in _YEARS and second in _OLD)


def _announced(words: Sequence[str], i: int, following: str) -> bool:
    """Whether the words before the number make it an age: "aged 9", "age of 16", "girl, 14"."""
    before, earlier = words[i - 1] if i else "", words[i - 2] if i > 1 else ""
    if before in _GIRL_OR_BOY:
        return not words[i].isdecimal() or int(words[i]) >= _BARE_AGE_MIN
    if before == "of" and following in _YEARS:
        return True
    return before in _BEFORE or (before in {"of", "between", "is", "like"} and earlier in _BEFORE)


def _glued_under_18(word: str, following: str) -> bool:
    """Whether one word is an age ("15yo", "十五岁") or, with the next one, a birthday ("15th birthday")."""
    if (glued := _GLUED.fullmatch(word)) and _under_18(glued[1]):
        return True
    if following == "birthday" and (ordinal := _ORDINAL.fullmatch(word)):
        return _under_18(ordinal[1])
    return any(_under_18(found[1]) for found in _CJK_AGE.finditer(word))


def _under_18(text: str) -> bool:
    if text in NUMBERS:
        return True
    if text.isdecimal() and len(text) <= 2:
        return int(text) < ADULT_YEARS
    return text[:1] in _KANJI and _kanji_number(text) < ADULT_YEARS


def _kanji_number(text: str) -> int:
    """Read a number below 100 in Chinese signs: 五, 十五, 二十, 三十五."""
    tens, ten, ones = text.rpartition("十")
    value = (_KANJI.get(tens, 1) if tens else 1) * 10 if ten else 0
    return value + (_KANJI.get(ones, 0) if ones else 0)
