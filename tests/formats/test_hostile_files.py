"""Malicious files: refused in one line, at a cost in proportion to their size.

Each attack that once held a worker up stands here by itself; `hostile_files.py` tampers with files of every kind.
"""

from __future__ import annotations

import json
import os
import re
import struct
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from hidream.errors import CheckpointError
from hidream.formats.adapters import adapter, adapter_spec
from hidream.formats.detect import config_of, read
from hidream.formats.gguf_file import HIDREAM_KEY, open_gguf
from hidream.formats.json_object import BRACKETS_MAX, object_of
from hidream.formats.lora_file import read_lora
from hidream.formats.peft_settings import PATTERNS_MAX_CHARS, PeftSettings
from hidream.formats.regular_file import open_regular, read_regular
from hidream.formats.safetensors_file import HEADER_MAX_BYTES, TENSORS_MAX, header_of

UINT8, UINT32, STRING, ARRAY, UINT64 = 0, 4, 8, 9, 10
SECONDS = 2.0
"""Of computing for one file; each takes some milliseconds."""


def text(value: str | bytes, length: int | None = None) -> bytes:
    value = value.encode() if isinstance(value, str) else value
    return struct.pack("<Q", len(value) if length is None else length) + value


def entry(key: str, kind: int, value: bytes) -> bytes:
    return text(key) + struct.pack("<I", kind) + value


def array(kind: int, length: int, values: bytes = b"") -> bytes:
    return struct.pack("<IQ", kind, length) + values


def tensor(name: str = HIDREAM_KEY, shape=(4, 2), kind: int = 0, offset: int = 0, dims: int | None = None) -> bytes:
    sizes = b"".join(struct.pack("<Q", size) for size in shape)
    return (
        text(name) + struct.pack("<I", len(shape) if dims is None else dims) + sizes + struct.pack("<IQ", kind, offset)
    )


PLAIN = tensor()


def gguf_file(*entries: bytes, tensors=(PLAIN,), counts=None, data: int = 64) -> bytes:
    stated = struct.pack("<QQ", *(counts or (len(tensors), len(entries) + 1)))
    named = entry("general.architecture", STRING, text("hidream"))
    head = b"GGUF" + struct.pack("<I", 3) + stated + named + b"".join((*entries, *tensors))
    return head + bytes(-len(head) % 32) + bytes(data)


GGUF = {
    "list": (gguf_file(entry("a", ARRAY, array(UINT8, 2**40))), "the file ends within its header"),
    "texts": (gguf_file(entry("a", ARRAY, array(STRING, 2**40))), "a has 1,099,511,627,776 texts"),
    "few texts": (gguf_file(entry("a", ARRAY, array(STRING, 1025, text("", 2**63))), data=9000), "the file ends"),
    "lists": (gguf_file(entry("a", ARRAY, array(ARRAY, 1) * 5000)), "a is a list of lists; accepted: "),
    "text": (gguf_file(entry("a", STRING, text("a", 2**64 - 1))), "a has 18,446,744,073,709,551,615 bytes"),
    "key": (gguf_file(text("k" * 2000)), "a key has 2,000 bytes; accepted: at most 1,024"),
    "line": (gguf_file(entry("a\nb", UINT8, b"\0")), r"a key is not printable: 'a\\nb'"),
    "twice": (gguf_file(entry("a", UINT8, b"\0"), entry("a", UINT8, b"\0")), "has the key 'a' twice"),
    "no text": (gguf_file(entry("a", STRING, text(b"\xff"))), "a is not UTF-8 text"),
    "type": (gguf_file(entry("a", 99, b"\0")), "a has the type 99, which is not known"),
    "values": (gguf_file(counts=(1, 2**40)), "has 1,099,511,627,776 metadata; accepted: at most 65,536"),
    "tensors": (gguf_file(counts=(2**40, 1)), "has 1,099,511,627,776 tensors; accepted: at most 65,536"),
    "dims": (gguf_file(tensors=[tensor(dims=2**31)]), "2,147,483,648 dimensions; accepted: at most 4"),
    "product": (gguf_file(tensors=[tensor(shape=(2**32, 2**32))]), "the file ends within caption"),
    "empty": (gguf_file(tensors=[tensor(shape=(4, 0))]), r"\[0, 4\] is empty"),
    "blocks": (gguf_file(tensors=[tensor(shape=(33, 2), kind=8)]), "accepted for Q8_0: whole blocks of 32"),
    "offset": (gguf_file(tensors=[tensor(offset=2**63)]), "the file ends within caption"),
    "unaligned": (gguf_file(tensors=[tensor(offset=4)]), "is at 4; accepted: multiples of 32"),
    "shared": (gguf_file(tensors=[tensor(), tensor("b")]), "each behind the one before"),
    "names": (gguf_file(tensors=[tensor(), tensor(offset=32)]), "two tensors of one name"),
    "alignment 0": (gguf_file(entry("general.alignment", UINT32, bytes(4))), "alignment is 0; accepted"),
    "alignment 48": (gguf_file(entry("general.alignment", UINT32, b"\x30\0\0\0")), "alignment is 48"),
    "alignment": (gguf_file(entry("general.alignment", UINT64, struct.pack("<Q", 2**62))), "the file ends"),
}  # fmt: skip


