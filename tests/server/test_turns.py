"""Whose request begins next: one of each client in a round of the loop, and nothing is read of who has left."""

import asyncio

import pytest

from hidream.server.turns import KNOWN_MAX, Turns, authorization_of


def rounds(scenario):
    """Run `scenario(turns, begin)`; returns, for each round, the names of those that began in it."""

    async def main():
        turns, begun = Turns(), [[]]

        def begin(name, there=True):
            def do():
                if there:
                    begun[-1].append(name)
                return there

            return do

        scenario(turns, begin)
        while turns._lines:
            begun.append([])
            await asyncio.sleep(0)
        return begun

    return asyncio.run(main())


def test_in_a_round_one_of_each_client_begins():
    def scenario(turns, begin):
        assert turns.take("a", begin("a0"))
        assert [turns.take("a", begin(f"a{i}")) for i in range(1, 4)] == [False] * 3
        assert turns.take("b", begin("b0"))
        assert not turns.take("b", begin("b1"))

    assert rounds(scenario) == [["a0", "b0"], ["a1", "b1"], ["a2"], ["a3"]]


def test_who_has_left_takes_nobodys_turn():
    def scenario(turns, begin):
        turns.take("a", begin("a0"))
        for i in range(1500):
            turns.take("a", begin(f"gone{i}", there=False))
        turns.take("a", begin("a1"))

    assert rounds(scenario) == [["a0"], ["a1"]]


def test_a_client_begins_at_once_again_in_the_next_round():
    async def main():
        turns = Turns()
        for _ in range(3):
            assert turns.take("a", lambda: True)
            assert not turns.take("a", lambda: True)
            await asyncio.sleep(0)
            assert not turns.take("a", lambda: True), "it has had its turn in this round"
            while turns._lines or turns._begun:
                await asyncio.sleep(0)

    asyncio.run(main())


def test_a_beginning_that_fails_stops_nobody_elses():
    def fails():
        raise ValueError

    async def main():
        errors, turns, begun = [], Turns(), []
        asyncio.get_running_loop().set_exception_handler(lambda _, context: errors.append(context["exception"]))
        for client in "ab":
            turns.take(client, lambda: True)
        turns.take("a", fails)
        turns.take("b", lambda: begun.append("b") or True)
        while turns._lines:
            await asyncio.sleep(0)
        assert begun == ["b"]
        assert [type(error) for error in errors] == [ValueError]

    asyncio.run(main())


def test_only_a_key_that_was_found_valid_has_turns_of_its_own():
    turns, key = Turns(), authorization_of(b"GET / HTTP/1.1\r\nAUTHORIZATION:  Bearer k \r\n\r\n")
    assert key is not None
    assert turns.client("127.0.0.1", None) == turns.client("127.0.0.1", key) == "127.0.0.1"
    turns.know(key)
    assert turns.client("127.0.0.1", key) == key
    for invented in range(KNOWN_MAX):
        turns.know(invented)
    assert len(turns._known) <= KNOWN_MAX


@pytest.mark.parametrize(
    "head",
    [b"", b"GET /\r\nauthorization:Bearer k", b"GET / HTTP/1.1\r\nX-Authorization: a\r\n\r\n", b"authorization: a\r\n"],
    ids=["nothing", "not all of it", "another header", "a request line"],
)
def test_what_names_no_key(head):
    assert authorization_of(head) is None or head.endswith(b"k")
