"""The client without torch, numpy and the server: in a process of its own, where they cannot be imported."""

import subprocess
import sys
import textwrap
import tomllib
from pathlib import Path

import pytest

from hidream.commands.grammar import Group
from hidream.commands.index import TOP

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.integration

PACKAGES = ("torch", "numpy", "diffusers", "transformers", "fastapi", "starlette", "uvicorn", "sqlalchemy", "obstore")
ROOMS = ("hidream.model", "hidream.engine", "hidream.server", "hidream.store", "hidream.settings", "hidream.outbound")
BLOCKED = PACKAGES + ROOMS


def alone(code, *, blocked=BLOCKED):
    script = f"import sys\nsys.modules.update(dict.fromkeys({[*blocked]!r}))\n{textwrap.dedent(code)}"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_the_client_needs_none_of_it():
    made = "import hidream; print(hidream.Client('http://h', 'k'), hidream.AsyncClient('http://h', 'k'))"
    model = "model='wavespeed-ai/hidream-i1-dev'"
    assert alone(made) == f"Client('http://h', {model}) AsyncClient('http://h', {model})"


def test_webhooks_are_verified_without_the_server():
    code = """
        import hidream
        from hidream.webhooks.signature import headers
        signed = headers("whsec_a", "1", 1763856000, b'{"id": "1"}')
        print(hidream.webhooks.verify(signed, b'{"id": "1"}', "whsec_a", 1763856000)["id"])
        try:
            hidream.webhooks.verify(signed, b"{}", "whsec_a")
        except hidream.errors.InvalidSignature as error:
            print(error.http_status)
    """
    assert alone(code, blocked=[*BLOCKED, "httpx", "httpcore", "PIL"]) == "1\n401"


def test_the_import_of_the_package_loads_nothing():
    code = "import hidream; print([name for name in sys.modules if name.startswith(('hidream', 'httpx', 'PIL'))])"
    assert alone(code, blocked=[]) == "['hidream']"


@pytest.mark.parametrize(
    ("command", "package", "extras"),
    [
        (["info"], "torch", "torch"),
        (["keys", "list"], "sqlalchemy", "server"),
        (["doctor", "--reference"], "diffusers", "reference"),
    ],
)
def test_a_command_names_the_extras_that_it_needs(tmp_path, command, package, extras):
    code = f"""
        import os
        os.environ["HIDREAM_HOME"] = {str(tmp_path)!r}
        from hidream import cli
        sys.stderr = sys.stdout
        print(cli.main({command!r}))
    """
    cure = f"which is not installed; install it with: pip install 'hidream[{extras}]'"
    said = f"hidream: `hidream {' '.join(command)}` needs {package}, {cure}"
    assert alone(code, blocked=[package]).splitlines()[-2:] == [said, "1"]


def test_the_commands_of_the_model_need_no_package_of_the_server():
    server = ("sqlalchemy", "alembic", "fastapi", "starlette", "uvicorn", "obstore", "prometheus_client", "mcp")
    rooms = "worker.garbage, worker.loading, model.pipeline, outputs.encode, images.measure, formats.convert"
    alone(f"import {', '.join(f'hidream.{room}' for room in rooms.split(', '))}", blocked=server)


def test_every_command_has_its_extras():
    known = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    below = [entry.load(word) for word, entry in TOP.entries.items()]
    commands = [c for each in below for c in (_all(each) if isinstance(each, Group) else [each])]
    assert {extra for each in commands for extra in each.extras.split(",") if extra} == {"mcp", "server", "torch"}
    assert {"mcp", "server", "torch"} <= known.keys()


def _all(group):
    return [entry.load(word) for word, entry in group.entries.items()]
