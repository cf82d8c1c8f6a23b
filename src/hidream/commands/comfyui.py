"""`hidream comfyui`: put our nodes into a ComfyUI, take them out, and say what is wrong with them there.

The nodes are a folder of this package (in a clone: `comfyui/`). ComfyUI loads what is in its `custom_nodes`, with its
own Python, which therefore needs hidream too. Nothing is downloaded, and no package is installed here: what is missing
is named, with the command that installs it.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

import hidream
from hidream.commands.doctor import Finding, State, report
from hidream.commands.grammar import Command, Entry, Flag, Given, Group
from hidream.commands.values import PATH
from hidream.errors import ConfigurationError
from hidream.settings.tables import Settings

FOLDER = "hidream"
"""The name of the nodes' folder in `custom_nodes`."""
API = Path("comfy_api") / "v0_0_2"
"""The version of ComfyUI's node API that the nodes need."""
KEYS = Path("user") / "__hidream" / "keys.toml"
"""Where the remote nodes look for API keys (`comfyui/remote/keys.py`)."""
PROBE_S = 120
"""How long ComfyUI's Python may take to answer: the first start after an installation compiles."""
PROBE = """
import importlib.metadata as metadata, json, re, sys
def version(name):
    try: return metadata.version(name)
    except metadata.PackageNotFoundError: return None
found = {"python": sys.version.split()[0], "hidream": None, "packages": {}}
try:
    import hidream
    found["hidream"] = hidream.__version__
    needed = [each for each in metadata.requires("hidream") or [] if 'extra == "torch"' in each.replace("'", '"')]
    for each in needed:
        name = re.match(r"[\\w.-]+", each)[0]
        found["packages"][name] = {"needed": each.partition(";")[0].strip(), "installed": version(name)}
except (ImportError, metadata.PackageNotFoundError):
    pass
print(json.dumps(found))
"""
"""What ComfyUI's Python is asked: which hidream it has, and the packages with which a model runs in its process."""


@dataclass(frozen=True, slots=True)
class Installation:
    """A ComfyUI: `base` has `custom_nodes`, `code` its program, which ComfyUI Desktop keeps elsewhere (None)."""

    base: Path
    code: Path | None
    python: Path

    @property
    def nodes(self) -> Path:
        """Where our nodes are, or will be."""
        return self.base / "custom_nodes" / FOLDER


def _install(given: Given, config: Settings) -> int:
    found = _installation(given)
    _remove(found.nodes, missing_ok=True)
    text = _put(package_folder(), found.nodes, copy=given.copy)
    return report(given, [Finding("nodes", State.OK, text), *_python(found), *_program(found)])


def _uninstall(given: Given, config: Settings) -> int:
    nodes = _base(given.path) / "custom_nodes" / FOLDER
    _remove(nodes, missing_ok=False)
    return report(given, [Finding("nodes", State.OK, f"{nodes} is removed")])


def _doctor(given: Given, config: Settings) -> int:
    found = _installation(given)
    return report(given, [*_program(found), *_nodes(found), *_python(found), *_keys(found)])


def package_folder() -> Path:
    """The folder of the nodes: in an installed hidream within it, in a clone beside `src`."""
    inside = Path(hidream.__file__).parent
    for folder in (inside / "comfyui", inside.parents[1] / "comfyui"):
        if (folder / "pyproject.toml").is_file():
            return folder
    raise ConfigurationError(f"{inside} has no nodes for ComfyUI; install hidream again: pip install hidream")


def _base(path: Path) -> Path:
    """Find the folder with `custom_nodes`: PATH, or the folder ComfyUI below it. Raises ConfigurationError."""
    absolute = path.absolute()
    for each in (absolute, absolute / "ComfyUI"):
        if (each / "custom_nodes").is_dir():
            return each
    raise ConfigurationError(
        f"{str(path)!r} has no folder custom_nodes; accepted: the folder of a ComfyUI, which has models and "
        "custom_nodes"
    )


def _installation(given: Given) -> Installation:
    """Find a ComfyUI and its Python. Raises ConfigurationError."""
    base = _base(given.path)
    code = base if (base / "main.py").is_file() else None
    return Installation(base, code, given.python or _own_python(base))


