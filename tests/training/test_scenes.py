"""Scenes follow their seed, evaluation's combinations stay out of training, and captions say what is there."""

from __future__ import annotations

import random
import re
from collections import Counter

import pytest

from captions import _plural, caption, plain_caption
from concepts import load_concepts
from scenes import Extent, Layout, Scene, Split, draw_scene, held_out

CONCEPTS = load_concepts()
STYLES = tuple(CONCEPTS.styles)


def scenes(count, split=Split.TRAIN, seed=0, aspect=1.0):
    rng = random.Random(seed)
    return [draw_scene(rng, split, CONCEPTS, aspect) for _ in range(count)]


def test_there_is_as_much_as_was_promised():
    assert len(CONCEPTS.objects) >= 100
    assert len(CONCEPTS.styles) == 4
    assert len(CONCEPTS.backgrounds) == 21
    assert sum(background.rgb is not None for background in CONCEPTS.backgrounds.values()) == 12


def test_a_concept_that_appears_twice_is_refused(tmp_path):
    twice = tmp_path / "concepts.toml"
    objects = '{ name = "cat", code = "1", words = ["cat"] }, { name = "lion", code = "1", words = ["lion"] }'
    twice.write_text(f"colour_phrases = []\nstyles = []\nbackgrounds = []\nobjects = [{objects}]")
    with pytest.raises(ValueError, match="hexcode 1 appears more than once"):
        load_concepts(twice)


def test_the_same_seed_draws_the_same():
    assert scenes(200, seed=4) == scenes(200, seed=4) != scenes(200, seed=5)
    scene = scenes(1)[0]
    assert caption(scene, random.Random(1), CONCEPTS) == caption(scene, random.Random(1), CONCEPTS)


def test_held_out_is_never_in_training():
    drawn = scenes(10_000)
    assert not any(held_out(scene) for scene in drawn)
    assert all(held_out(scene) for scene in scenes(300, Split.HELD_OUT))
    singles = [(o, s, b) for o in CONCEPTS.objects for s in CONCEPTS.styles for b in CONCEPTS.backgrounds]
    share = sum(held_out(Scene((o,), s, b)) for o, s, b in singles) / len(singles)
    assert 0.04 < share < 0.06
    # training still meets every concept, and evaluation can ask for nearly every one
    assert {name for scene in drawn for name in scene.objects} == set(CONCEPTS.objects)
    assert len({o for o, s, b in singles if held_out(Scene((o,), s, b))}) > 0.9 * len(CONCEPTS.objects)


def test_held_out_is_for_good():
    """The hash may not change under a checkpoint that has been trained."""
    assert [o for o in CONCEPTS.objects if held_out(Scene((o,), "3d", "ocean"))] == [
        "fox",
        "dragon",
        "banana",
        "pineapple",
        "bus",
        "snowman",
        "star",
    ]


def test_number_extent_and_the_order_of_and_do_not_escape_the_holding_out():
    for name in CONCEPTS.objects:
        one, two = Scene((name,), "flat", "red"), Scene((name,), "flat", "red", count=2)
        assert held_out(one) == held_out(two) == held_out(Scene((name,), "flat", "red", extent=Extent.BIG))
        assert held_out(Scene((name, "sun"), "3d", "sky", Layout.AND)) == held_out(
            Scene(("sun", name), "3d", "sky", Layout.AND)
        )


def test_the_mix_of_scenes():
    layouts = Counter(scene.layout for scene in scenes(4000))
    assert all(layouts[layout] > 200 for layout in Layout)
    assert not any(scene.layout is Layout.LEFT_OF for scene in scenes(1000, aspect=1 / 3))
    assert not any(scene.layout is Layout.ABOVE for scene in scenes(1000, aspect=3))
    assert not any(scene.extent is Extent.BIG for aspect in (3, 1 / 3) for scene in scenes(1000, aspect=aspect))
    assert {scene.count for scene in scenes(1000)} == {1, 2, 3}
    assert not any(scene.count > 1 and CONCEPTS.objects[scene.objects[0]].mass for scene in scenes(4000))


