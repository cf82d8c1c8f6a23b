"""Every command runs where only the packages of its extras are installed, and names the extras where they are not.

What an extra brings is read from the metadata of what is installed. Commands run in a process that can import no other
package.
"""

import json
import os
import subprocess
import sys
import tomllib
from importlib.metadata import PackageNotFoundError, packages_distributions, requires
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from PIL import Image

from hidream.commands.grammar import Command, Group
from hidream.commands.index import TOP

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.integration

SCRIPT = """
import contextlib, io, json, sys

absent, commands = json.load(sys.stdin)

class Installed:
    def __init__(self, finders):
        self.finders = finders

    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in absent:
            return None
        return next((spec for each in self.finders if (spec := each.find_spec(name, path, target))), None)

    def find_distributions(self, *context):
        return [found for each in self.finders if hasattr(each, "find_distributions")
                for found in each.find_distributions(*context)]

    def invalidate_caches(self):
        pass

sys.meta_path[:] = [Installed(sys.meta_path[:])]
absent = set(absent)
from hidream import cli
for command in commands:
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        status = cli.main(command)
    print(json.dumps([status, said.getvalue()]), file=sys.__stdout__, flush=True)
"""
KEY, SMALL = "0" * 32, ["--size", "256x256", "--steps", "1"]
COMMANDS = {
    "inspect": (["image.png"], 1, "does not say how it was made"),
    "generate --server": (["a fox in snow", "--image", "image.png"], 1, "cannot be reached"),
    "batch submit": (["prompts.txt", "--server", "http://127.0.0.1:9"], 1, "cannot be reached"),
    "batch status": (["prompts.batch.jsonl"], 0, "no tasks"),
    "batch fetch": (["prompts.batch.jsonl"], 0, "no tasks"),
    "completion": (["bash"], 0, "complete"),
    "help": (["generate"], 0, "Examples"),
    "generate": (["a fox in snow", *SMALL, "--image", "image.png"], 0, "out.png"),
    "models pull": (["owner/name", "--dry-run"], 1, "HF_HUB_OFFLINE"),
    "models list": ([], 0, ""),
    "models show": (["dev"], 1, ""),
    "models verify": (["dev"], 1, ""),
    "models rm": (["dev", "--yes"], 1, ""),
    "info": ([], 0, "hidream-i1-full"),
    "convert": (["image.png", "x.safetensors"], 1, "image.png"),
    "bench": (["--sizes", "256x256", "--steps", "1", "--rounds", "1"], 0, "median_s"),
    "keys create": ([], 0, ""),
    "keys list": ([], 0, ""),
    "keys revoke": ([KEY], 1, KEY),
    "keys rotate": ([KEY], 1, KEY),
    "keys limit": ([KEY, "--tasks-max", "1"], 1, KEY),
    "keys rotate-webhook": ([KEY], 1, KEY),
    "keys export": ([KEY, "--out", "key.zip"], 1, KEY),
    "keys erase": ([KEY, "--yes"], 1, KEY),
    "audit": ([], 0, "keys create"),
    "store copy": (["home/hidream.db", "copy.db"], 0, "copied"),
    "comfyui install": (["home"], 1, "home"),
    "comfyui uninstall": (["home"], 1, "home"),
    "comfyui doctor": (["home"], 1, "home"),
    "doctor": ([], 0, "nothing is wrong"),
}
"""Each command with arguments, its exit status and a part of what it says, where its extras are installed.

The commands are in the order in which they can run in one folder.
"""
SERVICES = {"serve", "api", "worker", "mcp"}
"""These do not end by themselves; here only their modules are imported."""
MODULES = {
    "api": ("hidream.server.serve", "server"),
    "serve": ("hidream.server.serve", "server"),
    "worker": ("hidream.worker.main", "torch,server"),
    "mcp": ("hidream.mcp_server", "mcp"),
}


def commands_of(group, path=()):
    for name, entry in group.entries.items():
        command = entry.load(name)
        if isinstance(command, Group):
            yield from commands_of(command, (*path, name))
        else:
            yield " ".join((*path, name)), command


ALL: dict[str, Command] = dict(commands_of(TOP))


def extras_of(name):
    """The extras that a command declares, as it is called here."""
    command, _, server = name.partition(" --server")
    return "" if server or name.endswith("--server") else ALL[command].extras


