"""`Client`: a hidream server from Python, for programs with threads; `async_client` is the same for event loops.

client = hidream.Client()
client("a fox in the snow", seed=7).save("fox.png")
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import closing
from datetime import datetime
from types import TracebackType
from typing import Any, Self, TypeVar, Unpack

import httpx

from hidream.client import calls
from hidream.client import events as following
from hidream.client.connection import connect, model_name
from hidream.client.effects import Steps
from hidream.client.events import Event
from hidream.client.input_files import file_of
from hidream.client.prediction import Prediction, Result
from hidream.client.retries import Retry
from hidream.client.runners import LIMITS, Runner
from hidream.keywords import OF_CLIENT, ImageSource, Options

T = TypeVar("T")


class Client:
    """A client of a hidream server, or of the hosted WaveSpeed API. Threads may share it.

    base_url: the address of the server; default: HIDREAM_BASE_URL, or http://127.0.0.1:8000.
    api_key: default: HIDREAM_API_KEY; for https://api.wavespeed.ai WAVESPEED_API_KEY.
    model: "dev", "full", "fast" or a model's name, for calls that name none.
    timeout: the seconds that a call may take in all, waiting and retries included; None is no limit.
    retry: how often a request is sent, and the pauses between.
    http_client: an httpx client of your own, for proxies or certificates; you close it.

    All errors are those of `hidream.errors`, with `status`, `request_id` and `task_id`.
    """

    def __init__(
        self,
        base_url: str | None = None,
        api_key: str | None = None,
        *,
        model: str = "dev",
        timeout: float | None = 600.0,
        retry: Retry = Retry(),  # noqa: B008 - it is frozen
        http_client: httpx.Client | None = None,
    ) -> None:
        self._connection = connect(base_url, api_key, model, timeout, retry)
        self._owned = http_client is None
        self._runner = Runner(http_client or httpx.Client(limits=LIMITS))

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._connection.base_url!r}, model={self._connection.model!r})"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        if self._owned:
            self._runner.http.close()

    @OF_CLIENT.documented
    def generate(
        self, prompt: str, *, model: str | None = None, timeout: float | None = None, **options: Unpack[Options]
    ) -> Result:
        """Generate images and wait for them. A task that is not finished in time goes on; see TimedOut.task_id."""
        submission = calls.submission(self._connection, prompt, model, None, None, options)
        return self._runner.run(calls.generate(self._connection, submission, self._connection.deadline(timeout)))

    @OF_CLIENT.documented
    def __call__(
        self, prompt: str, *, model: str | None = None, timeout: float | None = None, **options: Unpack[Options]
    ) -> Result:
        """Generate images: the same as `generate`."""
        return self.generate(prompt, model=model, timeout=timeout, **options)

    @OF_CLIENT.documented
    def submit(
        self,
        prompt: str,
        *,
        model: str | None = None,
        webhook: str | None = None,
        idempotency_key: str | None = None,
        timeout: float | None = None,
        **options: Unpack[Options],
    ) -> Task:
        """Submit a task without waiting for it.

        It is submitted once, whatever breaks on the way. With an `idempotency_key` of your own, the same call gives the
        same task for 24 hours, even from another process.
        """
        submission = calls.submission(self._connection, prompt, model, webhook, idempotency_key, options)
        return self._task(calls.submit(self._connection, submission, self._connection.deadline(timeout)))

    def get(self, task_id: str) -> Task:
        """Read a task. Raises NotFound."""
        return self._task(calls.get(self._connection, task_id, self._connection.deadline(None)))

    def list(
        self,
        *,
        status: str | None = None,
        model: str | None = None,
        created_after: datetime | str | None = None,
        created_before: datetime | str | None = None,
        include_inputs: bool = False,
    ) -> Iterator[Task]:
        """All tasks of the key that meet the conditions, newest first; pages are requested as they are needed."""
        conditions = {
            "status": status,
            "model": None if model is None else model_name(model),
            "created_after": created_after,
            "created_before": created_before,
            "include_inputs": include_inputs or None,
        }
        found = calls.listing(self._connection, conditions, None)
        with closing(self._runner.iterate(found)) as predictions:
            for prediction in predictions:
                yield Task(self, prediction)

    def delete(self, ids: str | Iterable[str]) -> int:
        """Delete finished tasks with their images, and cancel others; return how many there were."""
        return self._runner.run(calls.delete(self._connection, ids, self._connection.deadline(None)))

    def upload(self, image: ImageSource) -> str:
        """Upload an image, and return its URL for `image` or `mask`: a path, a file's bytes, an image or an array."""
        file = file_of("image", image)
        return self._runner.run(calls.upload(self._connection, file, self._connection.deadline(None)))

    def models(self) -> Any:  # noqa: ANN401 - the server's objects
        """The models that the server serves, as objects with `model_id` and the schema of their requests."""
        return self._runner.run(calls.models(self._connection, self._connection.deadline(None)))

    def balance(self) -> float:
        """The balance of the account."""
        return self._account("/balance", "balance", float)

    def webhook_secret(self) -> str:
        """The secret of this key for `hidream.webhooks.verify`."""
        return self._account("/webhook/secret", "secret", str)

    def _account(self, path: str, name: str, kind: type[T]) -> T:
        deadline = self._connection.deadline(None)
        return self._runner.run(calls.account(self._connection, path, name, kind, deadline))

    def _task(self, steps: Steps[Prediction]) -> Task:
        return Task(self, self._runner.run(steps))


class Task:
    """A task on the server. `prediction` is what the server said last; `refresh` and `wait` renew it."""

    def __init__(self, client: Client, prediction: Prediction) -> None:
        self._connection, self._runner, self.prediction = client._connection, client._runner, prediction

    def __repr__(self) -> str:
        return f"Task({self.id!r}, status={self.status!r})"

    @property
    def id(self) -> str:
        """Its id."""
        return self.prediction.id

    @property
    def status(self) -> str:
        """Its state, as the server said last."""
        return self.prediction.status

    def refresh(self) -> Self:
        """Read its state."""
        return self._renewed(calls.get(self._connection, self.id, self._connection.deadline(None)))

    def wait(self, timeout: float | None = None) -> Self:
        """Wait until it has ended, in whatever state. Raises TimedOut; the task goes on."""
        return self._renewed(calls.wait(self._connection, self.id, self._connection.deadline(timeout)))

    def result(self, timeout: float | None = None) -> Result:
        """Wait for its images, and download them. Raises what went wrong with the task, or TimedOut."""
        known, deadline = self.prediction, self._connection.deadline(timeout)
        result = self._runner.run(calls.result(self._connection, self.id, deadline, known))
        self.prediction = result.prediction
        return result

    def events(self, timeout: float | None = None) -> Iterator[Event]:
        """Follow it to its end, with progress and previews; broken connections are made again.

        A server without events is polled; then only the states come.
        """
        deadline = self._connection.deadline(timeout)
        with closing(self._runner.iterate(following.events(self._connection, self.id, deadline))) as events:
            for event in events:
                self.prediction = event.prediction
                yield event

    def cancel(self) -> Self:
        """Cancel it if it is not finished; `status` is then what became of it. A finished task stays as it is.

        Raises ServerError on a server that cannot do that, such as the hosted API; see `delete`.
        """
        return self._renewed(calls.cancel(self._connection, self.id, self._connection.deadline(None)))

    def delete(self) -> int:
        """Delete it with its images if it is finished, else cancel it."""
        return self._runner.run(calls.delete(self._connection, self.id, self._connection.deadline(None)))

    def _renewed(self, steps: Steps[Prediction]) -> Self:
        self.prediction = self._runner.run(steps)
        return self
