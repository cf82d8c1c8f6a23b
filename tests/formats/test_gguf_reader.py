"""Long lists are skipped, short ones are read, and what follows is found."""

from __future__ import annotations

import time

import gguf
import numpy as np
import pytest

from hidream.errors import CheckpointError
from hidream.formats.gguf_file import HIDREAM_KEY, open_gguf
from hidream.formats.gguf_reader import LONG


def write(path, length, endianess=gguf.GGUFEndian.LITTLE):
    writer = gguf.GGUFWriter(path, "hidream", endianess=endianess)
    writer.add_array("short", [3, 1, 2])
    writer.add_token_list([f"token {i}" * (i % 3) for i in range(length)])
    writer.add_token_scores([0.5] * length)
    writer.add_token_types([1] * length)
    writer.add_array("flags", [True] * length)
    writer.add_string("behind", "it")
    writer.add_tensor(HIDREAM_KEY, np.arange(8, dtype=np.float32).reshape(2, 4))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.parametrize("length", [LONG, LONG + 1])
def test_what_is_read_and_what_is_passed_over(tmp_path, length):
    opened = open_gguf(write(tmp_path / "a.gguf", length))
    assert opened.metadata["short"] == [3, 1, 2]
    assert opened.metadata["behind"] == "it"
    assert ("tokenizer.ggml.tokens" in opened.metadata) is (length <= LONG)
    assert opened.tensors[HIDREAM_KEY].tolist() == [[0, 1, 2, 3], [4, 5, 6, 7]]


@pytest.mark.slow
def test_a_tokenizer_takes_no_time(tmp_path):
    path = write(tmp_path / "a.gguf", 300_000)
    start = time.process_time()
    open_gguf(path)
    assert time.process_time() - start < 3  # the package's own reader: half a minute


def test_a_file_that_ends_within_a_long_list_is_torn(tmp_path):
    path = write(tmp_path / "a.gguf", 5000)
    whole = path.read_bytes()
    for length in range(300, len(whole) - 100, 5011):
        path.write_bytes(whole[:length])
        with pytest.raises(CheckpointError, match="is damaged, or not a GGUF file"):
            open_gguf(path)


def test_long_lists_in_the_other_byte_order(tmp_path):
    with pytest.raises(CheckpointError, match="byte order"):
        open_gguf(write(tmp_path / "a.gguf", 5000, gguf.GGUFEndian.BIG))
