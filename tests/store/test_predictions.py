"""The transitions, one by one; `test_any_order.py` has them in any order, `test_races.py` at the same time."""

import dataclasses

import pytest
import sqlalchemy as sa
from store_calls import MODEL, OTHER, SUBMISSION, claim, claim_one, claim_reserve, new_key, submit

from hidream.errors import PromptRefused
from hidream.store import history, outbox, predictions, progress
from hidream.store.predictions import TRANSITIONS, Lease
from hidream.store.schema import PREDICTIONS
from hidream.types import Mode, Status, Step
from previews import preview


def test_the_table_of_moves_is_the_diagram():
    arrows = {(source, target) for sources, target in TRANSITIONS.values() for source in sources}
    assert not [arrow for arrow in arrows if arrow[0].final and arrow[1] is not Status.DELETED]
    assert {target for _, target in arrows} | {Status.CREATED} == set(Status)


async def test_the_oldest_is_claimed_first_and_only_once(database, clock):
    key = await new_key(database)
    submitted = []
    for _ in range(5):
        submitted.append((await submit(database, key)).id)
        clock.now += 1
    assert [(await claim_one(database)).id for _ in range(5)] == submitted
    assert await claim(database) == []


async def test_a_worker_claims_only_what_it_serves(database):
    await submit(database, await new_key(database))
    assert await claim(database, models=[OTHER]) == []
    assert await claim(database, models=[MODEL, OTHER])


async def test_a_completed_task_says_how_long_it_took(database, clock):
    key = await new_key(database)
    prediction = await submit(database, key)
    clock.now += 10
    task = await claim_one(database)
    clock.now += 2.5
    assert await predictions.complete(database, task, [True], 2000)
    done = await history.get(database, prediction.id, key.id)
    assert (done.status, done.nsfw, done.version) == (Status.COMPLETED, (True,), "v1-exact")
    assert (done.inference_ms, done.execution_ms) == (2000, 2500)


async def test_the_warnings_of_the_request_stay_before_those_of_the_worker(database):
    key = await new_key(database)
    for ends in (True, False):
        prediction = await submit(database, key, warnings=("seeed is not known",))
        assert prediction.warnings == ("seeed is not known",)
        task = await claim_one(database)
        assert await predictions.requeue(database, task)
        task = await claim_one(database)
        if ends:
            assert await predictions.complete(database, task, [False], 1, ["the prompt is too long"])
        else:
            assert await predictions.fail(database, task, 1405, "no paint")
        expected = ("seeed is not known", "the prompt is too long")
        assert (await history.get(database, prediction.id, key.id)).warnings == (expected if ends else expected[:1])


async def test_who_has_lost_a_task_can_change_nothing(database, clock):
    key = await new_key(database)
    prediction = await submit(database, key)
    stale = await claim_one(database, "w1", lease_s=5)
    clock.now += 6
    assert await predictions.recover(database, workers_max=3) == 1
    fresh = await claim_one(database, "w2")
    before = await history.get(database, prediction.id, key.id)
    assert not await predictions.complete(database, stale, [True], 1)
    assert not await predictions.fail(database, stale, 1405, "too late")
    assert not await predictions.requeue(database, stale)
    assert await predictions.renew(database, "w1", 5) == set()
    assert await history.get(database, prediction.id, key.id) == before
    assert await predictions.complete(database, fresh, [False], 1)
    assert not await predictions.complete(database, fresh, [False], 1)


async def test_a_renewed_lease_is_kept(database, clock):
    await submit(database, await new_key(database))
    task = await claim_one(database, "w1", lease_s=5)
    for _ in range(3):
        clock.now += 4
        assert await predictions.renew(database, "w1", 5) == {Lease(task.id, 1, watched=False)}
        assert await predictions.recover(database, workers_max=3) == 0


