"""The package: what a wheel and an sdist contain, and that an installed wheel draws."""

import os
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest
from hatchling.builders.sdist import SdistBuilder
from hatchling.builders.wheel import WheelBuilder
from PIL import Image

ROOT = Path(__file__).parents[2]
WHEEL_MAX_BYTES = 96_000_000
"""Before compression; nano has 94 MB of it."""
BESIDE_SOURCE_MAX_BYTES = 5_000_000
"""What an sdist has beside `src`: documents and their images."""


def files(builder):
    """The files of a package, as paths within it and on the disk, without building it."""
    return {each.distribution_path: Path(each.path) for each in builder(str(ROOT)).recurse_included_files()}


def test_a_wheel_has_all_files_of_the_package_and_no_others():
    roots = {"hidream": ROOT / "src" / "hidream", "hidream/comfyui": ROOT / "comfyui"}
    wanted = {
        f"{name}/{path.relative_to(root).as_posix()}": path
        for name, root in roots.items()
        for path in root.rglob("*")
        if path.is_file() and path.suffix != ".pyc"
    }
    assert files(WheelBuilder) == wanted
    assert "hidream/nano/fast/transformer/diffusion_pytorch_model.safetensors" in wanted
    assert sum(path.stat().st_size for path in wanted.values()) < WHEEL_MAX_BYTES


def test_an_sdist_has_what_builds_the_wheel_and_no_tests():
    found = files(SdistBuilder)
    within = {f"hidream/{name}" if name.startswith("comfyui/") else name.removeprefix("src/") for name in found}
    assert files(WheelBuilder).keys() <= within
    assert {"README.md", "LICENSE", "NOTICE", "requirements.lock"} <= found.keys()
    assert {name.partition("/")[0] for name in found if "/" in name} == {"src", "comfyui", "docs", "deploy", "examples"}
    beside = sum(path.stat().st_size for name, path in found.items() if not name.startswith(("src/", "comfyui/")))
    assert beside < BESIDE_SOURCE_MAX_BYTES


@pytest.mark.long
@pytest.mark.integration
def test_an_installed_wheel_draws(tmp_path):
    subprocess.run([sys.executable, "-m", "hatchling", "build", "-d", tmp_path], cwd=ROOT, check=True, timeout=200)
    (wheel,), (sdist,) = tmp_path.glob("*.whl"), tmp_path.glob("*.tar.gz")
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