def brought(extras):
    """The names of all distributions that `pip install 'hidream[extras]'` brings."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    optional = project["optional-dependencies"]
    pending = [*project["dependencies"], *(each for extra in extras.split(",") for each in optional.get(extra, ()))]
    found = set()
    while pending:
        requirement = Requirement(pending.pop())
        one = (canonicalize_name(requirement.name), frozenset(requirement.extras))
        if one not in found:
            found.add(one)
            pending += needed_by(*one)
    return {name for name, _ in found}


def needed_by(name, extras):
    """The requirements of a distribution with some of its extras; none if it is not installed on this platform."""
    try:
        all_of_it = requires(name) or ()
    except PackageNotFoundError:
        return []
    read = [(each, Requirement(each).marker) for each in all_of_it]
    return [each for each, marker in read if not marker or any(marker.evaluate({"extra": e}) for e in ("", *extras))]


def absent(extras):
    """The top-level packages that are installed here, and would not be with these extras."""
    present = brought(extras) | {"hidream"}
    names = packages_distributions()
    return [name for name, owners in names.items() if not {canonicalize_name(each) for each in owners} & present]


def run(folder, extras, commands):
    """Run commands where only these extras are installed; return the exit status and the output of each."""
    Image.new("RGB", (64, 64), "white").save(folder / "image.png")
    (folder / "prompts.txt").write_text("a fox\n")
    environ = {name: value for name, value in os.environ.items() if not name.startswith(("HIDREAM", "HF_"))}
    environ |= {"HIDREAM_HOME": str(folder / "home"), "HF_HOME": str(folder / "hub"), "HF_HUB_OFFLINE": "1"}
    environ |= {"HIDREAM_API_KEY": "hd_key"}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        input=json.dumps([absent(extras), commands]),
        capture_output=True,
        text=True,
        cwd=folder,
        env=environ,
        timeout=280,
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def typed(name):
    words = name.removesuffix(" --server").split()
    server = ["--server", "http://127.0.0.1:9"] if name.endswith("--server") else []
    return [*words, *COMMANDS[name][0], *server]


def test_every_command_is_tried():
    assert {name.removesuffix(" --server") for name in COMMANDS} | SERVICES == ALL.keys()


@pytest.mark.parametrize("extras", ["", "torch", "server", "torch,server"])
def test_a_command_runs_with_its_extras_alone(tmp_path, extras):
    names = [name for name in COMMANDS if extras_of(name) == extras]
    assert names
    for name, (status, said) in zip(names, run(tmp_path, extras, [typed(each) for each in names]), strict=True):
        _, expected, part = COMMANDS[name]
        assert "not installed" not in said, f"{name}: {said}"
        assert (status, part in said) == (expected, True), f"{name}: {said}"


def test_without_them_it_names_them(tmp_path):
    names = [name for name in COMMANDS if extras_of(name) and name != "doctor"]
    for name, (status, said) in zip(names, run(tmp_path, "", [typed(each) for each in names]), strict=True):
        assert status == 1, f"{name}: {said}"
        assert f"hidream: `hidream {name}` needs " in said, name
        assert said.endswith(f"install it with: pip install 'hidream[{extras_of(name)}]'\n"), said


def test_doctor_says_what_is_not_installed(tmp_path):
    ((status, said),) = run(tmp_path, "", [["doctor", "--json"]])
    findings = json.loads(said)["findings"]
    missing = {each["subject"]: each for each in findings if each["state"] == "wrong"}
    assert status == 1
    assert missing["device"]["text"].endswith(" is not installed")
    assert missing["device"]["cure"] == "pip install 'hidream[torch,server]'"


@pytest.mark.parametrize("service", sorted(SERVICES))
def test_the_modules_of_a_service_need_its_extras_alone(tmp_path, service):
    module, extras = MODULES[service]
    assert set(extras.split(",")) <= set(ALL[service].extras.split(","))
    script = SCRIPT.replace("from hidream import cli\n", f"import {module}\n")
    done = subprocess.run(
        [sys.executable, "-c", script],
        input=json.dumps([absent(extras), []]),
        capture_output=True,
        text=True,
        cwd=tmp_path,
        timeout=100,
    )
    assert done.returncode == 0, done.stderr
