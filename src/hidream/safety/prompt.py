"""The prompt check: raises when a prompt asks for what is never generated, or for what the checker refuses.

The rules, in full:

1. Sexual content with minors is always refused: a word that says it by itself, or a word for a minor (an
   age under 18 included) anywhere in a prompt that anywhere holds a sexual word, nudity and underwear
   included. Context and negation are not read: no museum, no doctor and no "not" makes an exception; only
   a harmless phrase, such as "naked mole rat", covers the word that it contains.
2. While the checker is enabled, a prompt that holds a word for explicit sex, graphic gore, self-harm or
   hateful propaganda is refused, unless each such word follows a negation ("no gore") or is part of a
   harmless phrase.
3. A prompt with a word for a minor is refused as in rule 1 when its negative prompt names clothes: what is named there
   is what the image shall not have. Nothing else is looked for in a negative prompt; "nude" is welcome there.
4. Everything else passes, nudity in adults' art included: the image classifier looks at the image.

Standard library only. Words and phrases: `lexicon.py`. How they are found: `matching.py`, `spelling.py`,
`age.py`.
"""

from __future__ import annotations

from enum import StrEnum

from hidream.errors import PromptRefused
from hidream.safety.lexicon import CJK_CLOTHES, CLOTHES
from hidream.safety.matching import Kind, find
from hidream.safety.spelling import native, readings, variants


class Category(StrEnum):
    """What a prompt is refused for; the value is what the user reads."""

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

    With `enabled` false only sexual content with minors is refused.
    """
    category = classify(prompt, negative_prompt)
    if category is Category.MINORS:
        raise PromptRefused(f"The prompt was refused because it asks for {category}, which is never allowed.")
    if category is not None and enabled:
        raise PromptRefused(f"The prompt was refused by the safety checker because it asks for {category}.")


def classify(prompt: str, negative_prompt: str = "") -> Category | None:
    """Return the gravest category a prompt falls into (rules 1 to 3), or None."""
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
