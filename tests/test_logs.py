"""The log: a line per event, which values can neither break nor forge."""

import io
import json
import logging

import pytest

from hidream import logs


@pytest.fixture
def written():
    """Log by a call, and return what was written."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level

    def write(log_format, call):
        stream = io.StringIO()
        logs.configure(log_format, stream)
        call(logging.getLogger("hidream.test"))
        return stream.getvalue()

    yield write
    root.handlers[:], root.level = handlers, level


def test_json_has_a_field_for_each_pair(written):
    line = written("json", lambda log: log.info("task_failed id=%s code=%d ms=%.1f ok=%s", "ab", 5, 1.25, None))
    found = json.loads(line)
    assert line.count("\n") == 1
    assert {name: found[name] for name in ("level", "logger", "event", "id", "code", "ms", "ok")} == {
        "level": "INFO", "logger": "hidream.test", "event": "task_failed", "id": "ab", "code": 5, "ms": 1.25, "ok": None
    }  # fmt: skip


def test_a_value_makes_no_line_and_no_pair(written):
    def call(log):
        log.info("refused error=%s", 'no\nERROR admin=yes {"event": 1}')

    text = written("text", call)
    assert text.count("\n") == 1
    assert text.endswith('refused error=no\\nERROR admin=yes {"event": 1}\n')
    found = json.loads(written("json", call))
    assert found["error"] == 'no\nERROR admin=yes {"event": 1}'
    assert "admin" not in found


def test_a_pair_does_not_hide_the_lines_own_fields(written):
    found = json.loads(written("json", lambda log: log.info("x level=%s time=%s", "mine", "never")))
    assert (found["level"], found["level_"], found["time_"]) == ("INFO", "mine", "never")


@pytest.mark.parametrize(
    ("call", "event"),
    [
        (lambda log: log.info("worker_broken error=it failed"), "worker_broken error=it failed"),
        (lambda log: log.info("100 % done"), "100 % done"),
        (lambda log: log.info("%s of a library, %d", "word", 3), "word of a library, 3"),
        (lambda log: log.info({"a": 1}), "{'a': 1}"),
        (lambda log: log.info("x a=%(a)s", {"a": 1}), "x a=1"),
    ],
)
def test_what_is_no_event_of_ours_is_kept_as_it_is(written, call, event):
    assert json.loads(written("json", call))["event"] == event


def test_what_was_raised_is_told(written):
    def call(log):
        try:
            raise ValueError("a fault")
        except ValueError:
            log.exception("task_raised id=%s", "ab")

    assert "ValueError: a fault" in json.loads(written("json", call))["exception"]
    text = written("text", call)
    assert text.splitlines()[0].endswith("task_raised id=ab")
    assert text.splitlines()[-1] == "ValueError: a fault"


def test_who_has_set_logging_up_keeps_it(written):
    written("json", lambda log: None)
    before = logging.getLogger().handlers[:]
    logs.configure("text")
    assert logging.getLogger().handlers == before


def test_configuring_twice_writes_once(written):
    written("json", lambda log: None)
    assert written("text", lambda log: log.info("once")).count("once") == 1