@pytest.mark.parametrize("attack", GGUF)
def test_a_gguf_header_is_held_against_its_file(tmp_path, attack):
    content, reason = GGUF[attack]
    (tmp_path / "a.gguf").write_bytes(content)
    start = time.process_time()
    with pytest.raises(
        CheckpointError, match=rf"a.gguf is damaged, or not a GGUF file of version 2 or 3: .*{reason}"
    ) as r:
        open_gguf(tmp_path / "a.gguf")
    assert r.value.message.isprintable()
    assert time.process_time() - start < SECONDS


def test_a_plain_gguf_file_of_these_builders_is_read(tmp_path):
    aligned = entry("general.alignment", UINT32, struct.pack("<I", 64))
    (tmp_path / "a.gguf").write_bytes(gguf_file(aligned, entry("list", ARRAY, array(UINT8, 2, b"\1\2")), data=128))
    assert open_gguf(tmp_path / "a.gguf").metadata["list"] == [1, 2]


@pytest.mark.parametrize(
    "pattern", ["(a+)+$", "(.*)*x", "(_|.)*b", "((" * 40 + "q*)*" + ")*)" * 39 + ")", ".*.*.*.*.*.*.*.*z"]
)
def test_patterns_take_linear_time(pattern):
    start = time.process_time()
    settings = PeftSettings({"lora_alpha": 3, "alpha_pattern": {pattern: 5, "last": 7}})
    assert settings.alpha("a" * 300 + ".y") == 3
    assert settings.alpha("first.last") in (5, 7)
    assert time.process_time() - start < SECONDS


@pytest.mark.parametrize(
    ("patterns", "why"),
    [
        ({"(a{1000}){1000}": 1}, "repeats a counted number of times"),
        ({"(?=a)": 1}, "is not understood"),
        ({r"(a)\1": 1}, "is not understood"),
        ({"a)|(b": 1}, "is not understood"),
        ({"\ud800": 1}, "is not understood"),
        ({"a" * (PATTERNS_MAX_CHARS + 1): 1}, "more than 131,072 characters"),
        ({"." * n: 1 for n in range(500)}, "takes too much memory"),
        ([1], "it is not an object"),
        ("x", "it is not an object"),
    ],
)
def test_patterns_that_are_not_matched_are_refused(patterns, why):
    with pytest.raises(
        CheckpointError, match=f"PEFT's configuration of the LoRA has the alpha_pattern .*{why}; accepted"
    ):
        PeftSettings({"alpha_pattern": patterns}).alpha("a")


@pytest.mark.parametrize(
    "name", ["x.to_q", "to_q", "a.blocks.7.ff", "a.blocks.17.ff", "blocks_1_ff", "to_qq", "x.to_k.y"]
)
def test_patterns_mean_what_they_mean_to_peft(name):
    patterns = {r"blocks\.\d\.ff": 1, "to_[qk]": 2, "^to_q": 3, "blocks.1.ff": 4, "(to_k|x).y": 5, "a.*": 6}
    theirs = next((v for p, v in patterns.items() if re.match(rf"(.*\.)?({p})$", name)), 9)
    assert PeftSettings({"alpha_pattern": patterns, "alpha": 9}).alpha(name) == theirs


def test_a_pattern_for_each_layer_takes_no_time():
    names = [
        f"single_stream_blocks.{i}.block.ff_i.experts.{j}.w{k}" for i in range(48) for j in range(7) for k in range(3)
    ]
    start = time.process_time()
    settings = PeftSettings({"rank_pattern": {name: i + 1 for i, name in enumerate(names)}, "r": 4})
    assert [settings.rank(name) for name in names] == [*range(1, len(names) + 1)]
    assert time.process_time() - start < 10  # Python's re: a minute and a half


