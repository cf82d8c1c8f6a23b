"""The `gguf` package's reader, without the long lists: those of a tokenizer alone would take it half a minute."""

from __future__ import annotations

import struct
from typing import Any

import numpy as np
from gguf import GGUFReader, GGUFValueType

LONG = 1024
"""Longer lists are passed over; the longest that is read has one number for each layer or dimension."""


class Reader(GGUFReader):
    """Opens a file as the package does; a long list among the metadata becomes a field without data."""

    def _get_field_parts(
        self, orig_offs: int, raw_type: int
    ) -> tuple[int, list[np.ndarray[Any, Any]], list[int], list[GGUFValueType]]:
        if raw_type != GGUFValueType.ARRAY:
            return super()._get_field_parts(orig_offs, raw_type)
        kind = GGUFValueType(self._get(orig_offs, np.uint32)[0])
        length = int(self._get(orig_offs + 4, np.uint64)[0])
        if length <= LONG or kind is GGUFValueType.ARRAY:
            return super()._get_field_parts(orig_offs, raw_type)
        start = orig_offs + 12
        end = self._behind_texts(start, length) if kind is GGUFValueType.STRING else self._behind(start, length, kind)
        if end > len(self.data):
            raise ValueError("the file ends within a list")
        return end - orig_offs, [], [], [GGUFValueType.ARRAY]

    def _behind(self, start: int, length: int, kind: GGUFValueType) -> int:
        return start + length * np.dtype(self.gguf_scalar_to_np[kind]).itemsize

    def _behind_texts(self, start: int, length: int) -> int:
        """Where a list of texts ends, each of which is its length in bytes and as many bytes."""
        count, data, at = struct.Struct(">Q" if self.byte_order == "S" else "<Q"), self.data.data, start
        for _ in range(length):
            if at + 8 > len(data):
                raise ValueError("the file ends within a list")
            at += 8 + count.unpack_from(data, at)[0]
        return at