async def test_what_is_handed_back_starts_from_its_beginning(database, clock):
    key = await new_key(database)
    prediction = await submit(database, key)
    task = await claim_one(database)
    await predictions.report(database, "w1", {(task.id, task.attempt): Step(3, 4, None)})
    assert (await history.get(database, prediction.id, key.id)).step == 3
    assert await predictions.requeue(database, task)
    waiting = await history.get(database, prediction.id, key.id)
    assert (waiting.status, waiting.step, waiting.started_ms) == (Status.CREATED, 0, None)


@pytest.mark.parametrize("nsfw", [(False, True), (True, False), (True, True), (False, False)])
async def test_one_image_that_is_flagged_flags_the_task(database, nsfw):
    key = await new_key(database)
    prediction = await submit(database, key)
    assert await predictions.complete(database, await claim_one(database), nsfw, 1)
    done = await history.get(database, prediction.id, key.id)
    assert done.nsfw == nsfw
    async with database.read() as connection:
        assert (await connection.execute(sa.select(PREDICTIONS.c.has_nsfw))).scalar_one() is any(nsfw)


async def test_handing_back_costs_no_chance_but_losing_workers_does(database, clock):
    key = await new_key(database)
    prediction = await submit(database, key)
    for _ in range(5):
        assert await predictions.requeue(database, await claim_one(database))
    for _ in range(2):
        await claim(database, "crasher")
        assert await predictions.recover(database, 3, lost_worker_id="crasher") == 1
        waiting = await history.get(database, prediction.id, key.id)
        assert (waiting.status, waiting.started_ms) == (Status.CREATED, None)
    await claim(database, "crasher")
    assert await predictions.recover(database, 3, lost_worker_id="crasher") == 1
    failed = await history.get(database, prediction.id, key.id)
    assert (failed.status, failed.code, failed.attempt) == (Status.FAILED, 1405, 8)
    assert "lost 3 times" in failed.error


async def test_a_claim_says_the_version_of_the_mode_that_was_asked(database):
    key = await new_key(database)
    for mode in Mode:
        await submit(database, key, dataclasses.replace(SUBMISSION, mode=mode))
        assert (await claim_one(database)).version == f"v1-{mode}"


async def test_a_task_of_an_earlier_release_is_exact(database):
    await submit(database, await new_key(database))
    said = {name: value for name, value in SUBMISSION.to_json().items() if name != "mode"}
    async with database.write() as connection:
        await connection.execute(sa.update(PREDICTIONS).values(input=said))
    task = await claim_one(database)
    assert (task.version, task.input) == ("v1-exact", SUBMISSION)


async def test_what_is_suspected_is_claimed_alone_and_not_passed_over(database, clock):
    key = await new_key(database)
    for _ in range(2):
        await submit(database, key)
        clock.now += 1
    requeued = await claim_one(database)
    assert await predictions.requeue(database, requeued, quarantined=True)
    assert await claim(database, has_tasks=True) == []
    (quarantined,) = await claim(database, tasks=2)
    assert (quarantined.id, quarantined.workers_lost, quarantined.attempt) == (requeued.id, 1, 2)
    fine = await claim_one(database, has_tasks=True)
    assert fine.workers_lost == 0
    assert await predictions.recover(database, 3, lost_worker_id="w1") == 2
    assert await claim(database, has_tasks=True) == []
    assert await claim(database)


async def test_there_is_room_for_so_many_tasks_of_so_much_work_but_always_for_one(database, clock):
    key = await new_key(database)
    work = SUBMISSION.work(MODEL)
    for _ in range(7):
        await submit(database, key)
        clock.now += 1
    assert await claim(database, tasks=4, work=work - 1, has_tasks=True) == []
    assert len(await claim(database, tasks=4, work=work - 1)) == 1
    assert len(await claim(database, tasks=4, work=3 * work)) == 3
    assert len(await claim(database, tasks=2)) == 2
    assert len(await claim(database, tasks=8)) == 1


