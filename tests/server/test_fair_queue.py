"""Which request begins next: one of each client per round of the loop; disconnected clients are not read."""

import asyncio

import pytest

from hidream.server.edge.fair_queue import VALID_KEYS_MAX, FairQueue, authorization_of


async def rounds(scenario):
    """Run `scenario(turns, begin)`; returns, for each round, the names of those that began in it."""
    fair_queue, begun = FairQueue(), [[]]

    def begin(name, there=True):
        def do():
            if there:
                begun[-1].append(name)
            return there

        return do

    scenario(fair_queue, begin)
    while fair_queue._queues:
        begun.append([])
        await asyncio.sleep(0)
    return begun


async def test_in_a_round_one_of_each_client_begins():
    def scenario(fair_queue, begin):
        assert fair_queue.start_or_enqueue("a", begin("a0"))
        assert [fair_queue.start_or_enqueue("a", begin(f"a{i}")) for i in range(1, 4)] == [False] * 3
        assert fair_queue.start_or_enqueue("b", begin("b0"))
        assert not fair_queue.start_or_enqueue("b", begin("b1"))

    assert await rounds(scenario) == [["a0", "b0"], ["a1", "b1"], ["a2"], ["a3"]]


async def test_who_has_left_takes_nobodys_turn():
    def scenario(fair_queue, begin):
        fair_queue.start_or_enqueue("a", begin("a0"))
        for i in range(1500):
            fair_queue.start_or_enqueue("a", begin(f"gone{i}", there=False))
        fair_queue.start_or_enqueue("a", begin("a1"))

    assert await rounds(scenario) == [["a0"], ["a1"]]


async def test_a_client_begins_at_once_again_in_the_next_round():
    fair_queue = FairQueue()
    for _ in range(3):
        assert fair_queue.start_or_enqueue("a", lambda: True)
        assert not fair_queue.start_or_enqueue("a", lambda: True)
        await asyncio.sleep(0)
        assert not fair_queue.start_or_enqueue("a", lambda: True), "it has had its turn in this round"
        while fair_queue._queues or fair_queue._started:
            await asyncio.sleep(0)


async def test_a_beginning_that_fails_stops_nobody_elses():
    def fails():
        raise ValueError

    errors, fair_queue, begun = [], FairQueue(), []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: errors.append(context["exception"]))
    for client in "ab":
        fair_queue.start_or_enqueue(client, lambda: True)
    fair_queue.start_or_enqueue("a", fails)
    fair_queue.start_or_enqueue("b", lambda: begun.append("b") or True)
    while fair_queue._queues:
        await asyncio.sleep(0)
    assert begun == ["b"]
    assert [type(error) for error in errors] == [ValueError]


def test_only_a_key_that_was_found_valid_has_turns_of_its_own():
    fair_queue, key = FairQueue(), authorization_of(b"GET / HTTP/1.1\r\nAUTHORIZATION:  Bearer k \r\n\r\n")
    assert key is not None
    assert fair_queue.client("127.0.0.1", None) == fair_queue.client("127.0.0.1", key) == "127.0.0.1"
    fair_queue.add_valid_key(key, "its id")
    assert fair_queue.client("127.0.0.1", key) == "its id"
    for other in range(VALID_KEYS_MAX):
        fair_queue.add_valid_key(other, str(other))
        assert fair_queue.client("127.0.0.1", key) == "its id", "a key in use stays"
    assert len(fair_queue._valid) == VALID_KEYS_MAX


def test_a_key_has_the_same_turns_however_it_is_written():
    fair_queue = FairQueue()
    for written in (b"Bearer k", b"bearer k", b"Bearer  k"):
        fair_queue.add_valid_key(hash(written), "its id")
    assert {fair_queue.client("127.0.0.1", hash(written)) for written in (b"Bearer k", b"bearer k")} == {"its id"}


@pytest.mark.parametrize(
    "head",
    [b"", b"GET /\r\nauthorization:Bearer k", b"GET / HTTP/1.1\r\nX-Authorization: a\r\n\r\n", b"authorization: a\r\n"],
    ids=["nothing", "not all of it", "another header", "a request line"],
)
def test_what_names_no_key(head):
    assert authorization_of(head) is None or head.endswith(b"k")
