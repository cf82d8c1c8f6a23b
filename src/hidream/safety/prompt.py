"""The prompt check: raises if a prompt asks for something that is never generated, or that the checker refuses.

The complete rules:

1. Sexual content with minors is always refused. That is a word that means it by itself, or a word for a minor
   (including an age under 18) in a prompt that also contains a sexual word, including nudity and underwear. Context
   and negation are ignored: a museum, a doctor or a "not" makes no exception. Only a harmless phrase, such as "naked
   mole rat", excuses the word that it contains.
2. While the checker is enabled, a prompt with a word for explicit sex, graphic gore, self-harm or hateful propaganda is
   refused, unless each such word follows a negation ("no gore") or is part of a harmless phrase.
3. A prompt with a word for a minor is also refused, as in rule 1, if its negative prompt names clothes, because the
   image would not show them. Nothing else in a negative prompt is checked; "nude" is welcome there.
4. Everything else is accepted, including nudity of adults in art; the image classifier checks the image.

Standard library only. The words and phrases are in `lexicon.py`; `matching.py`, `spelling.py` and `age.py` find them.
"""

from __future__ import annotations

from enum import StrEnum

from hidream.errors import PromptRefused
from hidream.safety.lexicon import CJK_CLOTHES, CLOTHES
from hidream.safety.matching import Kind, find
from hidream.safety.spelling import native, readings, variants


class Category(StrEnum):
    """Why a prompt is refused; the user reads the value."""

    MINORS = "sexual content with minors"
    SEXUAL = "explicit sexual content"
    GORE = "graphic gore or violence"
    SELF_HARM = "self-harm"
    HATE = "hateful or extremist propaganda"


_ALONE = {
    Kind.EXPLICIT: Category.SEXUAL,
    Kind.GORE: Category.GORE,
    Kind.SELF_HARM: Category.SELF_HARM,
    Kind.HATE: Category.HATE,
}


def check(prompt: str, negative_prompt: str = "", *, enabled: bool) -> None:
    """Raise PromptRefused, naming the category and never the prompt, if the prompt must not be used.

    If `enabled` is false, only sexual content with minors is refused.
    """
    category = classify(prompt, negative_prompt)
    if category is Category.MINORS:
        raise PromptRefused(f"The prompt was refused because it asks for {category}, which is never allowed.")
    if category is not None and enabled:
        raise PromptRefused(f"The prompt was refused by the safety checker because it asks for {category}.")


def classify(prompt: str, negative_prompt: str = "") -> Category | None:
    """Return the gravest category of a prompt (rules 1 to 3), or None if it is accepted."""
    found = find(prompt)
    sexual = Kind.EXPLICIT in found.named or Kind.SUGGESTIVE in found.named
    if Kind.MINOR_SEXUAL in found.named or (Kind.MINOR in found.named and sexual):
        return Category.MINORS
    if Kind.MINOR in found.named and _names_clothes(negative_prompt):
        return Category.MINORS
    return next((category for kind, category in _ALONE.items() if kind in found.affirmed), None)


def _names_clothes(text: str) -> bool:
    if not text:
        return False
    plain, stems = native(text), tuple(entry.strip() for entry in CLOTHES.split(","))
    if any(sign in plain for sign in CJK_CLOTHES.replace(" ", "").strip().split(",")):
        return True
    return any(form.startswith(stems) for words in readings(text) for word in words for form in variants(word))
