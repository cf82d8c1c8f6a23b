"""Submission: turn a request's JSON object into a task in the queue.

This file reads the parameters and the webhook, checks the prompt, collects the warnings and stores the input images. It
does not know the format of the response: `routes/tasks` and `routes/openai` do.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from typing import Any

from starlette.requests import Request

from hidream.errors import PromptRefused
from hidream.outbound import targets
from hidream.request import ImageRequest
from hidream.safety import prompt as prompt_check
from hidream.server import parameters, unused
from hidream.server.bodies.long_text import LongText
from hidream.server.parameters import Api, Sources
from hidream.server.responses import base_url
from hidream.server.service import Service
from hidream.store.admission import IdempotencyRecord, NewTask
from hidream.store.keys import Key
from hidream.store.prediction import Prediction
from hidream.types import SIDE_MIN_PX, Size


async def submit(
    service: Service, request: Request, model: str, api: Api, key: Key, body: dict[str, Any]
) -> tuple[NewTask, Prediction, dict[str, str]]:
    """Read a request and enqueue its task. Return the new task, its prediction, and headers for the response.

    Raises InvalidInput, TooMany.
    """
    task, sources = _read(service, request, model, api, key, body)
    prediction, headers = await _enqueue(service, task, sources)
    return task, prediction, headers


def _read(
    service: Service, request: Request, model: str, api: Api, key: Key, body: dict[str, Any]
) -> tuple[NewTask, Sources]:
    """Read a request except for its images, of which only the sources are read. Raises InvalidInput."""
    submission = parameters.parse(body, api, service.models[model])
    webhook = parameters.webhook(body, request.query_params)
    if webhook:
        submission = parameters.with_webhook(submission, body)
    sources = parameters.sources(body, api)
    idempotency_key = parameters.idempotency_key(request.headers.get("idempotency-key"))
    idempotency = idempotency_record(idempotency_key, [api.name, model, webhook, body])
    if webhook:
        targets.check(webhook, service.allowlist)
    url = base_url(request, service.settings.server.public_url)
    warnings = unused.of_submission(body, request.query_params, api, model, service.models[model], submission)
    return NewTask(key, model, submission, url, webhook, idempotency, refusal_of(submission), warnings), sources


async def _enqueue(service: Service, task: NewTask, sources: Sources) -> tuple[Prediction, dict[str, str]]:
    """Enqueue a task with its images. They are not fetched if the task exists already, or if it will be refused."""
    image = sources.image
    if image is None or task.refusal is not None:
        prediction = await service.enqueuer.submit(task)
        return prediction, replayed(task, prediction)
    if existing := await service.enqueuer.existing(task):
        return existing, replayed(task, existing)
    complete = task

    async def store_images() -> NewTask:
        nonlocal complete
        complete = await _with_images(service, task, image, sources)
        return complete

    prediction = await service.enqueuer.submit_with(_smallest(task, sources), store_images)
    return prediction, replayed(complete, prediction)


def _smallest(task: NewTask, sources: Sources) -> NewTask:
    """Return the smallest task that this can become: its size may depend on an image that is not fetched yet."""
    size = Size(SIDE_MIN_PX, SIDE_MIN_PX) if sources.sizes else task.submission.size
    return replace(task, submission=replace(task.submission, size=size))


async def _with_images(service: Service, task: NewTask, source: str | LongText, sources: Sources) -> NewTask:
    """Store a request's images, and return the task with their names. Raises InvalidInput."""
    image = await service.input_images.take(task.key, "image", source)
    mask = None if sources.mask is None else await service.input_images.take(task.key, "mask", sources.mask)
    submission = replace(task.submission, image=image, mask=mask)
    if sources.sizes:
        sides = await service.input_images.oriented_size("image", image, task.key.id)
        submission = replace(submission, size=Size.near(*sides))
    return replace(task, submission=submission)


def refusal_of(submission: ImageRequest) -> PromptRefused | None:
    """Return the refusal of a request's prompt; None if the prompt is accepted."""
    try:
        prompt_check.check(submission.prompt_text, submission.negative_prompt, enabled=submission.enable_safety_checker)
    except PromptRefused as refusal:
        return refusal
    return None


def idempotency_record(key: str | None, content: object) -> IdempotencyRecord | None:
    """Make the record of an Idempotency-Key. A repeated request is the same if its `content` is equal.

    The digest is taken of JSON with sorted names, so neither their order nor whitespace makes a different request.
    """
    if key is None:
        return None
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"), default=LongText.digest)
    return IdempotencyRecord(key, hashlib.sha256(canonical.encode("ascii")).hexdigest())


def replayed(task: NewTask, prediction: Prediction) -> dict[str, str]:
    """Return the header that marks a response about a task which an earlier request created; else no header."""
    return {} if prediction.input is task.submission else {"Idempotent-Replayed": "true"}
