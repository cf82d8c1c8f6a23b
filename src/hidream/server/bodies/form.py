"""The file in a form (multipart/form-data, RFC 7578), written to disk as it is received."""

from __future__ import annotations

import re

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser

from hidream.errors import BodyTooLarge, InvalidInput
from hidream.outputs.part import Part

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


class FileOfForm:
    """Parses one form. The first file in `field` goes to `part`; `filename` is set once its headers were read."""

    def __init__(self, boundary: bytes, field: str, part: Part, max_bytes: int) -> None:
        self.filename: str | None = None
        self._field, self._part, self._max_bytes = field, part, max_bytes
        self._read = self._delimiters = 0
        self._delimiter = b"\r\n--" + boundary
        self._header, self._disposition = bytearray(), ""
        self._inside = self._complete = False
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
        if self._read - self._part.size_bytes > FORM_BYTES + _BEHIND_BYTES:
            raise BodyTooLarge(f"the form has more than {FORM_BYTES} bytes beside its file; accepted: less")

    def end(self) -> None:
        """Finish the form. Raises InvalidInput if the file is incomplete."""
        if self.filename is not None and not self._complete:
            raise InvalidInput(f"the form ends within the field {self._field!r}; accepted: a whole form")

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
        self._inside = bool(self.filename is None and name and filename and name[1] == self._field)
        if self._inside and filename:
            self.filename = filename[1]

    def _on_part_data(self, data: bytes, start: int, end: int) -> None:
        if not self._inside:
            return
        if self._part.size_bytes + end - start > self._max_bytes:
            raise BodyTooLarge(f"{self._field} is larger than {self._max_bytes} bytes, the most that is accepted")
        self._part.append(memoryview(data)[start:end])

    def _on_part_end(self) -> None:
        self._complete = self._complete or self._inside
        self._inside = False
