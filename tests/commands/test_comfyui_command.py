"""`hidream comfyui`: nodes are linked or copied into a ComfyUI, taken out again, and checked."""

import json
import shutil
import sys
import tomllib
from pathlib import Path

import pytest

import hidream
from hidream.cli import main
from hidream.commands import comfyui

pytestmark = pytest.mark.integration  # ComfyUI's Python is asked what it has
ROOT = Path(__file__).parents[2]


@pytest.fixture
def base(tmp_path, monkeypatch):
    """A folder that looks like a ComfyUI."""
    monkeypatch.setenv("HIDREAM_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("PYTHONPATH", str(ROOT / "src"))
    for name in ("HIDREAM_API_KEY", "WAVESPEED_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    folder = tmp_path / "ComfyUI"
    for each in ("custom_nodes", "comfy_api/v0_0_2"):
        (folder / each).mkdir(parents=True)
    (folder / "main.py").touch()
    (folder / "comfyui_version.py").write_text('__version__ = "0.3.64"\n')
    return folder


@pytest.fixture
def run(capsys):
    """Run a command; give its status, and its findings or its error."""

    def run(*arguments):
        status = main(["comfyui", *map(str, arguments), "--json"])
        said = capsys.readouterr()
        return status, json.loads(said.out)["findings"] if said.out else said.err

    return run


def states(findings):
    return {each["subject"]: each["state"] for each in findings}


def test_a_link(base, run):
    status, findings = run("install", base)
    assert (status, states(findings)) == (0, {"nodes": "ok", "Python": "ok", "ComfyUI": "ok"})
    nodes = base / "custom_nodes" / "hidream"
    assert nodes.resolve() == ROOT / "comfyui"
    assert run("doctor", base)[0] == 0
    assert run("install", base)[0] == 0  # again
    assert run("uninstall", base)[0] == 0
    assert not nodes.is_symlink()
    assert (ROOT / "comfyui" / "__init__.py").exists()


def test_a_copy(base, run):
    assert run("install", base.parent, "--copy")[0] == 0
    nodes = base / "custom_nodes" / "hidream"
    copied = {path.relative_to(nodes) for path in nodes.rglob("*") if path.is_file()}
    package = {path.relative_to(ROOT / "comfyui") for path in (ROOT / "comfyui").rglob("*") if path.suffix != ".pyc"}
    assert copied == {path for path in package if (ROOT / "comfyui" / path).is_file()}
    assert run("doctor", base)[0] == 0
    project = nodes / "pyproject.toml"
    project.write_text(project.read_text().replace(hidream.__version__, "0.0.9"))
    status, findings = run("doctor", base)
    assert (status, states(findings)["nodes"]) == (1, "wrong")
    assert run("uninstall", base)[0] == 0
    assert not nodes.exists()


def test_windows_gets_a_copy_where_links_are_not_allowed(base, run, monkeypatch):
    def refused(*arguments, **options):
        raise OSError(1314, "A required privilege is not held by the client")

    monkeypatch.setattr(Path, "symlink_to", refused)
    status, message = run("install", base)
    assert (status, "cannot be created" in message) == (1, True)
    monkeypatch.setattr(comfyui.os, "name", "nt")
    nodes = base / "custom_nodes" / "hidream"
    assert "is a copy of" in comfyui._put(ROOT / "comfyui", nodes, copy=False)
    assert (nodes / "__init__.py").is_file()


def test_what_is_not_ours_stays(base, run):
    other = base / "custom_nodes" / "hidream"
    other.mkdir()
    (other / "__init__.py").write_text("precious = 1\n")
    for command in ("install", "uninstall"):
        status, message = run(command, base)
        assert (status, "no nodes of hidream" in message) == (1, True)
    assert (other / "__init__.py").read_text() == "precious = 1\n"


def test_a_link_into_nothing(base, run):
    (base / "custom_nodes" / "hidream").symlink_to(base / "gone", target_is_directory=True)
    status, findings = run("doctor", base)
    assert (status, states(findings)["nodes"]) == (1, "wrong")
    assert run("install", base)[0] == 0


def test_no_comfyui(tmp_path, run):
    status, message = run("install", tmp_path)
    assert (status, "has no folder custom_nodes; accepted: the folder of a ComfyUI" in message) == (1, True)
    (tmp_path / "custom_nodes").mkdir()
    status, message = run("uninstall", tmp_path)
    assert (status, "are not installed there" in message) == (1, True)


def test_an_old_comfyui(base, run):
    shutil.rmtree(base / "comfy_api")
    status, findings = run("install", base)
    assert (status, states(findings)["ComfyUI"]) == (1, "wrong")
    assert "has no comfy_api/v0_0_2" in findings[-1]["text"]


def test_comfyuis_own_python_is_asked(base, run, monkeypatch):
    python = base / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    answer = {"python": "3.12.1", "hidream": None, "packages": {}}

    def says(**changes):
        python.write_text(f"#!{sys.executable}\nprint('''{json.dumps(answer | changes)}''')\n")
        python.chmod(0o755)
        return run("doctor", base)[1][-3:]

    wrong = next(each for each in says() if each["subject"] == "Python")
    assert (wrong["state"], wrong["cure"]) == ("wrong", f'"{python}" -m pip install hidream')
    torch = {"torch": {"needed": "torch>=2.10", "installed": "2.9.1+cu128"}}
    old = next(each for each in says(hidream="0.1.0", packages=torch) if each["subject"] == "local nodes")
    assert (old["state"], "torch is 2.9.1+cu128" in old["text"]) == ("warning", True)
    missing = {"torch": {"needed": "torch>=2.10", "installed": "2.10.0"}, "gguf": {"needed": "gguf", "installed": None}}
    few = next(each for each in says(hidream="0.1.0", packages=missing) if each["subject"] == "local nodes")
    assert few["cure"] == f'"{python}" -m pip install "hidream[torch]"'
    python.write_text("#!/bin/sh\necho broken >&2\nexit 1\n")
    status, findings = run("doctor", base)
    assert (status, next(each["text"] for each in findings if each["subject"] == "Python").endswith("broken")) == (
        1,
        True,
    )


def test_keys_that_others_can_read(base, run):
    file = base / comfyui.KEYS
    file.parent.mkdir(parents=True)
    file.write_text("[A]\n")
    file.chmod(0o644)
    run("install", base)
    assert states(run("doctor", base)[1][:-1])["keys"] == "warning"
    file.chmod(0o600)
    assert [each["state"] for each in run("doctor", base)[1] if each["subject"] == "keys"] == ["ok"]


def test_the_nodes_have_the_version_of_hidream():
    project = tomllib.loads((ROOT / "comfyui" / "pyproject.toml").read_text())["project"]
    assert project["version"] == hidream.__version__
    assert project["dependencies"] == ["hidream"] == (ROOT / "comfyui" / "requirements.txt").read_text().split()


def test_where_the_nodes_look_for_keys():
    text = (ROOT / "comfyui" / "remote" / "keys.py").read_text()
    assert 'FILE = Path("__hidream") / "keys.toml"' in text
    assert Path("user") / "__hidream" / "keys.toml" == comfyui.KEYS
