"""`hidream batch submit | status | fetch`: many requests to a server, whose images are fetched later.

A batch is a local file beside the file of requests: its first line has the server and a random id, each further line a
task. The id is part of every Idempotency-Key, so that a submission that was interrupted goes on without a task twice.
"""

from __future__ import annotations

import uuid
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from hidream.commands import jobs, journal, prompt_rows
from hidream.commands.exit_status import ExitStatus
from hidream.commands.grammar import Command, Entry, Flag, Given, Group, note
from hidream.commands.manifest import Manifest
from hidream.commands.printing import in_one_line, result
from hidream.commands.progress import bar
from hidream.commands.prompt_rows import FILES
from hidream.commands.setting_flags import variant_flag
from hidream.commands.values import PATH, TEXT
from hidream.errors import ConnectionFailed, HiDreamError, InvalidInput, NotFound
from hidream.settings.tables import Settings
from hidream.types import Variant

KIND = "hidream_batch"
ENDING = ".batch.jsonl"


def _submit(given: Given, config: Settings) -> int:
    rows = prompt_rows.read_rows(given.file)
    path = given.batch or given.file.with_name(f"{given.file.stem}{ENDING}")
    if str(given.file) == "-" and given.batch is None:
        raise InvalidInput("--batch is absent; accepted: a file for the batch, because the requests come from a pipe")
    known_lines = _read(path) if path.exists() else []
    if not known_lines:
        known_lines = [{KIND: journal.FORMAT, "id": uuid.uuid4().hex, "server": given.server, "variant": given.variant}]
        journal.append(path, known_lines[0])
    head, *tasks = known_lines
    variant = Variant(given.variant or head["variant"] or Variant.DEV)
    asked = jobs.settled(jobs.plan(rows, {}, identity={"variant": str(variant)}), head["id"])
    known = {task["key"] for task in tasks}
    todo = [job for job in asked if job.key not in known]
    with _client(head, config, variant, given.server) as client, bar("submitting", "tasks") as display:
        for done, job in enumerate(todo):
            display.show(done=done, total=len(todo))
            keywords = {name: Path(value) if name in FILES else value for name, value in job.parameters.items()}
            task = client.submit(keywords.pop("prompt"), idempotency_key=f"{head['id']}-{job.key}", **keywords)
            entry = {"task": task.id, "key": job.key, "file": job.file, "parameters": dict(job.parameters)}
            journal.append(path, entry)
    earlier = f", {len(known)} earlier" if known else ""
    text = f"{path}: {len(todo)} tasks submitted{earlier}; next: hidream batch fetch {path}"
    result(given, {"batch": str(path), "submitted": len(todo), "tasks": len(todo) + len(known)}, text)
    return ExitStatus.OK


def _status(given: Given, config: Settings) -> int:
    head, *tasks = _read_whole(given.batch)
    with _client(head, config, head["variant"], given.server) as client:
        states = Counter(_state(client, task["task"]) for task in tasks)
    text = ", ".join(f"{count} {state}" for state, count in sorted(states.items())) or "no tasks"
    result(given, {"batch": str(given.batch), "tasks": len(tasks), "states": dict(states)}, f"{given.batch}: {text}")
    return ExitStatus.OK


def _state(client: Any, task: str) -> str:  # noqa: ANN401 - hidream.Client, which imports httpx
    try:
        return str(client.get(task).status)
    except NotFound:
        return "gone"


def _fetch(given: Given, config: Settings) -> int:
    head, *tasks = _read_whole(given.batch)
    out = given.out or given.batch.with_name(given.batch.name.removesuffix(ENDING))
    with journal.sole_writer(out):
        return _fetch_into(given, config, head, tasks, out)


