"""docs/CLIENTS.md: its examples run unchanged, except for the server's address and the key.

A block's first line names the language and the environment: ```` ```python pypi-openai ````. What it prints last is its
image: a URL, or a file. JSON is the configuration of an agent, whose place the test takes.
"""

import json
import os
import re
import shutil
import subprocess
import sys

import pytest
from driven import command, surroundings
from environments import HERE, environment
from mcp import StdioServerParameters
from model_context import said
from received_images import look
from service import MODEL, PROMPT

pytestmark = pytest.mark.timeout(900)  # the first test of a client may have to install it

PAGE = (HERE.parents[1] / "docs" / "CLIENTS.md").read_text()
SOURCE = HERE.parents[1] / "src"
BLOCKS = re.findall(r"^```(\w+) (\S+)\n(.+?)^```$", PAGE, re.MULTILINE | re.DOTALL)
OWN = "hidream"
"""Our own client, which is in this environment."""
SHORT = {OWN, "pypi-wavespeed-2.0.5", "npm-wavespeed-0.3.2", "pypi-openai", "pypi-huggingface-hub"}
SUFFIXES = {"python": ".py", "javascript": ".mjs"}
NOT_RUN = {"node"}  # Node itself, where the machine has none


def test_every_client_is_on_the_page():
    named = {name for _, name, _ in BLOCKS}
    assert (
        named - {OWN}
        == {path.name for path in HERE.iterdir() if path.is_dir() and not path.name.startswith("__")} - NOT_RUN
    )


@pytest.mark.parametrize(
    ("language", "name", "lines"),
    [
        pytest.param(*block, id=f"{block[1]}-{number}", marks=[] if block[1] in SHORT else pytest.mark.long)
        for number, block in enumerate(BLOCKS)
    ],
)
def test_its_lines_make_an_image(service, tmp_path, language, name, lines):
    lines = lines.replace("http://127.0.0.1:8000", service.url).replace("hd_YOUR_KEY", service.key)
    if language == "json":
        image = drawn_for_an_agent(tmp_path, name, json.loads(lines))
    else:
        image = run(tmp_path, language, name, lines).splitlines()[-1].strip()
    assert min(look(image if image.startswith("http") else tmp_path / image).size) >= 512


def run(home, language, name, lines):
    if language == "bash":
        asked, environ = ["bash", "-e", "-c", lines], programs(home, name)
    else:
        script = home / f"page{SUFFIXES[language]}"
        script.write_text(lines)
        if name == OWN:
            return printed(home, [sys.executable, script], surroundings(home) | {"PYTHONPATH": str(SOURCE)})
        asked, environ = command(name, script), surroundings(home)
    return printed(home, asked, environ)


def printed(home, asked, environ):
    done = subprocess.run(
        asked, cwd=home, env=environ, capture_output=True, text=True, timeout=120, stdin=subprocess.DEVNULL
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def programs(home, name):
    """The variables with which a shell finds the programs of a client."""
    folder, environ = environment(name), surroundings(home)
    found = [str(folder / "node_modules" / ".bin"), str(folder / "bin"), environ["PATH"]]
    return environ | {"PATH": os.pathsep.join(found)}


def drawn_for_an_agent(home, name, configuration):
    ((_, asked),) = configuration["mcpServers"].items()
    environ = programs(home, name)
    program = shutil.which(asked["command"], path=environ["PATH"])
    server = StdioServerParameters(command=program, args=[], env=environ | asked["env"], cwd=home)
    if name == "npm-wavespeed-mcp":
        return said(server, "run_model", model=MODEL, input={"prompt": PROMPT})["outputs"][0]
    return said(server, "text_to_image", prompt=PROMPT)["urls"][0]
