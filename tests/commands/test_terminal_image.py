"""Images in terminals: what is written is decoded as the protocols say, and is the image."""

import base64
import io
import re
import sys

import numpy as np
import pytest
from PIL import Image

from hidream.commands import terminal_image

KITTY, ITERM = {"KITTY_WINDOW_ID": "1"}, {"TERM_PROGRAM": "WezTerm"}


def noise(width, height, kind="PNG"):
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind, **({"lossless": True} if kind == "WEBP" else {}))
    return file.getvalue()


def of_kitty(text):
    """Decode what a terminal with kitty's protocol gets: https://sw.kovidgoyal.net/kitty/graphics-protocol/."""
    assert re.fullmatch(r"(?:\033_G[^;\033]*;[A-Za-z0-9+/=]*\033\\)+\n", text)
    commands = re.findall(r"\033_G([^;]*);([^\033]*)\033\\", text)
    keys = [dict(pair.split("=") for pair in control.split(",")) for control, _ in commands]
    assert keys[0].items() >= {"a": "T", "f": "100"}.items(), "transmit and display a PNG"
    assert all(each.keys() == {"m"} for each in keys[1:]), "the others have only m"
    assert [each["m"] for each in keys] == ["1"] * (len(keys) - 1) + ["0"]
    chunks = [data for _, data in commands]
    assert all(len(data) <= 4096 for data in chunks)
    assert all(len(data) % 4 == 0 for data in chunks[:-1])
    return base64.b64decode("".join(chunks), validate=True)


def of_iterm(text):
    """Decode what a terminal with iTerm2's protocol gets: https://iterm2.com/documentation-images.html."""
    found = re.fullmatch(r"\033\]1337;File=([^:]*):([A-Za-z0-9+/=]+)\a\n", text)
    arguments = dict(pair.split("=") for pair in found[1].split(";"))
    file = base64.b64decode(found[2], validate=True)
    assert arguments == {"inline": "1", "size": str(len(file))}
    return file


DECODERS = [("kitty", of_kitty), ("iterm", of_iterm)]


@pytest.mark.parametrize(("kind", "decoded"), DECODERS)
@pytest.mark.parametrize("suffix", ["PNG", "WEBP"])
@pytest.mark.parametrize("size", [(1, 1), (40, 30), (512, 300)])
def test_a_small_image_comes_out_as_it_is(kind, decoded, size, suffix):
    data = noise(*size, kind=suffix)
    shown = Image.open(io.BytesIO(decoded(terminal_image.escapes(kind, data))))
    assert (shown.format, shown.mode) == ("PNG", "RGB")
    assert np.array_equal(np.asarray(shown), np.asarray(Image.open(io.BytesIO(data)).convert("RGB")))


@pytest.mark.parametrize(("kind", "decoded"), DECODERS)
@pytest.mark.parametrize(("size", "seen"), [((1024, 1024), (512, 512)), ((2048, 512), (512, 128))])
def test_a_large_image_is_scaled_down_in_its_proportions(kind, decoded, size, seen):
    data = noise(*size)
    shown = Image.open(io.BytesIO(decoded(terminal_image.escapes(kind, data))))
    expected = Image.open(io.BytesIO(data))
    expected.thumbnail((512, 512))
    assert shown.size == seen
    assert np.array_equal(np.asarray(shown), np.asarray(expected))


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.parametrize(("environ", "decoded"), [(KITTY, of_kitty), (ITERM, of_iterm), ({}, None)])
def test_it_is_written_to_a_terminal_that_shows_images_and_to_no_other(monkeypatch, environ, decoded):
    for name in ("TMUX", "TERM", "TERM_PROGRAM", "LC_TERMINAL", "KITTY_WINDOW_ID"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    for out in (Terminal(), io.StringIO()):
        monkeypatch.setattr(sys, "stdout", out)
        terminal_image.show(noise(40, 30))
        written = out.getvalue()
        assert bool(written) == (decoded is not None and out.isatty())
        if written:
            assert Image.open(io.BytesIO(decoded(written))).size == (40, 30)


def test_where_images_are_shown():
    assert terminal_image.protocol(KITTY, terminal=True) == "kitty"
    assert terminal_image.protocol({"TERM": "xterm-ghostty"}, terminal=True) == "kitty"
    assert terminal_image.protocol(ITERM, terminal=True) == "iterm"
    assert terminal_image.protocol({"LC_TERMINAL": "iTerm2"}, terminal=True) == "iterm"
    for environ in ({}, {"TERM": "xterm-256color"}, KITTY | {"TMUX": "x"}, KITTY | {"TERM": "screen"}):
        assert terminal_image.protocol(environ, terminal=True) is None
    for environ in ({"TERM": "dumb"} | ITERM, {"TERM_PROGRAM": "vscode", "LC_TERMINAL": "iTerm2"}):
        assert terminal_image.protocol(environ, terminal=True) is None
    assert terminal_image.protocol(KITTY, terminal=False) is None
