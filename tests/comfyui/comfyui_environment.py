"""The environment of `make test-comfyui`: ComfyUI's requirements beside our own, under `.cache/comfyui/`.

`python comfyui_environment.py CHECKOUT` makes it, if it is not there yet, and prints the path of its Python. Our own
environment is seen through a .pth file, so that torch and transformers are there once; what ComfyUI wants beyond it
comes from PyPI. `COMFYUI_PYTHON` names another Python, such as that of an existing ComfyUI.
"""

import hashlib
import os
import shutil
import subprocess
import sys
import sysconfig
import venv
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).parents[2]
CACHE = ROOT / ".cache" / "comfyui"
BROWSER = "playwright>=1.50"
"""Drives Chromium, in which the front end's own tests run."""


def python_for(checkout):
    """The Python that has all requirements of a checkout."""
    if own := os.environ.get("COMFYUI_PYTHON"):
        return own
    requirements = Path(checkout) / "requirements.txt"
    if not requirements.is_file():
        sys.exit(f"COMFYUI is {str(checkout)!r}, which has no requirements.txt; accepted: a checkout of ComfyUI")
    digest = hashlib.sha256(requirements.read_bytes() + sys.prefix.encode() + BROWSER.encode()).hexdigest()
    made, python = CACHE / ".made", CACHE / "bin" / "python"
    if not made.exists() or made.read_text() != digest:
        shutil.rmtree(CACHE, ignore_errors=True)
        venv.create(CACHE, with_pip=True, symlinks=True)
        site = sysconfig.get_path("purelib", vars={"base": str(CACHE)})
        # Two lines: of a folder that a .pth file names, Python reads no .pth file, and so no editable hidream.
        (Path(site) / "hidream_environment.pth").write_text(f"{sysconfig.get_path('purelib')}\n{ROOT / 'src'}\n")
        (CACHE / "constraints.txt").write_text(f"torch=={version('torch').partition('+')[0]}\n")
        install = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        print(f"installing the requirements of {checkout} into {CACHE}", file=sys.stderr)  # noqa: T201
        subprocess.run(
            [*install, "-c", str(CACHE / "constraints.txt"), "-r", str(requirements), BROWSER],
            check=True,
            stdout=sys.stderr,
        )
        made.write_text(digest)
    return str(python)


if __name__ == "__main__":
    print(python_for(sys.argv[1]))  # noqa: T201
