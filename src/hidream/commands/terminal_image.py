"""A finished image in the terminal, where the terminal is known to show images (kitty's and iTerm2's protocols).

https://sw.kovidgoyal.net/kitty/graphics-protocol/ and https://iterm2.com/documentation-images.html. Which protocol a
terminal speaks is read from variables that it sets; nothing is asked of an unknown one, and nothing is shown there.
"""

from __future__ import annotations

import base64
import io
import os
import sys
from collections.abc import Mapping

WIDTH_PX = 512
_CHUNK = 4096
KITTY, ITERM = "kitty", "iterm"


def protocol(environ: Mapping[str, str], *, terminal: bool) -> str | None:
    """The protocol of this terminal; None if it is unknown, or behind a multiplexer, which swallows images."""
    if not terminal or environ.get("TMUX") or environ.get("TERM", "").startswith(("screen", "tmux", "dumb")):
        return None
    if environ.get("KITTY_WINDOW_ID") or environ.get("TERM") in ("xterm-kitty", "xterm-ghostty"):
        return KITTY
    if environ.get("TERM_PROGRAM") in ("iTerm.app", "WezTerm", "vscode") or environ.get("LC_TERMINAL") == "iTerm2":
        return ITERM if environ.get("TERM_PROGRAM") != "vscode" else None
    return None


def escapes(kind: str, data: bytes) -> str:
    """The text that shows an image file at most WIDTH_PX wide."""
    from PIL import Image

    with Image.open(io.BytesIO(data)) as file:
        image = file.convert("RGB")
    image.thumbnail((WIDTH_PX, WIDTH_PX))
    png = io.BytesIO()
    image.save(png, "PNG")
    text = base64.b64encode(png.getvalue()).decode()
    if kind == ITERM:
        return f"\033]1337;File=inline=1;size={len(png.getvalue())}:{text}\a\n"
    chunks = [text[i : i + _CHUNK] for i in range(0, len(text), _CHUNK)]
    parts = []
    for i, chunk in enumerate(chunks):
        more = int(i + 1 < len(chunks))
        parts.append(f"\033_G{'a=T,f=100,' if i == 0 else ''}m={more};{chunk}\033\\")
    return "".join(parts) + "\n"


def show(data: bytes) -> None:
    """Show an image file, if the terminal can."""
    kind = protocol(os.environ, terminal=sys.stdout.isatty())
    if kind is not None:
        sys.stdout.write(escapes(kind, data))
        sys.stdout.flush()