async def test_the_turn_that_is_served_moves_with_the_claims(database, clock):
    busy, late = await new_key(database), await new_key(database)
    for _ in range(10):
        await submit(database, busy)
    for _ in range(3):
        clock.now += 1
        await claim_one(database)
    assert (await submit(database, late)).virtual_start == 2 * SUBMISSION.work(MODEL), (
        "no turns are saved up by waiting"
    )
    order = [(await claim_one(database)).key_id for _ in range(4)]
    assert late.id in order[:2], "nine others do not go first"


HUGE = dataclasses.replace(SUBMISSION, num_images=4, steps=200)
SMALL = dataclasses.replace(SUBMISSION, steps=4)


async def test_a_reserve_is_for_one_small_task_of_each_key_that_has_none(database, clock):
    huge, busy, late = [await new_key(database) for _ in range(3)]
    (first, waits) = [await submit(database, huge, HUGE) for _ in range(2)]
    assert (await claim_one(database)).id == first.id
    small = []
    for key in (huge, busy, busy, late):
        clock.now += 1
        small.append(await submit(database, key, SMALL))
    taken = await claim_reserve(database, tasks=4, without=[huge])
    assert [task.id for task in taken] == [small[1].id, small[3].id]
    assert (taken[0].attempt, taken[0].version, taken[0].status) == (1, "v1-exact", Status.PROCESSING)
    assert await claim_reserve(database, tasks=4, without=[huge, busy, late]) == []
    assert await claim_reserve(database, without=[huge, busy], models=[OTHER]) == []
    assert [task.id for task in await claim(database, tasks=9)] == [small[2].id, waits.id, small[0].id]


async def test_nothing_takes_more_than_half_of_what_is_left_of_a_reserve(database, clock):
    submitted = []
    for steps in (9, 8, 5, 4, 2, 1, 1):
        asked = dataclasses.replace(SUBMISSION, steps=steps)
        submitted.append((await submit(database, await new_key(database), asked)).id)
        clock.now += 1
    work = 16 * SUBMISSION.pixels
    assert [t.id for t in await claim_reserve(database, tasks=9, work=work)] == [submitted[i] for i in (1, 3, 4, 5)]
    assert await claim_reserve(database, tasks=9, work=SUBMISSION.pixels) == []
    assert [t.id for t in await claim_reserve(database, work=work)] == [submitted[2]]


async def test_what_is_passed_over_keeps_its_place(database, clock):
    """The turn that is served does not move by a reserve: nobody who comes later is before who waits."""

    huge, next_one, small = [await new_key(database) for _ in range(3)]
    await submit(database, huge, HUGE)
    await claim_one(database)
    waits = await submit(database, next_one, HUGE)
    clock.now += 1
    for _ in range(5):
        await submit(database, small, SMALL)
        assert await claim(database, work=HUGE.work(MODEL) - 1, has_tasks=True) == []
        assert len(await claim_reserve(database, without=[huge], work=2 * SMALL.work(MODEL))) == 1
    assert (await claim_one(database)).id == waits.id


async def test_what_is_suspected_is_not_taken_into_a_reserve_nor_waited_for(database, clock):
    first, second = await new_key(database), await new_key(database)
    quarantined = await submit(database, first, SMALL)
    assert await predictions.requeue(database, await claim_one(database), quarantined=True)
    clock.now += 1
    fine = await submit(database, second, SMALL)
    assert await claim(database, tasks=8, has_tasks=True) == []
    assert [task.id for task in await claim_reserve(database, tasks=8)] == [fine.id]
    assert await claim(database, tasks=8, reserved=True) == [], "not beside what is in a reserve either"
    assert (await claim_one(database)).id == quarantined.id


async def test_a_key_with_a_hundred_small_tasks_does_not_hold_up_another_ones_single_one(database, clock):
    busy, late = await new_key(database), await new_key(database)
    for _ in range(100):
        await submit(database, busy, SMALL)
    assert {task.key_id for task in await claim(database, tasks=8)} == {busy.id}
    clock.now += 1
    single = await submit(database, late, SMALL)
    (beside,) = await claim_reserve(database, tasks=4, without=[busy])
    assert beside.id == single.id, "at once"
    clock.now += 1
    another = await submit(database, late, SMALL)
    taken = [(await claim_one(database)).id for _ in range(2)]
    assert another.id in taken, "when the next of the eight has ended, or the one after it"


