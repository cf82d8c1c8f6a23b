"""From a request's JSON object to a task in the queue: parameters, webhook, prompt check, warnings, images.

It does not know how the answer looks: `routes/tasks` and `routes/openai` do.
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
from hidream.server.answers import base_url
from hidream.server.bodies.long_text import LongText
from hidream.server.parameters import Api, Sources
from hidream.server.service import Service
from hidream.store.admission import IdempotencyRecord, NewTask
from hidream.store.keys import Key
from hidream.store.prediction import Prediction
from hidream.types import SIDE_MIN_PX, Size


async def submit(
    service: Service, request: Request, model: str, api: Api, key: Key, body: dict[str, Any]
) -> tuple[NewTask, Prediction, dict[str, str]]:
    """Read a request and enqueue its task; give both, and headers of the answer. Raises InvalidInput, TooMany."""
    asked, sources = _read(service, request, model, api, key, body)
    prediction, headers = await _taken_in(service, asked, sources)
    return asked, prediction, headers


def _read(
    service: Service, request: Request, model: str, api: Api, key: Key, body: dict[str, Any]
) -> tuple[NewTask, Sources]:
    """Read all of a request but its images, and where those are. Raises InvalidInput."""
    submission = parameters.parse(body, api, service.models[model])
    webhook = parameters.webhook(body, request.query_params)
    if webhook:
        submission = parameters.with_webhook(submission, body)
    sources = parameters.sources(body, api)
    idempotency_key = parameters.idempotency_key(request.headers.get("idempotency-key"))
    idempotency = repeat_of(idempotency_key, [api.name, model, webhook, body])
    if webhook:
        targets.check(webhook, service.allowlist)
    url = base_url(request, service.settings.server.public_url)
    warnings = unused.of_submission(body, request.query_params, api, model, service.models[model], submission)
    return NewTask(key, model, submission, url, webhook, idempotency, refusal_of(submission), warnings), sources


async def _taken_in(service: Service, asked: NewTask, sources: Sources) -> tuple[Prediction, dict[str, str]]:
    """Take a task in with the images that it brings, which are not fetched for one that was, or will be refused."""
    image = sources.image
    if image is None or asked.refusal is not None:
        prediction = await service.enqueuer.submit(asked)
        return prediction, replayed(asked, prediction)
    if made := await service.enqueuer.existing(asked):
        return made, replayed(asked, made)
    whole = asked

    async def bring() -> NewTask:
        nonlocal whole
        whole = await _with_images(service, asked, image, sources)
        return whole

    prediction = await service.enqueuer.submit_with(_at_least(asked, sources), bring)
    return prediction, replayed(whole, prediction)


def _at_least(asked: NewTask, sources: Sources) -> NewTask:
    """Give the least that a task can be, of which the size may follow from an image that is not here yet."""
    size = Size(SIDE_MIN_PX, SIDE_MIN_PX) if sources.sizes else asked.submission.size
    return replace(asked, submission=replace(asked.submission, size=size))


async def _with_images(service: Service, asked: NewTask, source: str | LongText, sources: Sources) -> NewTask:
    """Take the images in that a request brings. Raises InvalidInput."""
    image = await service.input_images.take(asked.key, "image", source)
    mask = None if sources.mask is None else await service.input_images.take(asked.key, "mask", sources.mask)
    submission = replace(asked.submission, image=image, mask=mask)
    if sources.sizes:
        sides = await service.input_images.shown_size("image", image, asked.key.id)
        submission = replace(submission, size=Size.near(*sides))
    return replace(asked, submission=submission)


def refusal_of(submission: ImageRequest) -> PromptRefused | None:
    """Ask the safety room whether a prompt is refused."""
    try:
        prompt_check.check(submission.prompt_text, submission.negative_prompt, enabled=submission.enable_safety_checker)
    except PromptRefused as refusal:
        return refusal
    return None


def repeat_of(key: str | None, said: object) -> IdempotencyRecord | None:
    """Tell by which Idempotency-Key a request may be repeated; it is the same request if all that was `said` is.

    The digest is of JSON with sorted names, so that neither their order nor blanks make another request.
    """
    if key is None:
        return None
    canonical = json.dumps(said, sort_keys=True, separators=(",", ":"), default=LongText.digest)
    return IdempotencyRecord(key, hashlib.sha256(canonical.encode("ascii")).hexdigest())


def replayed(asked: NewTask, prediction: Prediction) -> dict[str, str]:
    """Say by a header that the answer is of a task that an earlier request has made."""
    return {} if prediction.input is asked.submission else {"Idempotent-Replayed": "true"}