def _fetch_into(
    given: Given, config: Settings, head: Mapping[str, Any], tasks: Sequence[Mapping[str, Any]], out: Path
) -> int:
    manifest, counts, failures = Manifest(out), Counter[str](), []
    with _client(head, config, head["variant"], given.server) as client, bar("fetching", "images") as display:
        for done, entry in enumerate(tasks):
            display.show(done=done, total=len(tasks))
            if manifest.find(entry["key"]) is not None:
                counts["there"] += 1
                continue
            try:
                task = client.get(entry["task"])
                if not task.prediction.ended and not given.wait:
                    counts["unfinished"] += 1
                    continue
                finished = task.result()
            except ConnectionFailed:
                raise  # the server is gone: every further task would end so
            except HiDreamError as error:
                counts["failed"] += 1
                failures.append(f"{entry['parameters']['prompt']!r:.60}: {in_one_line(error.message)}")
                continue
            about = {"seed": finished.seed, "version": finished.version, "parameters": entry["parameters"]}
            manifest.add(entry["key"], entry["file"], finished.files[0], {**about, "warnings": list(finished.warnings)})
            counts["fetched"] += 1
    for failure in failures:
        note(failure)
    text = ", ".join(f"{count} {what}" for what, count in counts.items() if count) or "no tasks"
    result(given, {"out": str(out), **counts, "failures": failures}, f"{out}: {text}")
    return ExitStatus.PARTLY if counts["unfinished"] or counts["failed"] else ExitStatus.OK


def _client(head: Mapping[str, Any], config: Settings, variant: str | None, server: str | None) -> Any:  # noqa: ANN401
    import hidream

    url = server or head["server"]
    return hidream.Client(url, config.api_key or None, model=variant or str(Variant.DEV), timeout=None)


def _read(path: Path) -> list[dict[str, Any]]:
    """Read the head and the tasks of a batch; nothing if a crash has torn the head. Raises InvalidInput."""
    try:
        return journal.read(path, KIND, _check)
    except OSError as error:
        raise InvalidInput(
            f"{path} cannot be read: {error.strerror}; accepted: a file of `hidream batch submit`"
        ) from error
    except journal.OfAnotherKindError as error:
        raise InvalidInput(f"{path} is not a batch; accepted: a file of `hidream batch submit`") from error


def _read_whole(path: Path) -> list[dict[str, Any]]:
    """Read a batch that has its head. Raises InvalidInput."""
    lines = _read(path)
    if not lines:
        raise InvalidInput(f"{path} is not a batch yet: its submission was interrupted; accepted: after another one")
    return lines


def _check(entry: Mapping[str, Any]) -> None:
    """Raise KeyError, TypeError or ValueError unless an entry is a head or a task."""
    names = ("id", "server", "variant") if KIND in entry else ("task", "key", "file", "parameters")
    for name in names:
        _ = entry[name]
    if KIND not in entry and Path(entry["file"]).name != entry["file"]:
        raise ValueError("the file is in another folder")


def _server() -> Flag:
    about = "the server (default: that of the batch, else HIDREAM_BASE_URL); its key is HIDREAM_API_KEY"
    return Flag(["--server"], type=TEXT, metavar="URL", help=about)


SUBMIT = Command(
    _submit,
    [
        click.Argument(["file"], type=PATH),
        _server(),
        variant_flag(),
        Flag(["--batch"], type=PATH, metavar="FILE", help=f"the file of the batch (default: FILE{ENDING})"),
    ],
    details="FILE has a request per line: JSONL, CSV with a head, or prompts. The same command again submits what an "
    "interrupted one did not.",
    examples=["hidream batch submit prompts.jsonl --server http://127.0.0.1:8000"],
)
STATUS = Command(
    _status, [click.Argument(["batch"], type=PATH), _server()], examples=["hidream batch status prompts.batch.jsonl"]
)
FETCH = Command(
    _fetch,
    [
        click.Argument(["batch"], type=PATH),
        Flag(["--out", "-o"], type=PATH, metavar="DIR", help="the folder of the images (default: the batch's name)"),
        Flag(["--wait"], is_flag=True, help="wait for tasks that are not finished"),
        _server(),
    ],
    details="What is in the folder already is not fetched again. The exit status is 3 while images are missing.",
    examples=["hidream batch fetch prompts.batch.jsonl --out images --wait"],
)

BATCH = Group(
    {
        "Commands": {
            "submit": Entry(__name__, "SUBMIT", "submit a file of requests to a server"),
            "status": Entry(__name__, "STATUS", "count the tasks of a batch by their states"),
            "fetch": Entry(__name__, "FETCH", "fetch the finished images of a batch into a folder"),
        }
    }
)