def _own_python(base: Path) -> Path:
    """The Python of a ComfyUI: that of an environment beside it, or the one that runs this command."""
    programs = (Path("bin") / "python", Path("Scripts") / "python.exe")
    environments = [place / name for place in (base, base.parent) for name in (".venv", "venv")]
    candidates = [environment / program for environment in environments for program in programs]
    candidates += [base.parent / name / "python.exe" for name in ("python_embeded", "python_embedded")]
    return next((each for each in candidates if each.is_file()), Path(sys.executable))


def _put(package: Path, target: Path, *, copy: bool) -> str:
    """Link or copy the nodes; say what was done. Windows allows links to some users only; others get a copy."""
    if not copy:
        try:
            target.symlink_to(package, target_is_directory=True)
        except OSError as error:
            if os.name != "nt":
                raise ConfigurationError(f"{target} cannot be created: {error.strerror}") from error
        else:
            return f"{target} is a link to {package}"
    try:
        shutil.copytree(package, target, ignore=shutil.ignore_patterns("__pycache__"))
    except OSError as error:
        shutil.rmtree(target, ignore_errors=True)
        raise ConfigurationError(f"{package} cannot be copied to {target}: {error}") from error
    return f"{target} is a copy of {package}; run this command again after each update of hidream"


def _remove(target: Path, *, missing_ok: bool) -> None:
    """Remove our nodes. Raises ConfigurationError if something else is there, or nothing."""
    if not (target.is_symlink() or target.exists()):
        if missing_ok:
            return
        raise ConfigurationError(f"{target} does not exist: the nodes are not installed there")
    if target.exists() and _version(target) is None:
        raise ConfigurationError(f"{target} has no nodes of hidream; move it away, or remove it yourself")
    try:
        if target.is_symlink():
            target.unlink()
        else:
            shutil.rmtree(target)
    except OSError as error:
        raise ConfigurationError(f"{target} cannot be removed: {error.strerror}") from error


def _version(folder: Path) -> str | None:
    """The version of our nodes in a folder; None if it has others, or none."""
    try:
        project = tomllib.loads((folder / "pyproject.toml").read_text(encoding="utf-8")).get("project", {})
    except (OSError, ValueError):
        return None
    return str(project.get("version")) if project.get("name") == "hidream-i1" else None


def _program(found: Installation) -> Iterator[Finding]:
    """Whether the ComfyUI has the node API that the nodes need."""
    if found.code is None:
        text = f"{found.base} has no main.py, so its version is not known"
        yield Finding("ComfyUI", State.WARNING, text, "nothing, if this is the folder of ComfyUI Desktop")
        return
    file = found.code / "comfyui_version.py"
    stated = re.search(r'__version__ = "([^"]+)"', file.read_text(encoding="utf-8")) if file.is_file() else None
    version = stated[1] if stated else "of an unknown version"
    if (found.code / API).is_dir():
        yield Finding("ComfyUI", State.OK, f"{version} in {found.code}")
    else:
        yield Finding("ComfyUI", State.WRONG, f"{version} in {found.code} has no {API.as_posix()}", "update ComfyUI")


def _nodes(found: Installation) -> Iterator[Finding]:
    """Whether the nodes are there, and of this version."""
    nodes, cure = found.nodes, "hidream comfyui install PATH"
    if nodes.is_symlink() and not nodes.exists():
        yield Finding("nodes", State.WRONG, f"{nodes} is a link to {nodes.readlink()}, which does not exist", cure)
        return
    version = _version(nodes)
    if version is None:
        yield Finding("nodes", State.WRONG, f"{nodes} has no nodes of hidream", cure)
    elif version != hidream.__version__:
        yield Finding("nodes", State.WRONG, f"{nodes} is of hidream {version}; this is {hidream.__version__}", cure)
    else:
        yield Finding("nodes", State.OK, f"{version} in {nodes}{', a link' if nodes.is_symlink() else ''}")


