"""Stage 3: words for the encoders. Whatever an object is called, they say of it what they say of its plain name.

That goes for synonyms, and for nouns that nano does not know: for each an object stands in (`StandIns`). Without this
stage the encoders gave something between all objects for such a noun, and nano drew blobs of one colour. What is copied
is every token's embedding, so that the transformer, which learns behind this stage or has learned already, notices
nothing.

    python training/words.py [--runs FOLDER]
"""

from __future__ import annotations

import copy
import functools
import random
import shutil
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
import transformers
from torch import Tensor, nn

import encoders
import recipe
from captions import caption
from concepts import Concepts, load_concepts
from hidream.model.checkpoint.checkpoint import Checkpoint
from hidream.model.text.text_encoders import TextEncoders, load_text_encoders
from hidream.parts import TOKENIZERS
from latents import draw_scenes
from muon import Optimisers, rise_and_fall
from scenes import Scene
from stage import Dice, Stage, arguments, done, quick

UNKNOWN, MADE_UP, ADJECTIVE = 0.6, 0.6, 0.25
"""Shares: of nouns that nano does not know, beside objects' own words; of these, of those that nobody knows; and of
those that stand before an object's word, as in 'a steampunk clock', and change nothing."""
NOUN = "\0"
"""Stands in a caption where the noun will."""
CAPTIONS = 20_000
"""From so many it is learned which words are known."""
SHORT = 3
"""Letters of a token that begins many words; longer ones that captions rarely have are typos."""
Tokenizer = transformers.PreTrainedTokenizerFast


class Lesson(NamedTuple):
    """A text of two nouns, one to say and one to mean by it."""

    before: str
    said: str
    meant: str
    after: str

    @property
    def text(self) -> str:
        """What is said."""
        return self.before + self.said + self.after

    @property
    def meaning(self) -> str:
        """What is meant."""
        return self.before + self.meant + self.after


class StandIns:
    """Which object is drawn for a noun that nano does not know.

    The noun's first token decides, by its number, so that a word always gives the same object, and Llama, which reads
    from left to right, knows it at once. A noun that begins as a known word does ('cathedral', with a cat) has none.
    """

    def __init__(self, tokenizer: Tokenizer, concepts: Concepts) -> None:
        self.tokenizer, self._names = tokenizer, list(concepts.objects)
        texts = {number: tokenizer.decode([number]) for number in range(len(tokenizer))}
        letters = {number: text.strip() for number, text in texts.items() if text.strip().isalpha() and text.isascii()}
        short = {number for number, word in letters.items() if texts[number][0] == " " and len(word) <= SHORT}
        begun = {self._first(noun) for noun in concepts.fillers.nouns}
        self.starts = sorted((begun & letters.keys() | short) - known_words(tokenizer, concepts))
        self.ends = [word for number, word in letters.items() if texts[number][0] != " " and word.islower()]

    def _first(self, noun: str) -> int:
        return self.tokenizer(noun, add_special_tokens=False).input_ids[0]

    def of(self, noun: str) -> str | None:
        """Name the object that is drawn for `noun`."""
        first = self._first(noun)
        return self._names[first % len(self._names)] if first in self.starts else None

    def made_up(self, rng: random.Random) -> str:
        """Make a noun that nobody knows, of one to four tokens."""
        parts = [self.tokenizer.decode([rng.choice(self.starts)]).strip(), *rng.choices(self.ends, k=rng.randrange(4))]
        return "".join(parts)

    @torch.no_grad()
    def copy_embeddings(self, embedding: Tensor) -> None:
        """Give each token that begins an unknown word the embedding, a row, of its stand-in's last token."""
        for number in self.starts:
            name = self._names[number % len(self._names)]
            embedding[number] = embedding[self.tokenizer(name, add_special_tokens=False).input_ids[-1]]


def known_words(tokenizer: Tokenizer, concepts: Concepts) -> set[int]:
    """List the tokens that are whole words of captions, among them the plurals and the typos that are frequent."""
    wording, known = random.Random(0), set()
    captions = [caption(scene, wording, concepts) for scene in draw_scenes(0, CAPTIONS, concepts)]
    for encoding in tokenizer(captions, add_special_tokens=False, verbose=False).encodings:
        tokens = Counter(encoding.word_ids)
        known |= {n for n, word in zip(encoding.ids, encoding.word_ids, strict=True) if tokens[word] == 1}
    return known