A = torch.ones
BOMBS = {
    "LoKr": {"w1_a": A(60_000, 1), "w1_b": A(1, 60_000), "w2": A(1, 1)},
    "LoKr's second side": {"w1": A(1, 1), "w2_a": A(60_000, 1), "w2_b": A(1, 60_000)},
    "Tucker": {"w1": A(1, 1), "w2_a": A(1, 60_000), "t2": A(1, 1), "w2_b": A(1, 60_000)},
    "whole sides": {"w1": A(1, 60_000), "w2": A(60_000, 1)},
    "LoHa": {f"hada_w{i}_{side}": A(*shape) for i in "12" for side, shape in (("a", (60_000, 1)), ("b", (1, 60_000)))},
    "low rank": {"up": A(60_000, 1), "down": A(1, 60_000)},
    "rank": {"up": A(2, 60_000), "down": A(60_000, 2)},
    "LoHa's core": {"hada_w1_a": A(1, 99_999), "hada_t1": A(1, 99_999), "hada_w1_b": A(99_999, 1),
                    "hada_w2_a": A(1, 99_999), "hada_t2": A(1, 1), "hada_w2_b": A(1, 1)},
}  # fmt: skip


@pytest.mark.parametrize("bomb", BOMBS)
def test_a_product_larger_than_its_layer_is_not_made(bomb):
    parts = BOMBS[bomb]
    try:
        spec = adapter_spec("x", {name: part.shape for name, part in parts.items()})
    except CheckpointError:
        with pytest.raises(CheckpointError, match=r"is made for a layer of shape \[60000, 60000\]|has the rank"):
            adapter("x", "x", parts, PeftSettings())
    else:  # no larger than any layer, which the model's own have to be compared with
        assert bomb == "LoHa's core"
        assert spec.shape == (99_999, 1)


def test_of_layers_that_are_not_wanted_nothing_is_read(tmp_path):
    tensors = {
        f"{name}.lora_{side}.weight": A(*shape) for name in "ab" for side, shape in (("A", (1, 8)), ("B", (8, 1)))
    }
    save_file(tensors, tmp_path / "a.safetensors")
    seen = {}

    def wants(key, spec):
        seen[key] = (spec.shape, spec.values)
        return key == "a"

    file = read_lora(tmp_path / "a.safetensors", wants)
    assert (list(file.adapters), file.others) == (["a"], ("b",))
    assert seen == {"a": ((8, 8), 16), "b": ((8, 8), 16)}


JSON = {
    "deep": '{"a": ' + "[" * 40 + "]" * 40 + "}",
    "deeper": '{"a": ' + "[" * 200_000 + "]" * 200_000 + "}",
    "many": '{"a": [' + "[]," * BRACKETS_MAX + "0]}",
    "digits": '{"a": ' + "9" * 100_000 + "}",
    "twice": '{"a": 1, "a": 2}',
    "no number": '{"a": NaN}',
    "surrogate": '{"a": "\ud800"}',
}


@pytest.mark.parametrize("attack", JSON)
def test_json_is_bounded(attack):
    start = time.process_time()
    with pytest.raises(ValueError, match=r"JSON|UTF-8") as raised:
        object_of(JSON[attack].encode("utf-8", "surrogatepass"))
    assert str(raised.value).isprintable()
    assert time.process_time() - start < SECONDS


def safetensors_file(header: object, data: bytes = b"") -> bytes:
    stated = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(stated).to_bytes(8, "little") + stated + data


def stated(dtype="F32", shape=(2, 2), offsets=(0, 16)):
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


SAFETENSORS = {
    "overlap": ({"a": stated(), "b": stated()}, "header does not fit"),
    "hole": ({"a": stated(), "b": stated(offsets=(20, 36))}, "header does not fit|cut off"),
    "rest": ({"a": stated(shape=(1, 2), offsets=(0, 8))}, "its tensors end at 8"),
    "floats": ({"a": stated(offsets=(0.0, 16.0))}, "at the offsets"),
    "float shape": ({"a": stated(shape=(2.0, 2))}, "of the shape"),
    "dims": ({"a": stated(shape=[1] * 5000 + [4])}, "of the shape"),
    "overflow": ({"a": stated(shape=(2**62, 4, 2**62, 4))}, "header does not fit"),
    "size": ({"a": stated(shape=(2**64,))}, "of the shape"),
    "type": ({"a": stated(dtype=["F32"])}, r"tensors of the type \['F32'\], which is not supported"),
    "line": ({"a\nb": stated()}, r"the key 'a\\nb'"),
    "metadata": ({"a": stated(), "__metadata__": [1]}, "not a list of tensors"),
    "many": ({f"{i}": stated(shape=(0,), offsets=(0, 0)) for i in range(TENSORS_MAX + 1)}, "65,537 tensors|no list"),
}  # fmt: skip