def test_a_scene_that_cannot_be_is_refused():
    with pytest.raises(AssertionError, match="wants 2 objects"):
        Scene(("cat",), "flat", "red", Layout.AND)
    with pytest.raises(AssertionError, match="only a single object is small"):
        Scene(("cat",), "flat", "red", count=2, extent=Extent.SMALL)


@pytest.mark.parametrize(
    ("scene", "words"),
    [
        (Scene(("cat",), "flat", "red"), "a cat on a red background, flat style"),
        (Scene(("apple",), "3d", "sky", extent=Extent.BIG), "a big apple in the sky, 3d render"),
        (Scene(("unicorn",), "sticker", "snow"), "a unicorn in the snow, sticker"),
        (Scene(("cherries",), "cartoon", "gray"), "cherries on a gray background, cartoon style"),
        (Scene(("mouse",), "flat", "teal", count=3), "three mice on a teal background, flat style"),
        (
            Scene(("owl", "ufo"), "cartoon", "night", Layout.LEFT_OF),
            "an owl left of a ufo at night, cartoon style",
        ),
        (Scene(("sun", "car"), "3d", "desert", Layout.ABOVE), "a sun above a car in the desert, 3d render"),
    ],
)
def test_plain_captions(scene, words):
    assert plain_caption(scene, CONCEPTS) == words


def test_plurals():
    for word, plural in {
        "bunny": "bunnies",
        "fox": "foxes",
        "toy": "toys",
        "slice of pizza": "slices of pizza",
    }.items():
        assert _plural(word) == plural


@pytest.mark.parametrize("name", CONCEPTS.objects)
def test_every_object_is_called_by_each_of_its_words(name):
    rng = random.Random(name)
    said = [caption(Scene((name,), "flat", "red"), rng, CONCEPTS).lower() for _ in range(400)]
    for word in CONCEPTS.objects[name].words:
        assert any(word.removeprefix("a ") in words for words in said), word


def test_every_style_and_background_is_called_by_each_of_its_phrases():
    rng = random.Random(0)
    said = {
        style: "\n".join(caption(Scene(("owl",), style, "red"), rng, CONCEPTS) for _ in range(3000)) for style in STYLES
    }
    for name, style in CONCEPTS.styles.items():
        for words in (*style.adjectives, *style.openers, *style.closers):
            assert words in said[name], words
    for name, background in CONCEPTS.backgrounds.items():
        words = "\n".join(caption(Scene(("owl",), "flat", name), rng, CONCEPTS) for _ in range(600))
        assert all(phrase in words for phrase in background.phrases), name


def test_no_style_is_called_by_the_words_of_another():
    """'flat', '3d', 'cartoon' and 'sticker' belong to one style each, and no filler says one."""
    own = {"flat": "flat|minimal", "3d": "3d|3-d|glossy", "cartoon": "cartoon|toon", "sticker": "sticker|emoji"}
    for name, style in CONCEPTS.styles.items():
        for words in (*style.adjectives, *style.openers, *style.closers):
            assert [key for key, pattern in own.items() if re.search(pattern, words)] == [name], words
    fillers = (*CONCEPTS.fillers.before, *CONCEPTS.fillers.behind, *CONCEPTS.fillers.nouns)
    assert not [words for words in fillers if re.search("|".join(own.values()), words)]


def test_unknown_nouns_are_unknown():
    known = {word for thing in CONCEPTS.objects.values() for word in thing.words}
    assert not known & set(CONCEPTS.fillers.nouns)


def test_captions_are_various():
    rng = random.Random(0)
    said = Counter(caption(Scene(("cat",), "3d", "snow"), rng, CONCEPTS) for _ in range(2000))
    assert len(said) > 900
    assert any(len(words) > 100 for words in said)
    assert sum(count for words, count in said.items() if re.search("snow|winter", words)) > 1600
    sides = [caption(Scene(("cat", "owl"), "3d", "snow", Layout.LEFT_OF), rng, CONCEPTS).lower() for _ in range(500)]
    assert sum(bool(re.search("left|right", words)) for words in sides) > 480  # the rest are typos
