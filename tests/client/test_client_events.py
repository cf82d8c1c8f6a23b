"""Events: the parser, streams that break anywhere, and servers that have none."""

import base64
import json

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from world import DONE, TASK, World, in_turn, says

from hidream.client import events as following
from hidream.client.events import EVENT_MAX_BYTES, Parser
from hidream.errors import ConnectionFailed, NotFound, ServerError, TimedOut, TooMany, Unauthorized

PREVIEW = {"step": 2, "image": "data:image/jpeg;base64," + base64.b64encode(b"jpeg").decode()}
RUNNING = TASK | {"status": "processing"}
TOLD = [
    ("status", "0-created-0-0", TASK),
    ("status", "1-processing-0-0", RUNNING),
    ("progress", "1-processing-1-0", {"step": 1, "steps": 2}),
    ("preview", "1-processing-1-2", PREVIEW),
    ("progress", "1-processing-2-2", {"step": 2, "steps": 2}),
    ("status", "1-completed-2-2", DONE | {"error": "\u2028 is no line break"}),
]


def wire(events):
    blocks = [f"event: {name}\nid: {id_}\ndata: {json.dumps(data)}\n\n" for name, id_, data in events]
    return "".join(["retry: 1000\n\n", *(f":\n\n{block}" for block in blocks)]).encode()


def shown(event):
    return event.status, event.step, event.steps, event.preview_file


SHOWN = [
    ("created", 0, 0, None),
    ("processing", 0, 0, None),
    ("processing", 1, 2, None),
    ("processing", 1, 2, b"jpeg"),
    ("processing", 2, 2, None),
    ("completed", 2, 2, None),
]


def follow(stream, current=lambda: TASK, **options):
    def answer(request):
        return stream(request) if request.url.endswith("/events") else says(current())

    world = World(answer)
    connection = world.connection(**options)
    try:
        world.run(following.events(connection, TASK["id"], connection.deadline(None)))
    finally:
        follow.world = world
    return [shown(event) for event in world.emitted]


def whole(request):
    """What the server does: it begins after Last-Event-ID."""
    last = request.headers.get("Last-Event-ID", b"").decode()
    begin = [id_ for _, id_, _ in TOLD].index(last) + 1 if last else 0
    return wire(TOLD[begin:])


def test_a_stream_tells_all():
    assert follow(lambda request: [whole(request)]) == SHOWN


@given(st.lists(st.integers(1, 400), min_size=1, max_size=20))
def test_wherever_a_stream_breaks_nothing_is_lost_and_nothing_comes_twice(lengths):
    left = list(lengths)

    def stream(request):
        data = whole(request)
        return [data[: left.pop(0)], httpx.ReadError("reset")] if left else [data]

    assert follow(stream, attempts=30) == SHOWN


@given(st.data())
def test_pieces_of_any_length_are_the_same(data):
    wired, pieces = wire(TOLD), []
    while wired:
        length = data.draw(st.integers(1, 50))
        pieces.append(wired[:length])
        wired = wired[length:]
    assert follow(lambda _: pieces) == SHOWN


def test_lines_may_end_as_on_windows_even_in_two_pieces():
    wired = wire(TOLD).replace(b"\n", b"\r\n")
    assert follow(lambda _: [bytes([byte]) for byte in wired]) == SHOWN


def test_a_task_that_another_worker_begins_again_begins_at_its_first_step():
    again = [*TOLD[:3], ("status", "2-created-0-0", TASK), ("status", "2-processing-0-0", RUNNING), TOLD[-1]]
    assert follow(lambda _: [wire(again)]) == [*SHOWN[:3], *SHOWN[:2], ("completed", 0, 0, None)]


@pytest.mark.parametrize("status", [404, 405, 501])
def test_without_a_stream_the_states_are_polled(status):
    states = iter([TASK, TASK, RUNNING, RUNNING, DONE])
    assert [each[0] for each in follow(lambda _: says("no such path", status), lambda: next(states))] == [
        "created",
        "processing",
        "completed",
    ]
    assert follow.world.slept == [2, 2, 2]


def test_a_page_in_place_of_a_stream_is_none():
    states = iter([TASK, DONE])
    assert follow(lambda _: says({}), lambda: next(states))[-1][0] == "completed"


def test_a_stream_that_ends_with_204_has_told_the_end():
    states = iter([TASK, DONE])
    assert follow(lambda _: type(says(1))(204, {}, b""), lambda: next(states))[-1][0] == "completed"


def test_a_finished_task_needs_no_stream():
    assert follow(lambda _: 1 / 0, lambda: DONE) == [("completed", 0, 0, None)]


def test_a_server_that_is_gone_is_not_followed_for_ever():
    with pytest.raises(ConnectionFailed, match="the connection to http://server failed: refused"):
        follow(lambda _: httpx.ConnectError("refused"))
    assert follow.world.slept == [0.5, 1, 2]
    with pytest.raises(ConnectionFailed, match="ended before the task"):
        follow(lambda _: [b":\n\n"])


def test_what_cannot_get_better_ends_at_once():
    with pytest.raises(Unauthorized):
        follow(lambda _: says("revoked", 401))
    world = World(in_turn(says(TASK), says("there is no prediction", 404)))
    connection = world.connection()
    with pytest.raises(NotFound):
        world.run(following.events(connection, TASK["id"], connection.deadline(None)))


def test_limits_of_streams_are_waited_for():
    answers = iter([says("too many", 429, retry_after="7")])
    assert follow(lambda request: next(answers, [whole(request)])) == SHOWN
    assert follow.world.slept == [7]


def test_the_time_of_a_call_is_kept():
    with pytest.raises(TimedOut) as raised:
        follow(lambda _: [wire(TOLD[:2])], timeout_s=0.4)
    assert raised.value.task_id == TASK["id"]


def test_a_silent_stream_does_not_go_on_beyond_the_time():
    """The stream has a heartbeat every ten seconds; the last one is opened with what is left of the time."""
    world = World(lambda request: streams.pop(0) if request.url.endswith("/events") else says(TASK))

    def passes(seconds, then):
        world.now_s += seconds
        return then

    beat = lambda: passes(10, b":\n\n")  # noqa: E731
    streams = [[beat, beat, beat], [lambda: passes(10, httpx.ReadTimeout("silence"))]]
    connection = world.connection()
    with pytest.raises(TimedOut):
        world.run(following.events(connection, TASK["id"], connection.deadline(30)))
    assert (world.now_s, world.slept, streams) == (30, [], [])


def test_nobody_waits_for_hours_for_a_stream():
    world = World(in_turn(says(TASK), says("later", 429, retry_after="999999999")))
    with pytest.raises(TooMany, match="later"):
        world.run(following.events(world.connection(timeout_s=None), TASK["id"], world.connection().deadline(None)))
    assert world.slept == []


@pytest.mark.parametrize("data", ["", "{", "[]", '{"step": "x"}', '{"step": 1}', '{"step": 1e999, "steps": 2}'])
def test_events_that_cannot_be_read_are_an_error_of_the_server(data):
    with pytest.raises((ServerError, ConnectionFailed)):
        follow(lambda _: [f"event: progress\ndata: {data}\n\n".encode()])


def test_unknown_events_change_nothing():
    assert follow(lambda _: [b'event: news\ndata: {"a": 1}\n\n' + wire(TOLD)]) == SHOWN


def test_an_event_without_end_is_refused():
    parser = Parser()
    with pytest.raises(ServerError, match="more than 16777216 bytes"):
        list(parser.feed(b"data: " + b"x" * EVENT_MAX_BYTES))
