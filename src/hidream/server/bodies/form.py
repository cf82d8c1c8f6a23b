"""The files in a form (multipart/form-data, RFC 7578), written to disk as they are received, and its texts."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping
from typing import Protocol

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser

from hidream.errors import BodyTooLarge, InvalidInput
from hidream.outputs.part import Part
from hidream.parameter import OverlongText

FORM_BYTES = 65_536
"""The total size of a form's other fields and headers."""
HEADER_BYTES = 8192
"""The size of one header of a field; one of them contains the filename."""
HEADERS_MAX = 16
FIELDS_MAX = 100

_BEHIND_BYTES = 80
"""How many bytes of a file the parser may hold back, because they may be the start of a boundary."""

_FIELD = re.compile(r'[; ]name="([^"]*)"')
_FILENAME = re.compile(r'filename="((?:[^"\\]|\\.)*)"')


class Sink(Protocol):
    """What the bytes of a file are appended to, in a thread."""

    @property
    def size_bytes(self) -> int:
        """How many bytes it has."""

    def append(self, data: memoryview) -> None:
        """Append. Raises OSError."""


class FormFile(OverlongText):
    """A file of a form, in a part. A parameter's reader passes it on, as it does a text that is too long for memory."""

    def __init__(self, part: Part) -> None:
        self.part = part
        self._hash = hashlib.sha256()

    def __repr__(self) -> str:
        return f"a file of {self.size_bytes} bytes"

    @property
    def size(self) -> int:
        """The number of bytes, which errors about texts call characters."""
        return self.part.size_bytes

    @property
    def size_bytes(self) -> int:
        """The number of bytes."""
        return self.part.size_bytes

    def append(self, data: memoryview) -> None:
        """Append. Raises OSError."""
        self._hash.update(data)
        self.part.append(data)

    def digest(self) -> dict[str, str]:
        """Return what stands for the file in the digest of its request."""
        return {"sha256": self._hash.hexdigest()}


def passed_over(field: str) -> None:
    """Let a file that belongs nowhere pass: its bytes count as the form's other fields."""


class Form:
    """Parses one form: files go to the sinks of their fields, other fields become `texts`.

    The first file of a sink fills it, and its name is put into `filenames`, by its field. `other_file` is called with
    the field of any other file, and may raise. `max_bytes` is the limit of each file, `others_bytes` that of all the
    rest together.
    """

    def __init__(
        self,
        boundary: bytes,
        sinks: Mapping[str, Sink],
        max_bytes: int,
        others_bytes: int = FORM_BYTES,
        other_file: Callable[[str], None] = passed_over,
    ) -> None:
        self.filenames: dict[str, str] = {}
        self.texts: list[tuple[str, bytes]] = []
        self._sinks, self._max_bytes, self._others_bytes, self._other_file = sinks, max_bytes, others_bytes, other_file
        self._filled: list[Sink] = []
        self._read = self._delimiters = 0
        self._delimiter = b"\r\n--" + boundary
        self._header, self._disposition = bytearray(), ""
        self._field = ""
        self._sink: Sink | None = None  # of the file that is being read
        self._text: bytearray | None = None  # the text that is being read
        self._parser = MultipartParser(
            boundary,
            {
                "on_part_begin": self._on_part_begin,
                "on_header_begin": self._header.clear,
                "on_header_field": self._on_header,
                "on_header_value": self._on_header_value,
                "on_header_end": self._on_header_end,
                "on_headers_finished": self._on_headers_finished,
                "on_part_data": self._on_part_data,
                "on_part_end": self._on_part_end,
            },
            max_header_count=HEADERS_MAX,
            max_header_size=HEADER_BYTES,
        )

    def feed(self, piece: bytes) -> None:
        """Parse the next piece; called in a thread. Raises BodyTooLarge, InvalidInput, OSError."""
        self._read += len(piece)
        self._delimiters += piece.count(self._delimiter)
        if self._delimiters > FIELDS_MAX:  # or text that looks like a delimiter, which is slow to parse
            raise InvalidInput(f"the form has more than {FIELDS_MAX} fields; accepted: one, with the file")
        try:
            self._parser.write(piece)
        except FormParserError as error:
            raise InvalidInput(f"the form cannot be read ({error}); accepted: multipart/form-data") from error
        if self._read - sum(sink.size_bytes for sink in self._filled) > self._others_bytes + _BEHIND_BYTES:
            raise BodyTooLarge(f"the form has more than {self._others_bytes} bytes beside its file; accepted: less")

    def end(self) -> None:
        """Finish the form. Raises InvalidInput if it ends within a file or a text."""
        if self._sink is not None or self._text is not None:
            raise InvalidInput(f"the form ends within the field {self._field!r:.100}; accepted: a whole form")

    def _on_part_begin(self) -> None:
        self._disposition = ""

    def _on_header(self, data: bytes, start: int, end: int) -> None:
        self._header += data[start:end]

    def _on_header_value(self, data: bytes, start: int, end: int) -> None:
        if b":" not in self._header:
            self._header += b":"
        self._header += data[start:end]

    def _on_header_end(self) -> None:
        name, _, value = self._header.decode("utf-8", "replace").partition(":")
        if name.strip().lower() == "content-disposition" and not self._disposition:
            self._disposition = f" {value}"

    def _on_headers_finished(self) -> None:
        name, filename = _FIELD.search(self._disposition), _FILENAME.search(self._disposition)
        self._field = name[1] if name else ""
        if not name:
            return
        if filename is None:
            self._text = bytearray()
            return
        sink = self._sinks.get(self._field)
        if sink is None or sink in self._filled:
            self._other_file(self._field)
            return
        self._sink = sink
        self._filled.append(sink)
        self.filenames[self._field] = filename[1]

    def _on_part_data(self, data: bytes, start: int, end: int) -> None:
        if self._text is not None:
            self._text += data[start:end]
        if self._sink is None:
            return
        if self._sink.size_bytes + end - start > self._max_bytes:
            raise BodyTooLarge(f"{self._field} is larger than {self._max_bytes} bytes, the most that is accepted")
        self._sink.append(memoryview(data)[start:end])

    def _on_part_end(self) -> None:
        if self._text is not None:
            self.texts.append((self._field, bytes(self._text)))
        self._sink = self._text = None
