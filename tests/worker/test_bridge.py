"""The bridge: one thread, outcomes are returned, cancellation does not wait, and no error is lost."""

import asyncio
import threading
import time

import pytest
from painter import STEPS, Painter

from hidream.errors import Interrupted, InvalidInput, TaskFailed
from hidream.request import ImageRequest
from hidream.types import Size
from hidream.worker.bridge import Bridge, StepCallbacks


async def test_what_the_function_returns_or_raises_comes_back():
    bridge, never = Bridge(), asyncio.Event()
    assert await bridge.run(lambda: 7, never) == 7
    with pytest.raises(ZeroDivisionError):
        await bridge.run(lambda: 1 // 0, never)
    assert not bridge.busy


async def test_everything_runs_on_the_same_other_thread():
    bridge, never = Bridge(), asyncio.Event()
    threads = await asyncio.gather(*(bridge.run(threading.get_ident, never) for _ in range(5)))
    assert len(set(threads)) == 1
    assert threads[0] != threading.get_ident()


async def test_giving_up_does_not_wait_for_the_thread(until):
    bridge, aborted, released = Bridge(), asyncio.Event(), threading.Event()
    running = asyncio.create_task(bridge.run(released.wait, aborted))
    await asyncio.sleep(0)
    aborted.set()
    with pytest.raises(Interrupted):
        await running
    assert bridge.busy
    released.set()
    await until(lambda: not bridge.busy)


async def test_an_error_after_giving_up_disturbs_nobody(until, caplog):
    bridge, aborted, released = Bridge(), asyncio.Event(), threading.Event()

    def fail_later():
        released.wait()
        raise ValueError("too late")

    running = asyncio.create_task(bridge.run(fail_later, aborted))
    await asyncio.sleep(0)
    aborted.set()
    with pytest.raises(Interrupted):
        await running
    released.set()
    await until(lambda: not bridge.busy)
    assert not caplog.records


# --- drawing ---------------------------------------------------------------------------------------------------


def request(seed=7):
    return ImageRequest("a house", Size(64, 48), seed)


@pytest.fixture
def start_bridge(painter):
    """Start a bridge; beside it comes `draw(seed)`, which draws in a task of the loop. The painter's model is "dev"."""

    def start_bridge(clock=time.perf_counter):
        bridge, never = Bridge(clock), asyncio.Event()
        bridge.set_engines({"dev": painter})

        def draw(seed, aborted=never, listener=None, model="dev"):
            return asyncio.create_task(bridge.generate(model, str(seed), request(seed), aborted, listener))

        return bridge, draw

    return start_bridge


async def within_a_step(painter, until, draw, *further):
    """Draw task 1 of Dev, and further ones, (seed, model) each, that come while the thread stands in its step."""
    painter.go_on.clear()
    painter.painting.clear()
    tasks = [draw(1)]
    await until(painter.painting.is_set)
    tasks += [draw(seed, model=model) for seed, model in further]
    await asyncio.sleep(0)  # they are told to the thread
    painter.go_on.set()
    return await asyncio.gather(*tasks)


async def test_images_are_drawn_together_on_one_other_thread(start_bridge, painter, until):
    bridge, draw = start_bridge()
    images = await within_a_step(painter, until, draw, (2, "dev"), (3, "dev"))
    assert [image.pixels.max() for image in images] == [1, 2, 3]
    await until(lambda: not bridge.busy)
    everybody = frozenset({1, 2, 3})
    assert painter.together == [{1}, *[everybody] * (STEPS - 1), {2, 3}], "they join between two steps"
    assert len(painter.threads) == 1
    assert threading.get_ident() not in painter.threads


async def test_progress_is_told(start_bridge):
    _, draw = start_bridge()
    said = []
    await draw(1, listener=StepCallbacks(said.append, lambda done: done == 2))
    assert [(each.done, each.of) for each in said] == [(i, STEPS) for i in range(1, STEPS + 1)]
    assert [each.preview is not None for each in said] == [False, True, False, False]


async def test_whoever_is_given_up_leaves_between_two_steps(start_bridge, painter, until):
    bridge, draw = start_bridge()
    painter.go_on.clear()
    aborted = asyncio.Event()
    tasks = [draw(1, aborted)]
    await until(painter.painting.is_set)
    tasks.append(draw(2))
    await asyncio.sleep(0)
    aborted.set()
    with pytest.raises(Interrupted):
        await tasks[0]
    assert not painter.go_on.is_set(), "it did not wait for the step"
    assert bridge.busy
    painter.go_on.set()
    assert (await tasks[1]).pixels.max() == 2
    await until(lambda: not bridge.busy)
    assert painter.aborted == ["1"]
    assert painter.together[1:] == [{2}] * STEPS


async def test_a_task_that_is_cancelled_leaves_too(start_bridge, painter, until):
    bridge, draw = start_bridge()
    painter.go_on.clear()
    task = draw(1)
    await until(painter.painting.is_set)
    task.cancel()
    await asyncio.wait([task])
    painter.go_on.set()
    await until(lambda: not bridge.busy)
    assert painter.aborted == ["1"]


async def test_errors_of_single_requests_are_theirs(start_bridge, painter, caplog):
    painter.refused[1] = InvalidInput("no such LoRA")
    painter.bad[2] = ZeroDivisionError("by zero")

    bridge, draw = start_bridge()
    answers = await asyncio.gather(draw(1), draw(2), draw(3), return_exceptions=True)
    assert answers[:2] == [painter.refused[1], painter.bad[2]]
    assert answers[2].pixels.max() == 3
    assert not bridge.broken
    assert not caplog.records


async def test_an_engine_that_fails_ends_all_it_has_and_goes_on(start_bridge, painter, caplog, until):
    painter.fatal[2] = RuntimeError("no memory")

    bridge, draw = start_bridge()
    painter.go_on.clear()
    tasks = [draw(1)]
    await until(painter.painting.is_set)
    tasks += [draw(2), draw(3)]
    await asyncio.sleep(0)
    painter.go_on.set()
    answers = await asyncio.gather(*tasks, return_exceptions=True)
    said = "the worker failed to generate this task; its log says why, under {}"
    assert [str(each) for each in answers] == [said.format(seed) for seed in (1, 2, 3)]
    assert {type(each) for each in answers} == {TaskFailed}
    assert (await draw(4)).pixels.max() == 4
    assert not bridge.broken

    await asyncio.gather(draw(2), return_exceptions=True)
    assert not bridge.broken, "it has worked in between"
    await asyncio.gather(draw(2), return_exceptions=True)
    assert bridge.broken
    assert not painter.here
    await until(lambda: not bridge.busy)
    assert [record.message for record in caplog.records] == [
        f"engine_failed model=dev requests={ids}" for ids in ("1,2,3", "2", "2")
    ]
    assert "no memory" in caplog.text


class Work:
    """A clock that only steps move: each engine's takes so many seconds."""

    now = 0.0

    def __call__(self):
        return self.now

    def timed(self, name, painter, seconds, order):
        """Have each of a painter's steps take so long, and written down."""
        painter.go_on.set()
        step = painter.step

        def timed_step():
            order.append(name)
            self.now += seconds
            return step()

        painter.step = timed_step


async def test_engines_take_steps_in_turn(start_bridge, painter, until):
    clock, other, order = Work(), Painter(), []
    clock.timed("dev", painter, 1.0, order)
    clock.timed("full", other, 1.0, order)

    bridge, draw = start_bridge(clock)
    bridge.set_engines({"dev": painter, "fast": Painter(), "full": other})
    images = await within_a_step(painter, until, draw, (2, "dev"), (3, "full"))
    assert [image.pixels.max() for image in images] == [1, 2, 3]
    await until(lambda: not bridge.busy)
    await bridge.close()
    assert order == ["dev", "full"] * STEPS + ["dev"]
    assert (painter.rests, other.rests) == (STEPS, STEPS), "whoever does not draw lets the device go"
    assert painter.threads == other.threads
    assert painter.closed
    assert other.closed


async def test_an_engine_of_small_steps_has_as_much_time_as_one_of_huge_ones(start_bridge, painter, until):
    """Dev's steps take three times as long as Full's: Full's image is done after one more of Dev's."""
    clock, other, order = Work(), Painter(), []
    clock.timed("dev", painter, 3.0, order)
    clock.timed("full", other, 1.0, order)

    bridge, draw = start_bridge(clock)
    bridge.set_engines({"dev": painter, "full": other})
    await within_a_step(painter, until, draw, (2, "full"))
    assert order == ["dev", "full", "full", "full", "dev", "full", "dev", "dev"]


async def test_an_engine_that_rested_has_no_time_saved_up(start_bridge, painter, until):
    """Otherwise Full, idle while Dev drew for 12 s, would have the thread for the next 12 s."""
    clock, other, order = Work(), Painter(), []
    clock.timed("dev", painter, 3.0, order)
    clock.timed("full", other, 3.0, order)

    bridge, draw = start_bridge(clock)
    bridge.set_engines({"dev": painter, "full": other})
    await draw(2)
    await within_a_step(painter, until, draw, (3, "full"))
    assert order == ["dev"] * STEPS + ["dev", "full"] * STEPS


async def test_an_engine_that_fails_does_so_alone(start_bridge, painter, caplog):
    other = Painter(fatal={2: RuntimeError("no memory")})
    other.go_on.set()

    bridge, draw = start_bridge()
    bridge.set_engines({"dev": painter, "full": other})
    for _ in range(2):
        answers = await asyncio.gather(draw(1), draw(2, model="full"), return_exceptions=True)
        assert answers[0].pixels.max() == 1
        assert isinstance(answers[1], TaskFailed)
    assert bridge.broken, "that the other one works is no excuse"
    assert "engine_failed model=full" in caplog.text


async def test_an_engine_that_cannot_forget_is_broken(start_bridge, painter, until):
    def abort(id_):
        raise RuntimeError("stuck")

    painter.abort = abort

    bridge, draw = start_bridge()
    painter.go_on.clear()
    aborted = asyncio.Event()
    task = draw(1, aborted)
    await until(painter.painting.is_set)
    aborted.set()
    with pytest.raises(Interrupted):
        await task
    painter.go_on.set()
    await until(lambda: bridge.broken and not bridge.busy)


async def test_closing_gives_up_what_the_engine_has_and_ends_the_thread(start_bridge, painter):
    bridge, draw = start_bridge()
    await draw(1)
    await bridge.close()
    assert painter.closed
    assert not bridge.busy
    with pytest.raises(RuntimeError, match="after shutdown"):
        await bridge.run(threading.get_ident, asyncio.Event())