@pytest.mark.parametrize("prompt", ["a \x00 b", "\ud800", "🏠", "\\u0000"])
async def test_no_prompt_keeps_others_from_being_drawn(database, prompt):
    key = await new_key(database)
    for asked in (dataclasses.replace(SUBMISSION, prompt=prompt), SUBMISSION):
        await submit(database, key, asked)
    tasks = await claim(database, tasks=2)
    assert [task.input.prompt for task in tasks] == [prompt, SUBMISSION.prompt]
    for task in tasks:
        assert await predictions.complete(database, task, [False], 1)


async def test_what_a_worker_says_of_its_drawings_is_seen(database, clock):
    key = await new_key(database)
    await submit(database, key)
    task = await claim_one(database)
    mine = (task.id, task.attempt)
    assert await predictions.report(database, "w1", {mine: Step(3, 28)}) == {Lease(*mine, watched=False)}
    await progress.watch(database, [task.id], 10)
    assert await predictions.renew(database, "w1", 15) == {Lease(*mine, watched=True)}
    await predictions.report(database, "w1", {mine: Step(4, 28, b"four")})
    assert await preview(database, task.id) == (4, b"four")
    await predictions.report(database, "w1", {mine: Step(5, 28, b"five")})
    assert await preview(database, task.id) == (5, b"five")
    clock.now += 11
    assert await predictions.report(database, "w1", {mine: Step(6, 28)}) == {Lease(*mine, watched=False)}
    seen = await history.get(database, task.id, key.id)
    assert (seen.step, seen.steps) == (6, 28)
    for worker, attempt in (("w2", 1), ("w1", 2), ("w1", 0)):
        assert await predictions.report(database, worker, {(task.id, attempt): Step(9, 28, b"no")}) == set()
    assert await history.get(database, task.id, key.id) == seen
    await predictions.complete(database, task, [False], 1)
    assert await preview(database, task.id) is None


async def test_a_cancelled_task_is_nobodys(database):
    key, other = await new_key(database), await new_key(database)
    drawn, waiting = await submit(database, key), await submit(database, key, webhook="https://hook")
    task = await claim_one(database)
    assert task.id in (drawn.id, waiting.id)
    assert not await predictions.cancel(database, drawn.id, other.id)
    for prediction in (drawn, waiting):
        assert await predictions.cancel(database, prediction.id, key.id)
        assert not await predictions.cancel(database, prediction.id, key.id)
        assert (await history.get(database, prediction.id, key.id)).status is Status.CANCELLED
    assert await predictions.renew(database, "w1", 15) == set()
    assert not await predictions.complete(database, task, [False], 1)
    assert await claim(database) == []
    assert len(await outbox.list_deliveries(database, waiting.id, key.id)) == 1


async def test_what_is_deleted_is_hidden_from_its_client(database):
    key, other = await new_key(database), await new_key(database)
    waiting, over = await submit(database, key), await submit(database, key)
    await predictions.cancel(database, over.id, key.id)
    both = [waiting.id, over.id]
    assert await predictions.delete(database, both, other.id) == []
    assert len(await predictions.delete(database, both, key.id)) == 1
    assert await predictions.delete(database, both, key.id) == []
    assert await history.get(database, over.id, key.id) is None
    assert await history.get(database, waiting.id, key.id)


async def test_every_error_can_be_written_down(database):
    key = await new_key(database)
    prediction = await submit(database, key)
    assert await predictions.fail(database, await claim_one(database), 1405, "it says “\0” and \ud800")
    assert (await history.get(database, prediction.id, key.id)).error == "it says “?” and ?"
    refused = await submit(database, key, refusal=PromptRefused("\udc00"))
    assert (await history.get(database, refused.id, key.id)).error == refused.error == "?"
