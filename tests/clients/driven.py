"""Runs clients in processes of their own; `answer.py` and `answer.mjs` are the other side."""

import json
import os
import select
import shutil
import subprocess

from environments import HERE, environment, node, node_path

ANSWER_S = 120
"""More than any answer takes, an image on a busy machine or 21 s of a client's repeats: one that hangs has failed."""


class Raised(Exception):
    """What a client's user would have to catch: the names of the exception's classes, and its text."""

    def __init__(self, kinds, text):
        super().__init__(f"{kinds[0]}: {text}")
        self.kinds, self.text = kinds, text


def command(name, script):
    """The command that runs a script in a client's environment."""
    folder = environment(name)
    if script.suffix == ".py":
        return [folder / "bin" / "python", script]
    shutil.copy(HERE / "answer.mjs", folder)  # Node looks for a client beside the script that imports it
    return [node(), shutil.copy(script, folder)]


def surroundings(home):
    """The environment variables of a client, whose configuration and caches are a test's own."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("HIDREAM_", "WAVESPEED_"))}
    mine = {"HOME": str(home), "XDG_CONFIG_HOME": str(home / ".config"), "PATH": node_path(), "NO_PROXY": "127.0.0.1"}
    return kept | mine | {"PYTHONPATH": str(HERE), "NO_COLOR": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}


class Driven:
    """A client's `drive` script, while it runs."""

    def __init__(self, name, home):
        (script,) = (HERE / name).glob("drive.*")
        self.name, self.log = name, home / f"{name}.log"
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                command(name, script),
                cwd=home,
                env=surroundings(home),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )

    def __call__(self, do, **said):
        """Call a function of the script. Raises Raised."""
        self.process.stdin.write(json.dumps({"do": do, "with": said}) + "\n")
        self.process.stdin.flush()
        answers, _, _ = select.select([self.process.stdout], [], [], ANSWER_S)
        assert answers, f"{self.name} has not answered in {ANSWER_S} s: {do} {said}"
        line = self.process.stdout.readline()
        assert line, f"{self.name} has ended:\n{self.log.read_text()}"
        answer = json.loads(line)
        if "raises" in answer:
            raise Raised(answer["raises"], answer["says"])
        return answer["gives"]

    def end(self):
        self.process.stdin.close()
        status = self.process.wait(60)
        self.process.stdout.close()
        return status
