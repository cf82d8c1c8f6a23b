"""Fetch the image sets, render every object in every style, and keep the sprites in one file: `cache/sprites.zip`.

    python training/sprites.py

Needs npm for the packages (about 22 MB) and resvg-py for their SVGs (`pip install -e .[training]`); later stages need
the file only. Doing it again does nothing, unless concepts, versions or this recipe changed. In the zip: one WebP per
sprite, square, RGBA, the visible part centred with its long side `VISIBLE` of the frame, and `manifest.json`, which
says where each comes from. Nothing here knows scenes; `compose.Sprites` reads the file.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import subprocess
import tarfile
import zipfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from concepts import Concepts, Style, load_concepts

CACHE = Path(__file__).parent / "cache"
SPRITES_FILE = CACHE / "sprites.zip"
RECIPE = 1
"""To be raised when this file makes other sprites of the same packages."""

VISIBLE = 7 / 8
"""Long side of the visible part, in sides of the frame; the rest is transparent margin."""

RENDER_PX = 768
RIM = ((1.0, (222, 224, 228)), (0.85, (255, 255, 255)))
"""The rim of a sticker, from the outside in: share of its width, colour. The grey line parts it from a white ground."""


def main() -> None:
    """Make the sprite file, unless it is there."""
    concepts = load_concepts()
    wanted = fingerprint(concepts)
    if SPRITES_FILE.exists() and read_manifest(SPRITES_FILE)["fingerprint"] == wanted:
        print(f"sprites_up_to_date file={SPRITES_FILE}")
        return
    CACHE.mkdir(exist_ok=True)
    sprites, rows = {}, []
    for style in concepts.styles.values():
        images = open_set(fetch(style, CACHE / "packages"))
        missing = [thing.name for thing in concepts.objects.values() if thing.code not in images]
        if missing:
            raise SystemExit(
                f"{style.package} {style.version} has no image of: {', '.join(missing)}; "
                f"give them another hexcode in concepts.toml, or take them out"
            )
        for thing in concepts.objects.values():
            name = f"{style.name}/{thing.name}.webp"
            sprites[name] = encode(frame(images[thing.code](), style.frame_px, style.border))
            digest = hashlib.sha256(sprites[name]).hexdigest()
            rows.append(
                {
                    "object": thing.name, "style": style.name, "code": thing.code, "package": style.package,
                    "version": style.version, "licence": style.licence, "sha256": digest,
                }
            )  # fmt: skip
        print(f"sprites_rendered style={style.name} count={len(concepts.objects)}", flush=True)
    write(SPRITES_FILE, sprites, {"fingerprint": wanted, "visible": VISIBLE, "sprites": rows})
    print(f"sprites_written file={SPRITES_FILE} count={len(sprites)} size_bytes={SPRITES_FILE.stat().st_size}")


def fingerprint(concepts: Concepts) -> str:
    """A hash of all that decides the sprites: recipe, packages, hexcodes."""
    styles = [(style.name, style.integrity, style.frame_px, style.border) for style in concepts.styles.values()]
    objects = [(thing.name, thing.code) for thing in concepts.objects.values()]
    return hashlib.sha256(json.dumps([RECIPE, VISIBLE, RENDER_PX, RIM, styles, objects]).encode()).hexdigest()


def read_manifest(file: Path) -> dict[str, object]:
    """The manifest of a sprite file: its fingerprint, and one row for each sprite."""
    with zipfile.ZipFile(file) as archive:
        manifest: dict[str, object] = json.loads(archive.read("manifest.json"))
        return manifest


# --- Packages ---------------------------------------------------------------------------------------------------------


def fetch(style: Style, folder: Path) -> Path:
    """The style's package as npm packs it, checked against the pinned hash. Raises SystemExit when it is another."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"{style.package.removeprefix('@').replace('/', '-')}-{style.version}.tgz"
    if not file.exists():
        command = ["npm", "pack", "--silent", "--pack-destination", str(folder), f"{style.package}@{style.version}"]
        try:
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL, timeout=600)
        except (OSError, subprocess.SubprocessError) as error:
            raise SystemExit(
                f"could not fetch {style.package}@{style.version}: {error}; npm must be installed"
            ) from None
    digest = "sha512-" + base64.b64encode(hashlib.sha512(file.read_bytes()).digest()).decode()
    if digest != style.integrity:
        raise SystemExit(f"{file} has the hash {digest}, not {style.integrity}; delete it and try again")
    check_licence(style, file)
    return file


def check_licence(style: Style, file: Path) -> None:
    """Raise SystemExit unless the package says that its licence is the one we rely on."""
    with tarfile.open(file) as archive:
        said = {json.loads(_read(archive, "package/package.json"))["license"]}
        if "package/info.json" in archive.getnames():
            said.add(json.loads(_read(archive, "package/info.json"))["license"]["spdx"])
    if said != {style.licence}:
        raise SystemExit(f"{style.package} says {', '.join(said)}, not {style.licence}; it may not be used unread")


