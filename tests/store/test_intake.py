"""Taking in: limits are exact, turns fair, and what is sent twice is one task."""

import asyncio
import dataclasses
import re

import pytest
import sqlalchemy as sa
from asking import SUBMISSION, claim, claim_one, new_key, submit

from hidream.errors import Conflict, PromptRefused, TooMany
from hidream.store import history, predictions, retention
from hidream.store.intake import DAY_MS, Asked, Intake, Repeat
from hidream.store.schema import PREDICTIONS
from hidream.types import Size, Status

REPEAT = Repeat("once", "hash")


def test_what_was_submitted_is_what_is_read(in_database):
    async def scenario(database):
        key = await new_key(database)
        prediction = await submit(database, key, base_url="https://here", webhook="https://hook")
        assert await history.get(database, prediction.id, key.id) == prediction
        assert (prediction.input, prediction.base_url, prediction.webhook) == (
            SUBMISSION,
            "https://here",
            "https://hook",
        )
        assert (prediction.status, prediction.code, prediction.attempt) == (Status.CREATED, 0, 0)
        assert re.fullmatch("[0-9a-f]{32}", prediction.id)
        assert re.fullmatch(r"[A-Za-z0-9_-]{43}\.png", prediction.output_name)

    in_database(scenario)


def test_the_queue_has_an_end(in_database):
    async def scenario(database):
        key = await new_key(database)
        for _ in range(2):
            await submit(database, key, queue_max=2)
        with pytest.raises(TooMany, match="2 tasks wait") as caught:
            await submit(database, key, queue_max=2)
        assert caught.value.retry_after_s > 0
        task = await claim_one(database)
        with pytest.raises(TooMany):
            await submit(database, key, queue_max=2)
        await predictions.complete(database, task, [False], 1)
        await submit(database, key, queue_max=2)

    in_database(scenario)


def test_a_refused_prompt_has_failed_and_is_never_claimed(in_database):
    async def scenario(database):
        key = await new_key(database)
        refused = await submit(database, key, refusal=PromptRefused("because"), queue_max=0)
        assert (refused.status, refused.code, refused.error) == (Status.FAILED, 1200, "because")
        assert refused.execution_ms == 0
        assert await history.get(database, refused.id, key.id) == refused
        assert await claim(database) == []

    in_database(scenario)


def test_a_key_may_make_so_many_requests_a_minute(in_database, clock):
    async def scenario(database):
        key = await new_key(database, requests_per_minute=3)
        await submit(database, key)
        clock.now += 20
        for _ in range(2):
            await submit(database, key, refusal=PromptRefused("no"))
        with pytest.raises(TooMany, match="3 requests a minute") as caught:
            await submit(database, key)
        assert caught.value.retry_after_s == 40
        clock.now += 40
        await submit(database, key)
        with pytest.raises(TooMany) as caught:
            await submit(database, key)
        assert caught.value.retry_after_s == 20
        await submit(database, await new_key(database))

    in_database(scenario)


def test_what_waits_is_told_right_within_one_transaction(in_database):
    async def scenario(database):
        key, intake = await new_key(database, requests_per_minute=2), Intake(database, 1000)
        asked = [intake.submit(Asked(key, "m", SUBMISSION)) for _ in range(5)]
        answers = await asyncio.gather(*asked, return_exceptions=True)
        refused = [answer for answer in answers if isinstance(answer, TooMany)]
        assert [answer.retry_after_s for answer in refused] == [60] * 3

    in_database(scenario)


def test_a_key_may_have_so_many_tasks_at_once(in_database):
    async def scenario(database):
        key = await new_key(database, tasks_max=2)
        for _ in range(2):
            await submit(database, key)
        with pytest.raises(TooMany, match="2 tasks of this key are unfinished"):
            await submit(database, key)
        await predictions.complete(database, await claim_one(database), [False], 1)
        await submit(database, key)

    in_database(scenario)


def test_a_key_may_draw_so_many_pixels_a_day_even_if_it_deletes_them(in_database, clock):
    async def scenario(database):
        small = dataclasses.replace(SUBMISSION, size=Size(512, 512))
        key = await new_key(database, pixels_per_day=3 * 512 * 512)
        made = [await submit(database, key, dataclasses.replace(small, num_images=2))]
        clock.now += 3600
        made.append(await submit(database, key, small))
        for prediction in made:
            await predictions.cancel(database, prediction.id, key.id)
        await predictions.delete(database, [prediction.id for prediction in made], key.id)
        await retention.forget(database, await retention.remains(database, 0))
        with pytest.raises(TooMany, match="pixels a day") as caught:
            await submit(database, key, small)
        assert caught.value.retry_after_s == 23 * 3600
        clock.now += 23 * 3600
        await submit(database, key, small)

    in_database(scenario)


def test_a_request_that_is_sent_again_is_the_same_task(in_database, clock):
    async def scenario(database):
        key, other = await new_key(database, requests_per_minute=1), await new_key(database)
        first = await submit(database, key, repeat=REPEAT)
        assert await submit(database, key, repeat=REPEAT, queue_max=0) == first
        with pytest.raises(Conflict, match="'once' was sent with another request"):
            await submit(database, key, repeat=Repeat("once", "other"))
        clock.now += 1
        assert (await submit(database, other, repeat=REPEAT)).id != first.id
        task = await claim_one(database)
        assert (await submit(database, key, repeat=REPEAT)).status is Status.PROCESSING
        assert task.id == first.id
        clock.now += DAY_MS / 1000 - 2
        assert (await submit(database, key, repeat=REPEAT)).id == first.id
        clock.now += 1
        assert (await submit(database, key, repeat=REPEAT)).id != first.id

    in_database(scenario)


def test_what_cannot_be_written_spoils_nothing_else(in_database):
    async def scenario(database):
        key, intake = await new_key(database), Intake(database, 1000)
        asked = [Asked(key, "m", SUBMISSION, webhook="\ud800" if i == 3 else "https://hook") for i in range(8)]
        answers = await asyncio.gather(*map(intake.submit, asked), return_exceptions=True)
        assert [isinstance(answer, Exception) for answer in answers] == [i == 3 for i in range(8)]
        async with database.read() as connection:
            assert (await connection.execute(sa.select(sa.func.count()).select_from(PREDICTIONS))).scalar() == 7

    in_database(scenario)


def test_who_goes_away_while_it_is_written_holds_up_nobody(in_database):
    async def scenario(database):
        key, intake = await new_key(database), Intake(database, 1000)
        asked = [asyncio.create_task(intake.submit(Asked(key, "m", SUBMISSION))) for _ in range(4)]
        await asyncio.sleep(0)
        asked[1].cancel()
        answers = await asyncio.gather(*asked, return_exceptions=True)
        assert [isinstance(answer, asyncio.CancelledError) for answer in answers] == [False, True, False, False]
        assert await intake.submit(Asked(key, "m", SUBMISSION))

    in_database(scenario)


def test_one_key_with_many_tasks_does_not_hold_up_anothers_first(in_database, clock):
    async def scenario(database):
        busy, late, intake = await new_key(database), await new_key(database), Intake(database, 1000)
        await asyncio.gather(*(intake.submit(Asked(busy, "m", SUBMISSION)) for _ in range(300)))
        clock.now += 1
        first = await intake.submit(Asked(late, "m", SUBMISSION))
        assert (await history.line(database, first.model)).place(first).before <= 1

    in_database(scenario)