@pytest.mark.parametrize("attack", SAFETENSORS)
def test_a_safetensors_header_is_held_against_its_file(tmp_path, attack):
    header, reason = SAFETENSORS[attack]
    (tmp_path / "a.safetensors").write_bytes(safetensors_file(header, bytes(16)))
    with pytest.raises(CheckpointError, match=f"a.safetensors cannot be read: .*({reason})") as raised:
        read(tmp_path / "a.safetensors")
    assert raised.value.message.isprintable()


def test_a_header_of_a_hundred_megabytes_is_not_read(tmp_path):
    with (tmp_path / "a.safetensors").open("wb") as stream:  # a hole, which takes no room
        stream.write((HEADER_MAX_BYTES + 1).to_bytes(8, "little"))
        stream.truncate(HEADER_MAX_BYTES + 100)
    with pytest.raises(ValueError, match=r"a file with a header of 33,554,433 bytes; at most 33,554,432 are read"):
        header_of(tmp_path / "a.safetensors")


@pytest.mark.parametrize("name", ["../secret.safetensors", "/etc/passwd", "a/b", "", "..", "a\nb", "x" * 300])
def test_an_index_names_files_of_its_own_folder(tmp_path, name):
    save_file({"a": A(2)}, tmp_path / "secret.safetensors")
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": name}}))
    with pytest.raises(CheckpointError, match="accepted: files of its own folder, by their names alone") as raised:
        read(folder)
    assert raised.value.message.isprintable()


def test_many_missing_shards_are_one_line(tmp_path):
    names = {f"{i}": f"{i}.safetensors" for i in range(1000)}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))
    with pytest.raises(CheckpointError, match=r"lacks 0.safetensors, 1.safetensors, 10.safetensors and 997 more"):
        read(tmp_path)


def test_what_is_no_file_is_never_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", tmp_path, Path("/dev/zero")):
        with pytest.raises(OSError, match="it is not a file"):
            open_regular(path)
    (tmp_path / "long").write_bytes(bytes(11))
    with pytest.raises(OSError, match="it has more than 10 bytes"):
        read_regular(tmp_path / "long", 10)
    for name in ("model.safetensors.index.json", "a.gguf", "config.json"):
        folder = tmp_path / name.replace(".", "-")
        folder.mkdir()
        os.mkfifo(folder / name)
        for call in (read, config_of):
            with pytest.raises(CheckpointError):
                call(folder)
    save_file({"a.lora_A.weight": A(1, 8), "a.lora_B.weight": A(8, 1)}, tmp_path / "adapter_model.safetensors")
    os.mkfifo(tmp_path / "adapter_config.json")
    with pytest.raises(CheckpointError, match=r"PEFT's configuration of the LoRA .* cannot be read: it is not a file"):
        read_lora(tmp_path / "adapter_model.safetensors")


def test_a_lora_that_would_fill_the_memory_is_not_read(tmp_path):
    rows = 2**28
    shapes = {"A": (1, 1), "B": (rows, 1)}
    pairs = {f"{i}.lora_{side}.weight": stated("F64", shapes[side]) for i in range(5) for side in "AB"}
    at = 0
    for each in pairs.values():
        size = 8 * each["shape"][0]
        each["data_offsets"] = (at, at + size)
        at += size
    head = safetensors_file(pairs)
    with (tmp_path / "a.safetensors").open("wb") as stream:
        stream.write(head)
        stream.truncate(len(head) + at)  # a hole, which takes no room
    with pytest.raises(
        CheckpointError, match=r"a.safetensors has 10,737,418,280 bytes for this model; accepted: at most"
    ):
        read_lora(tmp_path / "a.safetensors")


def tampered_with(tmp_path: Path, kinds: str, seed: int, count: int) -> list[str]:
    script = Path(__file__).with_name("hostile_files.py")
    given = [sys.executable, str(script), str(tmp_path), kinds, str(seed), str(count)]
    paths = os.pathsep.join(filter(None, (str(script.parent.parent), os.environ.get("PYTHONPATH"))))
    env = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(given, capture_output=True, text=True, env=env, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])["faults"]


@pytest.mark.integration
def test_files_that_were_tampered_with(tmp_path):
    assert tampered_with(tmp_path, "lora,nf4,difference,config-clip,gguf,gguf-llama", 0, 10) == []


@pytest.mark.long
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("kind", ["lora", "tokenizer", "clip", "vae", "scaled", "nf4", "difference", "config-clip",
                                  "config-vae", "config-transformer", "gguf", "gguf-llama", "gguf-t5"])  # fmt: skip
@pytest.mark.integration
def test_many_files_that_were_tampered_with(tmp_path, kind, first_seed):
    assert tampered_with(tmp_path, kind, first_seed + 1, 400) == []
