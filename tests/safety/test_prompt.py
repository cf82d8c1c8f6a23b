"""The prompt check against its table of prompts, its cost, its determinism, and the text of a refusal."""

import subprocess
import sys
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prompt_table import BENIGN, SEED_PROMPT, UNSAFE

from hidream.errors import PromptRefused
from hidream.safety.matching import Kind
from hidream.safety.prompt import Category, check, classify
from hidream.types import PROMPT_MAX_CHARS


@pytest.mark.parametrize("prompt", BENIGN)
def test_benign_prompts_pass(prompt):
    assert classify(prompt) is None
    check(prompt, enabled=True)


@pytest.mark.parametrize(("prompt", "category"), UNSAFE)
def test_unsafe_prompts_are_refused_with_their_category(prompt, category):
    with pytest.raises(PromptRefused, match=category.value):
        check(prompt, enabled=True)


@pytest.mark.parametrize(("prompt", "category"), UNSAFE)
def test_disabled_checker_refuses_minors_only(prompt, category):
    if category is Category.MINORS:
        with pytest.raises(PromptRefused, match="never allowed"):
            check(prompt, enabled=False)
    else:
        check(prompt, enabled=False)


def test_the_table_is_as_large_as_promised():
    assert len(BENIGN) >= 60
    assert len(UNSAFE) >= 40
    assert {category for _, category in UNSAFE} == set(Category)


def test_a_refusal_is_one_sentence_and_does_not_repeat_the_prompt():
    with pytest.raises(PromptRefused) as refused:
        check("zebra porn zebra", enabled=True)
    assert "zebra" not in refused.value.message
    assert "porn" not in refused.value.message
    assert refused.value.message.count(".") == 1
    assert refused.value.code == 1200


@pytest.mark.parametrize("case", [str.upper, str.title, lambda p: f"  {p}!!\n", lambda p: f"masterpiece, ({p}:1.3)"])
def test_case_and_surroundings_do_not_matter(case):
    assert classify(case("nude child")) is Category.MINORS
    assert classify(case("hentai")) is Category.SEXUAL
    assert classify(case("nak3d k1d")) is Category.MINORS


@pytest.mark.parametrize(
    "age", ["17 year old", "17-year-olds", "seventeen years old", "aged 17", "17 yo", "17 y/o", "17yrs"]
)
def test_ages_under_18_are_minors(age):
    assert classify(f"{age}, nude") is Category.MINORS
    assert classify(f"{age}, portrait") is None


@pytest.mark.parametrize(
    "age", ["18 year old", "25-year-old", "aged 40", "forty years old", "35mm, f/8", "15 metres", "25歳"]
)
def test_adult_ages_and_measures_are_not(age):
    assert classify(f"{age}, nude") is None


def test_negation_is_read_for_adults_and_never_for_minors():
    assert classify("a haunted house, no gore") is None
    assert classify("a haunted house, no gore, gore") is Category.GORE
    assert classify("a child, no nudity") is Category.MINORS


def test_a_no_at_the_end_negates_nothing_at_the_start():
    assert classify("gore on a poster that says no") is Category.GORE


LONG_STEMS = {
    Kind.EXPLICIT: "masturbating pornographic cunnilingus ejaculating gangbang deepthroat bestiality",
    Kind.MINOR_SEXUAL: "childporn kiddieporn pedophile paedophilia toddlersex childsex preteensex kinderporno",
    Kind.MINOR: "schoolgirl schoolboys preteens toddler underaged kindergarten",
    Kind.SUGGESTIVE: "nudechild nakedchild sexychild nudekid nakedkid sexykid nakedlittle nudelittle",
}
BESIDE = {
    Kind.EXPLICIT: "a child",
    Kind.MINOR_SEXUAL: "a lake",
    Kind.MINOR: "nude",
    Kind.SUGGESTIVE: "a toddler",
}


@pytest.mark.parametrize(
    ("kind", "word"), [(kind, word) for kind, words in LONG_STEMS.items() for word in words.split()]
)
def test_a_space_does_not_hide_a_long_word_beside_a_minor(kind, word):
    """What the letters say without spaces counts for minors, where no negation is read, and for nothing else."""
    beside = BESIDE[kind]
    assert classify(beside) is None
    for at in range(2, len(word) - 1):
        assert classify(f"{beside}, {word[:at]} {word[at:]}") is Category.MINORS


@pytest.mark.parametrize(
    ("prompt", "category"),
    [
        ("severed bodies on a field", Category.GORE),  # plurals that no entry spells out
        ("kids, bare asses", Category.MINORS),
        ("kids with bras", Category.MINORS),
        ("goregirl, a comic heroine", None),  # run together, only sexual words and minors count
        ("sexgirls", Category.SEXUAL),
    ],
)
def test_plurals_and_words_run_together(prompt, category):
    assert classify(prompt) is category


def test_harmless_phrases_cover_only_themselves():
    assert classify("naked mole rat, child") is None
    assert classify("naked mole rat, naked child") is Category.MINORS


def test_the_gravest_category_is_named():
    assert classify("gore, porn, a child") is Category.MINORS


