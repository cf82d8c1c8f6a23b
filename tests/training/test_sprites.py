"""Sprites are framed alike, and packages that are not what was pinned are refused; no network."""

from __future__ import annotations

import dataclasses
import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

from concepts import load_concepts
from sprites import VISIBLE, add_rim, check_licence, fetch, fingerprint, frame, open_set, svg

CONCEPTS = load_concepts()


def package(folder: Path, files: dict[str, object]) -> Path:
    file = folder / "package.tgz"
    with tarfile.open(file, "w:gz") as archive:
        for name, content in files.items():
            data = json.dumps(content).encode()
            member = tarfile.TarInfo(f"package/{name}")
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return file


def ellipse() -> Image.Image:
    image = Image.new("RGBA", (100, 60))
    ImageDraw.Draw(image).ellipse((10, 5, 69, 34), fill=(200, 30, 30, 255))
    return image


def test_the_visible_part_is_centred_and_as_large_as_agreed():
    left, top, right, bottom = frame(ellipse(), 256, 0.0).getchannel("A").point(lambda a: 255 * (a > 8)).getbbox()
    assert right - left == pytest.approx(VISIBLE * 256, abs=2)
    assert (left + right) / 2 == pytest.approx(128, abs=1)
    assert (top + bottom) / 2 == pytest.approx(128, abs=1)
    assert (bottom - top) / (right - left) == pytest.approx(0.5, abs=0.03)


def test_a_rim_is_white_around_the_image_and_leaves_it_as_it_was():
    image = ellipse().crop((10, 5, 70, 35))
    rimmed = np.asarray(add_rim(image, 8))
    assert rimmed.shape == (46, 76, 4)
    assert tuple(rimmed[23, 38]) == (200, 30, 30, 255)
    assert tuple(rimmed[23, 4]) == (255, 255, 255, 255)
    assert rimmed[0, 0, 3] == 0


def test_an_icon_becomes_a_document_of_the_set_s_size():
    icons = {"icons": {"a": {"body": "<g/>"}, "b": {"body": "<g/>", "width": 20}}, "width": 32, "height": 32}
    assert 'viewBox="0 0 32 32"' in svg(icons, "a")
    assert 'viewBox="0 0 20 32"' in svg(icons, "b")


def test_images_are_found_by_hexcode_without_selector(tmp_path):
    icons = {"icons": {"red-heart": {"body": "<g/>"}}}
    file = package(tmp_path, {"icons.json": icons, "chars.json": {"2764-fe0f": "red-heart", "1f600": "not-there"}})
    assert set(open_set(file)) == {"2764"}


def test_another_licence_is_refused(tmp_path):
    style = CONCEPTS.styles["cartoon"]
    check_licence(style, package(tmp_path, {"package.json": {"license": "Apache-2.0"}}))
    with pytest.raises(SystemExit, match=r"says CC-BY-SA-4\.0, not Apache"):
        check_licence(style, package(tmp_path, {"package.json": {"license": "CC-BY-SA-4.0"}}))


def test_another_package_is_refused(tmp_path):
    style = CONCEPTS.styles["flat"]
    (tmp_path / "iconify-json-fluent-emoji-flat-1.2.6.tgz").write_bytes(b"something else")
    with pytest.raises(SystemExit, match="delete it and try again"):
        fetch(style, tmp_path)


def test_what_changes_sprites_changes_the_fingerprint():
    cat = dataclasses.replace(CONCEPTS.objects["cat"], code="1f408")
    called = dataclasses.replace(CONCEPTS.objects["cat"], words=("cat", "tomcat"))
    assert fingerprint(dataclasses.replace(CONCEPTS, objects=CONCEPTS.objects | {"cat": cat})) != fingerprint(CONCEPTS)
    assert fingerprint(dataclasses.replace(CONCEPTS, objects=CONCEPTS.objects | {"cat": called})) == fingerprint(
        CONCEPTS
    )


def test_data_md_names_every_source():
    said = (Path(__file__).parents[2] / "training" / "DATA.md").read_text()
    for style in CONCEPTS.styles.values():
        assert f"`{style.package}` | {style.version} |" in said
        assert f"| {style.licence} | {len(CONCEPTS.objects)} of" in said
