"""The package: what a wheel and an sdist contain, and that an installed wheel draws."""

import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
import zlib
from email.parser import Parser
from pathlib import Path

import pytest
from hatchling.builders.sdist import SdistBuilder
from hatchling.builders.wheel import WheelBuilder
from PIL import Image

ROOT = Path(__file__).parents[2]
WHEEL_MAX_BYTES = 60_000_000
"""nano has 57 MB of it."""
BESIDE_SOURCE_MAX_BYTES = 5_000_000
"""What an sdist has beside `src`: documents and their images."""


def files(builder, root=ROOT):
    """The files of a package, as paths within it and on the disk, without building it."""
    return {each.distribution_path: Path(each.path) for each in builder(str(root)).recurse_included_files()}


def test_a_wheel_has_all_files_of_the_package_and_no_others():
    roots = {"hidream": ROOT / "src" / "hidream", "hidream/comfyui": ROOT / "comfyui"}
    wanted = {
        f"{name}/{path.relative_to(root).as_posix()}": path
        for name, root in roots.items()
        for path in root.rglob("*")
        if path.is_file() and path.suffix != ".pyc"
    }
    assert files(WheelBuilder) == wanted
    assert "hidream/nano/fast/transformer/difference.safetensors" in wanted
    # as a wheel compresses them; the long form below looks at the wheel itself
    assert sum(len(zlib.compress(path.read_bytes())) for path in wanted.values()) < WHEEL_MAX_BYTES


def test_an_sdist_has_what_builds_the_wheel_and_no_tests():
    found = files(SdistBuilder)
    within = {f"hidream/{name}" if name.startswith("comfyui/") else name.removeprefix("src/") for name in found}
    assert files(WheelBuilder).keys() <= within
    assert {"README.md", "LICENSE", "NOTICE", "requirements.lock"} <= found.keys()
    assert {name.partition("/")[0] for name in found if "/" in name} == {"src", "comfyui", "docs", "deploy", "examples"}
    beside = sum(path.stat().st_size for name, path in found.items() if not name.startswith(("src/", "comfyui/")))
    assert beside < BESIDE_SOURCE_MAX_BYTES


def test_wheel_and_sdist_have_the_site_if_it_is_built(tmp_path):
    """`python -m build` makes the wheel of the sdist."""
    for name in ("pyproject.toml", ".gitignore", "README.md", "LICENSE", "NOTICE"):
        shutil.copy(ROOT / name, tmp_path / name)
    (tmp_path / "comfyui").mkdir()
    page = "hidream/server/site/index.html"
    assert "src/hidream/server/site" in (ROOT / ".gitignore").read_text()
    for each in ("hidream/__init__.py", page):
        (tmp_path / "src" / each).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "src" / each).write_text("")
    assert page in files(WheelBuilder, tmp_path)
    assert f"src/{page}" in files(SdistBuilder, tmp_path)


def test_the_documented_steps_build_the_site_first():
    steps = (ROOT / "CONTRIBUTING.md").read_text().partition("## Build a package")[2].partition("```\n")[2]
    lines = [line.split("#")[0].strip() for line in steps.partition("```")[0].splitlines()]
    assert lines == ["make docs", "python -m build", "twine check --strict dist/*"]


@pytest.mark.long
@pytest.mark.integration
def test_an_installed_wheel_draws(tmp_path):
    subprocess.run([sys.executable, "-m", "hatchling", "build", "-d", tmp_path], cwd=ROOT, check=True, timeout=200)
    (wheel,), (sdist,) = tmp_path.glob("*.whl"), tmp_path.glob("*.tar.gz")
    assert wheel.stat().st_size < WHEEL_MAX_BYTES
    with zipfile.ZipFile(wheel) as archive:
        (metadata,) = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
        described = Parser().parsestr(archive.read(metadata).decode())
    assert described["License-Expression"] == "MIT"
    assert described.get_payload().strip() == (ROOT / "README.md").read_text().strip()
    with tarfile.open(sdist) as archive:
        assert not [name for name in archive.getnames() if "/tests/" in name]

    venv = tmp_path / "venv"
    subprocess.run([sys.executable, "-m", "venv", venv], check=True, timeout=100)
    python = venv / "bin" / "python"
    environ = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "HIDREAM"))}
    install = [python, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", wheel]
    subprocess.run(install, check=True, env=environ, timeout=100)
    # no network: the dependencies are those of the tests, and a path in a .pth file brings no editable install
    (site,) = (venv / "lib").glob("python*/site-packages")
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    where = [python, "-c", "import hidream; print(hidream.__file__)"]
    found = subprocess.run(where, check=True, env=environ, cwd=tmp_path, capture_output=True, text=True, timeout=100)
    assert Path(found.stdout.strip()).is_relative_to(site)
    (tmp_path / "custom_nodes").mkdir()
    subprocess.run([venv / "bin" / "hidream", "comfyui", "install", tmp_path], check=True, env=environ, timeout=100)
    assert (tmp_path / "custom_nodes" / "hidream").resolve() == site / "hidream" / "comfyui"
    for variant in ("dev", "full", "fast"):
        command = [venv / "bin" / "hidream", "generate", "a fox", "--seed", "7", "--steps", "2", "--size", "256*256"]
        command += ["--variant", variant, "--out", tmp_path / f"{variant}.png"]
        subprocess.run(command, check=True, cwd=tmp_path, timeout=100, env=environ | {"HIDREAM_HOME": str(tmp_path)})
        with Image.open(tmp_path / f"{variant}.png") as image:
            assert image.size == (256, 256)
