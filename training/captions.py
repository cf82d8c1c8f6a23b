"""What is said of a scene: captions as various as people's prompts, and one plain form for evaluation.

Pure Python: words come from `concepts.toml` and `fillers.toml`. A caption may leave style or background out; the
image then has any, which is what such a prompt will be answered with. Nothing is ever said that the image does not
show, except for fillers, which mean nothing. Nouns that nano does not know are another matter (`words.py`).
"""

from __future__ import annotations

import random

from concepts import Concepts, Object, article
from scenes import Extent, Layout, Scene

NO_STYLE, NO_BACKGROUND = 0.1, 0.08
FILLED, ADORNED, TYPO, CAPITAL, FULL_STOP, BARE = 0.15, 0.08, 0.05, 0.06, 0.06, 0.1
"""Shares: of fillers, of unknown adjectives (of the objects), of typos, capitals, full stops, no articles."""

SIZE_WORDS = {
    Extent.SMALL: ("small", "little", "tiny"),
    Extent.BIG: ("big", "large", "huge", "giant"),
    Extent.NORMAL: ("",),
}
NUMBER_WORDS = {2: ("two", "2", "a pair of", "two"), 3: ("three", "3", "three")}
PAIRS = {
    Layout.AND: ("{0} and {1}", "{0} and {1}", "{0} with {1}", "{0} next to {1}", "{0} beside {1}", "{0}, {1}"),
    Layout.LEFT_OF: (
        "{0} left of {1}", "{0} to the left of {1}", "{1} right of {0}", "{1} to the right of {0}",
        "{0} on the left and {1} on the right", "on the left {0}, on the right {1}",
    ),
    Layout.ABOVE: (
        "{0} above {1}", "{0} over {1}", "{1} below {0}", "{1} under {0}", "{0} on top of {1}",
        "{0} at the top and {1} at the bottom",
    ),
}  # fmt: skip
PREPOSITIONS = ("in", "on", "at", "against", "with", "under", "among", "up", "while", "floating", "walking")


def plain_caption(scene: Scene, concepts: Concepts, noun: str = "") -> str:
    """The whole scene in first words: 'a small cat on a red background, flat style'; `noun` names a single object."""
    things = [Object(noun, "", ()) if noun else concepts.objects[name] for name in scene.objects]
    adjectives = [SIZE_WORDS[scene.extent][0]]
    if scene.layout is Layout.SINGLE:
        subject = _noun_phrase(things[0], things[0].name, NUMBER_WORDS.get(scene.count, ("",))[0], adjectives)
    else:
        subject = PAIRS[scene.layout][0].format(*(_noun_phrase(thing, thing.name, "", []) for thing in things))
    return f"{subject} {concepts.backgrounds[scene.background].phrases[0]}, {concepts.styles[scene.style].closers[0]}"


def caption(scene: Scene, rng: random.Random, concepts: Concepts, noun: str = "") -> str:
    """One of the many ways to ask for `scene`; `noun` names its first object."""
    style = concepts.styles[scene.style]
    place = "" if rng.random() < NO_BACKGROUND else rng.choice(concepts.backgrounds[scene.background].phrases)
    form = "none" if rng.random() < NO_STYLE else rng.choice(("adjective", "front", "opener", "closer", "closer"))
    adjective = rng.choice(style.adjectives) if form == "adjective" else ""
    words = _subject(scene, rng, concepts, adjective, noun)
    if form == "front":
        words = f"{rng.choice(style.adjectives)} {words}"
    if form == "opener":
        words = f"{rng.choice(style.openers)} of {words}"
    closers = [rng.choice(style.closers)] if form == "closer" else []
    return _disturb(_fill(_join(words, place, closers, rng), rng, concepts), rng)


def _subject(scene: Scene, rng: random.Random, concepts: Concepts, adjective: str, noun: str) -> str:
    bare = rng.random() < BARE
    size, number = rng.choice(SIZE_WORDS[scene.extent]), rng.choice(NUMBER_WORDS.get(scene.count, ("",)))
    adjectives = [size, adjective] if rng.random() < 0.8 else [adjective, size]
    phrases = []
    for i, name in enumerate(scene.objects):
        thing = concepts.objects[name]
        word = name if rng.random() < 0.65 else rng.choice(thing.words)
        if noun and i == 0:
            thing, word = Object(noun, "", ()), noun
        adorned = [rng.choice(concepts.fillers.adjectives)] if rng.random() < ADORNED else []
        phrases.append(_noun_phrase(thing, word, number, adjectives + adorned, bare))
    if scene.layout is Layout.SINGLE:
        return phrases[0]
    return rng.choice(PAIRS[scene.layout]).format(*phrases)


def _noun_phrase(thing: Object, word: str, number: str, adjectives: list[str], bare: bool = False) -> str:
    """'a big cat', 'two flat cats', 'grapes', 'a bunch of grapes'; `bare` leaves the article out."""
    counted = not thing.mass
    if word.startswith("a "):
        counted, word = True, word[2:]
    if number:
        word = thing.plural if thing.plural and word == thing.name else _plural(word)
    described = " ".join(filter(None, (*adjectives, word)))
    if number:
        return f"{number} {described}"
    return f"{article(described)} {described}" if counted and not bare else described


def _plural(word: str) -> str:
    head, of, rest = word.partition(" of ")
    if head.endswith(("s", "x", "ch", "sh")):
        head += "es"
    elif head.endswith("y") and head[-2] not in "aeiou":
        head = head[:-1] + "ies"
    elif head.endswith("leaf"):
        head = head[:-1] + "ves"
    else:
        head += "s"
    return head + of + rest


def _join(words: str, place: str, closers: list[str], rng: random.Random) -> str:
    """Put the background before, behind or after the style."""
    if not place:
        return ", ".join((words, *closers))
    if rng.random() < 0.15:
        return ", ".join((place, words, *closers))
    if closers and rng.random() < 0.3:
        return ", ".join((words, *closers, place))
    joined = place.split()[0] in PREPOSITIONS and rng.random() < 0.85
    return ", ".join((f"{words} {place}" if joined else f"{words}, {place}", *closers))


def _fill(words: str, rng: random.Random, concepts: Concepts) -> str:
    """Say more than nano understands; mostly behind, where a long prompt may be cut."""
    if rng.random() >= FILLED:
        return words
    if rng.random() < 0.4:
        words = f"{rng.choice(concepts.fillers.before)} {words}"
    behind = rng.sample(concepts.fillers.behind, rng.choice((0, 1, 1, 2, 3, 5, 8)))
    return ", ".join((words, *behind))


def _disturb(words: str, rng: random.Random) -> str:
    if rng.random() < TYPO:
        words = _typo(words, rng)
    if rng.random() < CAPITAL:
        words = words[0].upper() + words[1:]
    return words + "." if rng.random() < FULL_STOP else words


def _typo(words: str, rng: random.Random) -> str:
    """Swap, drop or double one letter inside a word of at least four."""
    places = [i for i in range(1, len(words) - 2) if words[i - 1 : i + 3].isalpha()]
    if not places:
        return words
    i = rng.choice(places)
    middle = rng.choice((words[i + 1] + words[i], words[i + 1], words[i] * 2 + words[i + 1]))
    return words[:i] + middle + words[i + 2 :]
