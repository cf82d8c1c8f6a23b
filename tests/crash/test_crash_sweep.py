"""A process that is killed at any place loses nothing that was acknowledged, and nothing happens twice."""

import contextlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from planted import FAULTS
from ports import census

HERE = Path(__file__).parent

ALL = 10_000
"""Deaths in one run: each process that dies is the one that carries on for the last."""
CHANGING = "after its commit|outputs|uploads|webhook: "
"""The short form's sites: who dies elsewhere has changed nothing since the last of them."""
FILES = [f"outputs.{call}" for call in ("write", "delete", "names", "metadata")]
FILES += [f"uploads.{call}" for call in ("adopt", "read", "delete", "names")]
ONLY_BY_A_DEATH = ("early_commit", "lost_webhook")
"""Faults that nobody sees as long as all goes well."""


def sweep(folder, urls, *, bucket=None, fault="", deaths_max=ALL, **strike):
    job = {"folder": str(folder), "urls": urls, "bucket": bucket or {}, "fault": fault, "strike": strike}
    job["deaths_max"] = deaths_max
    paths = os.pathsep.join(map(str, (HERE, HERE.parent / "worker", HERE.parent, HERE.parents[1] / "src")))
    environ = os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    command = [sys.executable, HERE / "lanes.py"]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, env=environ, start_new_session=True, **pipes) as process:
        try:
            answer, _ = process.communicate(json.dumps(job))
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # the lanes too, if this test has run out of time
    return json.loads(answer)


def told(swept):
    """Say what was wrong, for people."""
    lines = []
    for run in swept["wrong"]:
        died = ", ".join(run["deaths"]) or "nowhere"
        lines.append(f"died at {died}: {'; '.join(run['wrong'])}\n{run['log']}")
    return "\n".join(lines + swept["broken"])


def check(swept, lanes):
    names = {site.partition(" #")[0] for site in swept["struck"]}
    figures = f"{swept['deaths']} deaths at {len(names)} names, {swept['runs']} runs, {swept['took_s']} s"
    print(figures)  # noqa: T201 - what -rA shows
    assert not told(swept), told(swept)
    assert swept["calm"] == lanes  # until nobody died any more
    assert swept["deaths"] == len(swept["struck"])
    assert census() <= set(swept["callers"])  # the story is about all that the store can be asked for
    return names


def test_sqlite_and_a_folder(folder, sqlite_urls):
    names = check(sweep(folder, sqlite_urls, only=CHANGING), len(sqlite_urls))
    for call in FILES:
        assert {f"{call}: before", f"{call}: after"} <= names
    assert {"webhook: before it is sent", "webhook: after it was sent"} <= names


def test_postgresql_and_a_bucket(folder, postgresql_urls, bucket):
    check(sweep(folder, postgresql_urls, bucket=bucket, only=CHANGING, share=5), len(postgresql_urls))


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_caught(folder, sqlite_urls, fault):
    swept = sweep(folder, sqlite_urls[:1], fault=fault, only="_leave_processing: after its commit", alike=8)
    assert swept["wrong"], swept
    if fault in ONLY_BY_A_DEATH:
        assert swept["wrong"][0]["deaths"]
    assert not any("child ended" in complaint for run in swept["wrong"] for complaint in run["wrong"]), told(swept)


@pytest.mark.long
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
def test_every_call(request, folder, kind):
    urls = request.getfixturevalue(f"{kind}_urls")
    bucket = request.getfixturevalue("bucket") if kind == "postgresql" else None
    check(sweep(folder, urls, bucket=bucket, alike=3, deaths_max=1), len(urls))