PLAIN_MINORS = [prompt for prompt, _ in UNSAFE[: UNSAFE.index(("n u d e   c h i l d", Category.MINORS))]]
SPACED_MINORS = [
    "   ".join(gap.join(word) for word in prompt.split())
    for prompt in PLAIN_MINORS
    if prompt.isascii() and prompt.replace(" ", "").isalpha()
    for gap in " .-_"
]


@given(
    minors=st.sampled_from([*PLAIN_MINORS, *SPACED_MINORS]),
    other=st.text(max_size=300) | st.sampled_from([*BENIGN, *(prompt for prompt, _ in UNSAFE)]),
    before=st.booleans(),
)
def test_no_other_text_makes_sexual_content_with_minors_pass(minors, other, before):
    assert classify(f"{other}. {minors}" if before else f"{minors}. {other}") is Category.MINORS


@pytest.mark.parametrize("before", ["", "x ", "x y z ", "x. y. ", "1 2 3, ", "it is a ", "A. "])
@pytest.mark.parametrize("after", ["", ". 0/", " x", " 0", " x y z", "-q", " 4 K", ". a b"])
@pytest.mark.parametrize(
    "spaced",
    [
        "n u d e   c h i l d",
        "n u d e c h i l d",
        "n-u-d-e k-i-d",
        "nu d e c h il d",
        "n u d 3   c h ! l d",
        "l i t t l e g i r l n a k e d",
        "l o l i c o n",
        "1 5   y e a r   o l d ,   n u d e",
    ],
)
def test_nothing_beside_spaced_out_words_hides_them(before, spaced, after):
    assert classify(before + spaced + after) is Category.MINORS


@pytest.mark.parametrize(
    "prompt",
    [
        "children learn a b c d e f g h i j k l m n o p q r s t u v w x y z and 1 2 3 4 5 6 7 8 9 0",
        "two kids with a sign that says S A L E",
        "a woman reads T H E   G R A P E S   O F   W R A T H",
        "N O   G O R E, a poster",
        "a baby in the style of J. R. R. Tolkien, E. H. Shepard and A. A. Milne, f / 2.8, 4 K",
        "D - A - D, a child's drawing | B & W | 3 : 4",
    ],
)
def test_spaced_out_letters_that_say_nothing_bad_pass(prompt):
    assert classify(prompt) is None


def test_spaced_out_words_are_refused_for_adults_too_where_gaps_tell_them():
    assert classify("x. p o r n   p h o t o. 0") is Category.SEXUAL


@given(st.text(alphabet=" .-_\u200b\u00ad", min_size=1, max_size=2))
def test_separators_between_letters_do_not_hide_a_word(separator):
    assert classify(separator.join("porn")) is Category.SEXUAL


HOSTILE = {
    "words": SEED_PROMPT + " ",
    "one letter": "a",
    "single letters": "a ",
    "fragments": "ab ",
    "spaced out": "n u d  ",
    "no gaps": "n u d c o c k s u c ",
    "letters between signs": "a-b.c ",
    "digits": "1 ",
    "glued": "sex",
    "almost glued": "s3xk1d",
    "stars": "a*",
    "only stars": "*",
    "spaces": " ",
    "dots": "a.",
    "years": "15 year ",
    "marks": "\u0301\u0323",
    "ligatures": "\ufdfa",
    "invisible": "a\u200b",
    "first words": "kill all ",
    "han": "少性",
    "katakana": "エ",
    "cyrillic": "рогн ",
}


@pytest.mark.parametrize("piece", HOSTILE.values(), ids=HOSTILE.keys())
def test_the_longest_prompt_takes_milliseconds(piece):
    """Measured 2 to 110 ms; a quadratic step would take seconds."""
    prompt = (piece * PROMPT_MAX_CHARS)[:PROMPT_MAX_CHARS]
    classify(prompt[:100])
    times_s = []
    for _ in range(3):
        start = time.thread_time()  # computed, not waited for a core
        classify(prompt)
        times_s.append(time.thread_time() - start)
    assert min(times_s) < 0.25


@pytest.mark.integration
def test_importing_is_light():
    heavy = ("numpy", "onnxruntime", "PIL", "torch")
    code = f"import sys, hidream.safety.prompt; print([name for name in {heavy} if name in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("prompt", "negative_prompt"),
    [
        ("a child on a beach", "clothes"),
        ("girl, 14, portrait", "blurry, ((dress:1.5)), bad hands"),
        ("ein kind am strand", "Kleidung"),
        ("小孩在海边", "衣服"),
        ("schoolgirl", "c l o t h i n g"),
        ("a boy by a lake", "SHIRT, pants"),
    ],
)
def test_a_negative_prompt_that_undresses_a_minor_is_refused_whatever_the_checker(prompt, negative_prompt):
    check(prompt, enabled=True)
    for enabled in (True, False):
        with pytest.raises(PromptRefused, match="sexual content with minors, which is never allowed"):
            check(prompt, negative_prompt, enabled=enabled)


@pytest.mark.parametrize(
    ("prompt", "negative_prompt"),
    [
        ("a child on a beach", "nude, nsfw, porn, blurry, extra limbs"),
        ("a woman on a beach", "dress, clothes"),
        ("a mountain lake", "clothes"),
        ("a child on a beach", ""),
    ],
)
def test_other_negative_prompts_pass(prompt, negative_prompt):
    check(prompt, negative_prompt, enabled=True)