def open_set(file: Path) -> dict[str, Callable[[], Image.Image]]:
    """All images of a package by hexcode (without the variation selector), to be rendered when called."""
    with tarfile.open(file) as archive:
        names = archive.getnames()
        if "package/icons.json" in names:
            icons, codes = (json.loads(_read(archive, f"package/{name}.json")) for name in ("icons", "chars"))
            return {
                code.replace("-fe0f", ""): partial(render, svg(icons, name))
                for code, name in codes.items()
                if name in icons["icons"]
            }
        assets = {Path(name).stem: _read(archive, name) for name in names if name.endswith(".webp")}
    return {code.replace("-fe0f", ""): partial(Image.open, io.BytesIO(data)) for code, data in assets.items()}


def _read(archive: tarfile.TarFile, name: str) -> bytes:
    member = archive.extractfile(name)
    assert member is not None, f"{name} is not a file"
    return member.read()


# --- Images ---------------------------------------------------------------------------------------------------------


def svg(icons: dict[str, dict[str, dict[str, object]]], name: str) -> str:
    """An icon of an Iconify set as an SVG document; sizes not given with the icon are the set's."""
    icon = icons["icons"][name]
    left, top, width, height = (
        icon.get(key, icons.get(key, default))
        for key, default in (("left", 0), ("top", 0), ("width", 16), ("height", 16))
    )
    spaces = 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
    return f'<svg {spaces} viewBox="{left} {top} {width} {height}">{icon["body"]}</svg>'


def render(document: str) -> Image.Image:
    """An SVG document as an image of `RENDER_PX`."""
    import resvg_py

    data = bytes(resvg_py.svg_to_bytes(svg_string=document, width=RENDER_PX, height=RENDER_PX, skip_system_fonts=True))
    return Image.open(io.BytesIO(data))


def frame(image: Image.Image, side: int, border: float) -> Image.Image:
    """Cut out what is visible, put a rim around it, and centre it in a square frame of `side` pixels."""
    image = image.convert("RGBA")
    image = image.crop(image.getchannel("A").point(lambda alpha: 255 * (alpha > 8)).getbbox())
    rim = round(border * max(image.size))
    if rim:
        image = add_rim(image, rim)
    scale = VISIBLE * side / max(image.size)
    size = [max(1, round(length * scale)) for length in image.size]
    small = image.convert("RGBa").resize((size[0], size[1]), Image.Resampling.LANCZOS).convert("RGBA")
    framed = Image.new("RGBA", (side, side))
    framed.paste(small, ((side - size[0]) // 2, (side - size[1]) // 2))
    return framed


def add_rim(image: Image.Image, width_px: int) -> Image.Image:
    """The image on a paper cut out around it, `width_px` wide on all sides."""
    padded = Image.new("RGBA", (image.width + 2 * width_px, image.height + 2 * width_px))
    padded.paste(image, (width_px, width_px))
    alpha = np.asarray(padded.getchannel("A"))
    ground = Image.new("RGBA", padded.size)
    for share, colour in RIM:
        paper = Image.new("RGBA", padded.size, (*colour, 255))
        paper.putalpha(Image.fromarray(_grow(alpha, share * width_px)))
        ground.alpha_composite(paper)
    ground.alpha_composite(padded)
    return ground


def _grow(alpha: np.ndarray, radius_px: float) -> np.ndarray:
    """The greatest alpha within `radius_px` of each pixel; looks at circles, so small gaps count as filled."""
    grown = alpha.copy()
    for radius in np.linspace(radius_px, radius_px / 4, 4):
        angles = np.linspace(0, 2 * np.pi, max(12, int(3 * radius)), endpoint=False)
        for dy, dx in {(round(radius * np.sin(a)), round(radius * np.cos(a))) for a in angles}:
            to, source = _overlap(alpha.shape, int(dy), int(dx))
            np.maximum(grown[to], alpha[source], out=grown[to])
    return grown


def _overlap(shape: tuple[int, ...], dy: int, dx: int) -> tuple[tuple[slice, slice], tuple[slice, slice]]:
    to = tuple(slice(max(d, 0), n + min(d, 0)) for d, n in zip((dy, dx), shape, strict=True))
    source = tuple(slice(max(-d, 0), n + min(-d, 0)) for d, n in zip((dy, dx), shape, strict=True))
    return (to[0], to[1]), (source[0], source[1])


# --- The file ---------------------------------------------------------------------------------------------------------


def encode(sprite: Image.Image) -> bytes:
    """Lossless WebP."""
    data = io.BytesIO()
    sprite.save(data, "WEBP", lossless=True, quality=80, method=4)
    return data.getvalue()


def write(file: Path, sprites: dict[str, bytes], manifest: dict[str, object]) -> None:
    """Write the zip beside its place first: a file that exists is whole. Its bytes depend on its content only."""
    unfinished = file.with_suffix(".part")
    with zipfile.ZipFile(unfinished, "w", zipfile.ZIP_STORED) as archive:
        for name, data in sprites.items():
            archive.writestr(zipfile.ZipInfo(name), data)
        archive.writestr(zipfile.ZipInfo("manifest.json"), json.dumps(manifest, indent=1))
    unfinished.replace(file)


if __name__ == "__main__":
    main()