def _python(found: Installation) -> Iterator[Finding]:
    """Whether ComfyUI's Python can import hidream, and can run the model."""
    install = f'"{found.python}" -m pip install'
    answer = _ask(found.python)
    if isinstance(answer, str):
        yield Finding("Python", State.WRONG, f"{found.python} {answer}", "name ComfyUI's Python with --python")
        return
    where = f"{found.python} (Python {answer['python']})"
    if answer["hidream"] is None:
        yield Finding("Python", State.WRONG, f"{where} cannot import hidream", f"{install} hidream")
        return
    yield Finding("Python", State.OK, f"{where} has hidream {answer['hidream']}")
    packages = answer["packages"]
    if old := _older(packages.get("torch")):
        cure = "update ComfyUI with its torch first; pip alone may replace a torch for your GPU by one for the CPU"
        yield Finding("local nodes", State.WARNING, f"torch is {old[0]}, and they need {old[1]}", cure)
    elif missing := [row["needed"] for row in packages.values() if not row["installed"] or _older(row)]:
        text = f"they need {', '.join(missing)}; the remote nodes do not"
        yield Finding("local nodes", State.WARNING, text, f'{install} "hidream[torch]"')


def _ask(python: Path) -> Any | str:  # noqa: ANN401 - JSON
    """Ask ComfyUI's Python what it has; a text says why there is no answer."""
    try:
        done = subprocess.run(  # noqa: S603 - the Python that the user named
            [python, "-c", PROBE], capture_output=True, text=True, timeout=PROBE_S, cwd=Path(python).parent
        )
        return json.loads(done.stdout)
    except OSError as error:
        return f"cannot be started: {error.strerror}"
    except subprocess.TimeoutExpired:
        return f"did not answer within {PROBE_S} s"
    except ValueError:
        last = done.stderr.strip().splitlines()[-1:] or ["no output"]
        return f"did not answer: {last[0]:.200}"


def _older(row: dict[str, str | None] | None) -> tuple[str, str] | None:
    """The installed and the least version of a package, if it is installed and older."""
    least = re.search(r">=([\d.]+)", row["needed"] or "") if row else None
    if row is None or least is None or not row["installed"]:
        return None
    installed = row["installed"]
    return (installed, least[0]) if _numbers(installed) < _numbers(least[1]) else None


def _numbers(version: str) -> tuple[int, ...]:
    """The numbers before a suffix: 2.10.0+cu128 is (2, 10, 0)."""
    leading = re.match(r"\d+(\.\d+)*", version)
    return tuple(map(int, leading[0].split("."))) if leading else ()


def _keys(found: Installation) -> Iterator[Finding]:
    """Where the remote nodes find keys."""
    file = found.base / KEYS
    names = [name for name in ("HIDREAM_API_KEY", "WAVESPEED_API_KEY") if os.environ.get(name)]
    if file.is_file():
        names.append(str(file))
        if os.name == "posix" and file.stat().st_mode & 0o077:
            yield Finding("keys", State.WARNING, f"other users can read {file}", f"chmod 600 '{file}'")
    text = f"found in {', '.join(names)}" if names else "none; only the remote nodes need one"
    yield Finding("keys", State.OK, text)


def _path() -> click.Argument:
    return click.Argument(["path"], type=PATH)


def _python_flag() -> Flag:
    about = "ComfyUI's Python (default: that of its environment, or the one that runs this command)"
    return Flag(["--python"], type=PATH, metavar="PYTHON", help=about)


INSTALL = Command(
    _install,
    [_path(), Flag(["--copy"], is_flag=True, help="copy the nodes; without it, link to them"), _python_flag()],
    details="PATH is the folder of a ComfyUI, or one that contains the folder ComfyUI. Nodes that an earlier hidream "
    "installed are replaced. The exit status is 1 if ComfyUI cannot load the nodes.",
    examples=["hidream comfyui install ~/ComfyUI", "hidream comfyui install C:\\ComfyUI_windows_portable --copy"],
)
UNINSTALL = Command(_uninstall, [_path()], examples=["hidream comfyui uninstall ~/ComfyUI"])
DOCTOR = Command(
    _doctor,
    [_path(), _python_flag()],
    details="The exit status is 1 if something is wrong.",
    examples=["hidream comfyui doctor ~/ComfyUI"],
)
COMFYUI = Group(
    {
        "Commands": {
            "install": Entry(__name__, "INSTALL", "put the nodes into a ComfyUI"),
            "uninstall": Entry(__name__, "UNINSTALL", "take the nodes out of a ComfyUI"),
            "doctor": Entry(
                __name__, "DOCTOR", "check the nodes of a ComfyUI, and its Python: what is wrong, and how to mend it"
            ),
        }
    }
)
