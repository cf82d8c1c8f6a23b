"""Every error that hidream raises on purpose.

    HiDreamError                      code  HTTP
    ├── InvalidInput                  1401   400  a value in the request is not accepted
    │   └── MissingInput              1400   400  a required field is absent or empty
    ├── Unauthorized                     –   401  no key, or one that is not known
    ├── Forbidden                        –   403  the key may not do this
    ├── NotFound                         –   404  no such path, model or prediction (or another key's)
    ├── Conflict                         –   409  an Idempotency-Key with another request, or similar
    ├── BodyTooLarge                     –   413  more bytes than a request may have
    ├── TooMany                          –   429  a limit is reached, of all keys or of this key
    ├── PromptRefused                 1200   200  the safety check does not allow the prompt
    ├── ObjectStoreUnavailable        5003   503  the folder or bucket of files cannot be used, or is full
    ├── ConfigurationError               –     –  a setting, a checkpoint or a file on disk is wrong
    │   ├── CheckpointError              –     –  a model folder that cannot be loaded
    │   └── MissingPackage               –     –  a package of an extra is not installed; an ImportError too
    ├── HubError                         –     –  the Hub cannot be reached, or does not let us download
    ├── NotFinite                     1403   200  an image contains numbers that are not finite
    ├── TaskFailed                    1405   200  a worker could not finish a task
    ├── DatabaseUnavailable           5003   503  the database does not answer, or its disk is full
    │   └── DatabaseGone              5003   503  the database's file was deleted or replaced while in use
    ├── DiskFull                      5003   507  too little of the disk is free to accept anything
    ├── Interrupted                      –     –  an image was aborted before it was finished
    ├── InvalidSignature                 –   401  a webhook was not signed with the secret, or long ago
    ├── ServerError                      –     –  a server answered with an error of its own, or not as an API
    ├── ConnectionFailed                 –     –  a server cannot be reached, or the connection broke
    └── TimedOut                         –     –  something took longer than the caller wanted to wait

`field` is the wrong place in the request, such as "seed" or "loras[0].name", if the error is about one.
`code` is the task error code of the WaveSpeed API (its documentation, page "error codes"), `http_status` the
answer's status; a task that fails is a 200 that carries its code. A message says what happened, the value
that was seen, and what is accepted or what to do.

`hidream.Client` raises the same errors as the library and the server. `status` is then the HTTP status, `request_id`
the id under which the server's log has the request, and `task_id` the task, where there is one.
"""

from __future__ import annotations

from typing import ClassVar


class HiDreamError(Exception):
    """The root: catch it to catch everything that hidream raises on purpose."""

    code: ClassVar[int] = 5000
    http_status: ClassVar[int] = 500
    retry_after_s: int | None = None
    field: str
    status: int | None = None
    request_id: str = ""
    task_id: str = ""

    def __init__(self, message: str = "", *, field: str = "") -> None:
        super().__init__(message)
        self.field = field

    @property
    def parameter(self) -> str:
        """The request's parameter that contains `field`."""
        return self.field.partition(".")[0].partition("[")[0]

    @property
    def message(self) -> str:
        """The text that a user reads."""
        return str(self)


class InvalidInput(HiDreamError):
    """A request says something that is not accepted; the message names field, value and what is accepted."""

    code = 1401
    http_status = 400


class MissingInput(InvalidInput):
    """A required field is absent or empty."""

    code = 1400


class Unauthorized(HiDreamError):
    """The request carries no key, or one that is not known or was revoked."""

    http_status = 401


class Forbidden(HiDreamError):
    """The key is good, but may not do this."""

    http_status = 403


class Conflict(HiDreamError):
    """The request conflicts with the current state: an Idempotency-Key with another request, a second rotation."""

    http_status = 409


class NotFound(HiDreamError):
    """There is no such path, model or prediction, or it belongs to another key."""

    http_status = 404


class BodyTooLarge(HiDreamError):
    """The request has more bytes than the server accepts."""

    http_status = 413


class TooMany(HiDreamError):
    """A limit of the operator is reached, for all keys together or for this one; try again later."""

    http_status = 429

    def __init__(self, message: str, retry_after_s: int) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class PromptRefused(HiDreamError):
    """The safety room does not allow the prompt."""

    code = 1200
    http_status = 200


class ObjectStoreUnavailable(HiDreamError):
    """The folder or bucket of files cannot be reached, is too slow or is full; the same call may succeed later."""

    code = 5003
    http_status = 503


class DiskFull(HiDreamError):
    """Less of the disk is free than the operator requires: nothing new is accepted, existing tasks continue."""

    code = 5003
    http_status = 507
    retry_after_s = 60


class ConfigurationError(HiDreamError):
    """A setting, a checkpoint or a file on disk is wrong; the operator has to change something."""

    exit_status: ClassVar[int] = 78
    """The exit status of a server or worker that must not be restarted in vain (EX_CONFIG of BSD's sysexits.h)."""


class CheckpointError(ConfigurationError):
    """A model folder that cannot be loaded: missing parts, missing or unexpected keys, a wrong shape."""


class HubError(HiDreamError):
    """The Hugging Face Hub cannot be reached, refuses a file, or sends another one than it announced."""


class MissingPackage(ConfigurationError, ImportError):
    """A package that an extra installs is absent; the message has the command that installs it."""


class NotFinite(HiDreamError):
    """An image came out as numbers that are not finite: it would be black, and is not delivered."""

    code = 1403
    http_status = 200


class TaskFailed(HiDreamError):
    """A worker could not finish a task."""

    code = 1405
    http_status = 200


class DatabaseUnavailable(HiDreamError):
    """The database does not answer, or its disk is full."""

    code = 5003
    http_status = 503
    retry_after_s = 2


class DatabaseGone(DatabaseUnavailable):
    """The database's file was deleted or replaced while it was in use: writes would be lost, so the process ends."""

    exit_status: ClassVar[int] = 74
    """The exit status: no supervisor is to restart the process on an empty database (EX_IOERR, sysexits.h)."""


class Interrupted(HiDreamError):
    """An image was aborted before it was finished, because its caller asked for it."""


class InvalidSignature(HiDreamError):
    """A webhook was not signed with the secret, was changed, or was signed too long ago."""

    http_status = 401


class ServerError(HiDreamError):
    """A server answered with an error of its own, or with something that is no answer of the API."""


class ConnectionFailed(HiDreamError):
    """A server cannot be reached, or the connection broke before the response."""


class TimedOut(HiDreamError):
    """Something took longer than the caller wanted to wait; a task goes on, and `task_id` names it."""
