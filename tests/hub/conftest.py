"""A Hub for each test, and `hidream` in a process of its own, whose cache and settings are in the test's folder."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import hub_server
import pytest


@pytest.fixture
def hub():
    with hub_server.running() as hub:
        yield hub


@dataclasses.dataclass
class HiDream:
    """`hidream` as a user of the Hub types it."""

    folder: Path
    environ: dict[str, str]

    @property
    def cache(self) -> Path:
        return self.folder / "hf" / "hub"

    def start(self, *typed: str, **environ: str) -> subprocess.Popen:
        return subprocess.Popen(
            [sys.executable, "-m", "hidream.cli", *typed],
            env=self.environ | environ,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, *typed: str, status: int = 0, **environ: str) -> tuple[str, str]:
        """Standard output and standard error; of spaces each is one, so that lines may break anywhere."""
        with self.start(*typed, **environ) as process:
            out, err = process.communicate(timeout=120)
        assert process.returncode == status, err
        return out, " ".join(err.split())

    def json(self, *typed: str, status: int = 0, **environ: str):
        return json.loads(self.run(*typed, "--json", status=status, **environ)[0])


@pytest.fixture
def hidream(tmp_path, hub):
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("HIDREAM_", "HF_"))}
    mine = {"HF_HOME": str(tmp_path / "hf"), "HF_ENDPOINT": hub.url, "HIDREAM_HOME": str(tmp_path / "home")}
    quiet = {"HF_HUB_DISABLE_TELEMETRY": "1", "NO_PROXY": "127.0.0.1,localhost"}
    return HiDream(tmp_path, kept | mine | quiet)