def lesson(scene: Scene, rng: random.Random, stand_ins: StandIns, concepts: Concepts) -> Lesson:
    """Call the first object of a scene by any of its words; or by a noun, with what stands in for it in its place."""
    name = scene.objects[0]
    noun = rng.choice(concepts.objects[name].words)
    if rng.random() < UNKNOWN:
        strange = stand_ins.made_up(rng) if rng.random() < MADE_UP else rng.choice(concepts.fillers.nouns)
        if rng.random() < ADJECTIVE:
            noun = f"{strange} {noun}"
        elif other := stand_ins.of(strange):
            name, noun = other, strange
    before, _, after = caption(scene, rng, concepts, NOUN).partition(NOUN)
    return Lesson(before, noun, name, after)


def partners(lesson: Lesson, tokenizer: Tokenizer, length: int) -> list[int]:
    """Say for each of `length` tokens of the text which token of the meaning it is to equal; -1 is none.

    The noun's tokens are counted from its end: what the last one says is what is heard behind it.
    """
    start, said = _span(tokenizer, lesson.before, lesson.said, lesson.text)
    _, meant = _span(tokenizer, lesson.before, lesson.meant, lesson.meaning)
    own = [i if i < start else max(start, i - said + meant) for i in range(length)]
    return [i if i < length else -1 for i in own]


def _span(tokenizer: Tokenizer, before: str, noun: str, text: str) -> tuple[int, int]:
    """Which token of `text` is the first of the noun, and how many it has."""
    offsets = tokenizer(text, return_offsets_mapping=True, verbose=False)["offset_mapping"]
    end = len(before) + len(noun)
    tokens = [i for i, (left, right) in enumerate(offsets) if left < end and right > len(before.rstrip())]
    return tokens[0], len(tokens)


def loss_of(student: TextEncoders, teacher: TextEncoders, lessons: list[Lesson]) -> dict[str, Tensor]:
    """Mean squared differences of what the encoders say, in shares of its variance: of pooled texts, T5 and Llama."""
    with torch.no_grad():
        wanted = teacher.encode([each.meaning for each in lessons])
    said = student.encode([each.text for each in lessons])
    losses = {"pooled": F.mse_loss(said.pooled.float(), wanted.pooled.float()) / wanted.pooled.float().var()}
    for name, tokenizer in (("t5", teacher.tokenizers[2]), ("llama", teacher.tokenizers[3])):
        own, other = (x.float().view(-1, *x.shape[-3:]) for x in (getattr(said, name), getattr(wanted, name)))
        index = torch.tensor([partners(each, tokenizer, own.shape[2]) for each in lessons], device=own.device)
        there = index >= 0
        target = other.take_along_dim(index.clamp(min=0)[None, :, :, None], dim=2)
        spread = other.var(dim=(1, 2, 3))
        losses[name] = ((own - target).square().mean(-1)[:, there].mean(1) / spread).mean()
    return losses


def train(config: recipe.Recipe, runs: Path, folder: Path, device: torch.device) -> None:
    """Train, or go on, and write tokenizers and encoders into `folder`, which the product loads."""
    if done(folder):
        return
    concepts, settings = load_concepts(), config.words
    teacher = load_text_encoders(Checkpoint(runs / "encoders"), device, torch.float32)
    student = TextEncoders(teacher.tokenizers, copy.deepcopy(teacher.encoders))
    stand_ins = StandIns(teacher.tokenizers[2], concepts)  # all four are the same but for what stands around a text
    for encoder in student.encoders:
        stand_ins.copy_embeddings(encoder.get_input_embeddings().weight)
    whole = nn.ModuleList(student.encoders).requires_grad_(True)
    rates = functools.partial(rise_and_fall, warm_up=encoders.WARM_UP, steps=settings.steps)
    optimiser = Optimisers(whole, rates, settings.adamw_rate, settings.muon_rate, encoders.ENDS)
    dice = Dice(config.seed)
    stage = Stage(folder, config.run, {"whole": whole, "optimiser": optimiser, "dice": dice})
    for _ in stage.steps(settings.steps):
        wording, scenes = random.Random(dice.seed()), draw_scenes(dice.seed(), settings.batch, concepts)
        with quick(device):
            losses = loss_of(student, teacher, [lesson(scene, wording, stand_ins, concepts) for scene in scenes])
        optimiser.step(torch.stack(list(losses.values())).sum())
        stage.report(**losses)
    encoders.save_encoders(student.encoders, folder)
    for name in TOKENIZERS:
        shutil.copytree(runs / "encoders" / name, folder / name, dirs_exist_ok=True)
    stage.finish()


def main() -> None:
    """Run the stage."""
    given = arguments(__doc__).parse_args()
    train(recipe.load(given.config), given.runs, given.runs / "text", given.device)


if __name__ == "__main__":
    main()
