"""A folder of LoRAs: the model loads whatever it contains; requests get their LoRAs, or an error."""

from __future__ import annotations

import logging
import os
import shutil
import tempfile
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save, save_file

from hidream.errors import CheckpointError, ConfigurationError, InvalidInput
from hidream.formats.lora_file import read_lora
from hidream.model.checkpoint import lora_folder
from hidream.model.checkpoint.lora_folder import LoraFolder
from hidream.model.loading import load
from hidream.model.network.linear import Linear
from hidream.model.network.lora import Lora
from hidream.model.pipeline import generate
from hidream.request import ImageRequest, LoraUse
from hidream.types import Size, Variant

LAYER = "double_stream_blocks.0.block.attn1.to_q"
LAYERS = {LAYER: Linear(8, 8)}


def tensors_of(layers=(LAYER,), width=8, value=1.0, prefix="transformer."):
    tensors = {}
    for layer in layers:
        tensors[f"{prefix}{layer}.lora_A.weight"] = torch.full((2, width), value)
        tensors[f"{prefix}{layer}.lora_B.weight"] = torch.full((width, 2), value)
    return tensors


def value_of(lora: Lora) -> float:
    return float(lora.parts[LAYER].adapter.up[0, 0])


def asked(*loras):
    return ImageRequest("a fox", Size(256, 256), seed=1, steps=1, loras=loras)


def test_a_request_names_what_the_folder_has(tmp_path, caplog):
    random = torch.Generator().manual_seed(0)
    half = {
        key: torch.randn(tensor.shape, generator=random)
        for key, tensor in tensors_of([LAYER, "transformer_blocks.7.to_q"], 192).items()
    }
    save_file(half, tmp_path / "ink.safetensors")
    (tmp_path / "notes.txt").write_text("passed over")
    with caplog.at_level(logging.INFO, "hidream.model.checkpoint.lora_folder"):
        model = load(Variant.DEV, device="cpu", loras=tmp_path)
    left_out = "1 of its 2 layers are not in this model (transformer.transformer_blocks.7.to_q)"
    said = [record.getMessage() for record in caplog.records]
    assert f"lora_read name=ink format=peft layers=2 matched=1 left_out={left_out}" in said
    plain, inked, zero = (generate(model, asked(*use)) for use in ((), (LoraUse("ink"),), (LoraUse("ink", 0),)))
    assert not np.array_equal(plain.pixels, inked.pixels)
    assert np.array_equal(plain.pixels, zero.pixels)
    assert inked.warnings == (f"the LoRA ink is used in part: {left_out}",)
    assert plain.warnings == zero.warnings == ()
    with pytest.raises(InvalidInput, match="loras names 'water'; accepted: ink"):
        generate(model, asked(LoraUse("water")))
    save_file({key: 2 * tensor for key, tensor in half.items()}, tmp_path / "ink.safetensors")
    assert not np.array_equal(generate(model, asked(LoraUse("ink"))).pixels, inked.pixels)


def flux() -> bytes:
    name = "lora_unet_double_blocks_0_img_attn_qkv"
    return save({f"{name}.lora_down.weight": torch.ones(4, 3072), f"{name}.lora_up.weight": torch.ones(9216, 4)})


UNUSABLE = {
    "flux": (flux, "matches no layer of this model: it changes lora_unet_double_blocks_0_img_attn_qkv; accepted"),
    "sdxl": (
        lambda: save(tensors_of(["lora_unet_down_blocks_1_attentions_0_proj_in"], prefix="")),
        "matches no layer of this model",
    ),
    "empty": (lambda: b"", "empty.safetensors cannot be read: "),
    "no-tensors": (lambda: save({}), "no-tensors.safetensors has no LoRA of the transformer: it has no tensors"),
    "torn": (lambda: save(tensors_of())[:-1], "torn.safetensors cannot be read: "),
    "pickle": (lambda: b"PK\x03\x04 a pickle, perhaps", "pickle.safetensors cannot be read: "),
    "encoder": (
        lambda: save(tensors_of(["te1_text_model_encoder_layers_0_mlp_fc1"], prefix="lora_")),
        "it is for text encoders only: ",
    ),
    "wide": (lambda: save(tensors_of(width=64)), "is made for another model: it has [64, 64] for"),
    "oft": (lambda: save({f"transformer.{LAYER}.oft_blocks": torch.ones(2, 4, 4)}), "(OFT, which is not supported)"),
    "nan": (lambda: save(tensors_of(value=torch.nan)), "values that are not finite in down"),
    "configured": (lambda: save(tensors_of(), {"lora_adapter_metadata": "["}), "PEFT's configuration of the LoRA"),
}


def bomb(shapes: dict[str, tuple[int, int]]) -> bytes:
    return save({f"lycoris_{LAYER.replace('.', '_')}.{part}": torch.ones(shape) for part, shape in shapes.items()})


UNUSABLE |= {
    "lokr": (
        lambda: bomb({"lokr_w1_a": (60_000, 1), "lokr_w1_b": (1, 60_000), "lokr_w2": (1, 1)}),
        "is made for a layer of shape [60000, 60000] (outputs, inputs); accepted: at most",
    ),
    "loha": (
        lambda: bomb({f"hada_w{i}_{side}": (9999, 1)[:: 1 if side == "a" else -1] for i in "12" for side in "ab"}),
        "is made for another model: it has [9999, 9999] for",
    ),
    "core": (
        lambda: bomb({"hada_w1_a": (1, 8), "hada_t1": (1, 99_999), "hada_w1_b": (99_999, 8),
                      "hada_w2_a": (1, 8), "hada_t2": (1, 1), "hada_w2_b": (1, 8)}),
        "has the rank 99,999; accepted: at most the larger side of its layer [8, 8]",
    ),
    "pattern": (
        lambda: save(tensors_of(), {"lora_adapter_metadata": '{"lora_alpha": 1, "alpha_pattern": {"(a{9})+": 1}}'}),
        "'(a{9})+' repeats a counted number of times; accepted: names, or regular expressions",
    ),
    "list": (lambda: save(tensors_of(), {"lora_adapter_metadata": "[1]"}), "it is JSON, but not an object"),
}  # fmt: skip


@pytest.fixture(scope="module")
def unusable(tmp_path_factory):
    """A folder of everything that people put there."""
    folder = tmp_path_factory.mktemp("loras")
    for name, (content, _) in UNUSABLE.items():
        (folder / f"{name}.safetensors").write_bytes(content())
    (folder / "folder.safetensors").mkdir()
    save_file(tensors_of(), folder / "folder.safetensors" / "adapter_model.safetensors")
    os.mkfifo(folder / "pipe.safetensors")
    (folder / "dangling.safetensors").symlink_to("nowhere")
    (folder / "circle.safetensors").symlink_to("circle.safetensors")
    save_file(tensors_of(), folder / "good.safetensors")
    return folder


REASONS = {name: reason for name, (_, reason) in UNUSABLE.items()} | {
    "folder": "folder.safetensors is not a file; accepted: a safetensors file",
    "pipe": "pipe.safetensors is not a file",
    "dangling": "dangling.safetensors cannot be read: No such file or directory",
    "circle": "circle.safetensors cannot be read: Too many levels of symbolic links",
}


def test_what_cannot_be_used_fails_only_who_names_it(unusable, caplog):
    folder = LoraFolder(unusable, LAYERS)
    said = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert len(said) == len(REASONS)
    assert folder.names() == sorted([*REASONS, "good"])
    assert value_of(folder.named("good")) == 1
    assert folder.report("good") == "peft, 1 of 1 layers matched"
    for name, reason in REASONS.items():
        with pytest.raises(InvalidInput) as raised:
            folder.named(name)
        assert raised.value.message.startswith(f"loras names {name!r}, which cannot be used: ")
        assert reason in raised.value.message
        assert str(unusable) not in raised.value.message  # clients of the API read it
        assert folder.report(name).startswith("cannot be used: ")
        assert any(line.startswith(f"lora_unusable name={name} reason=") and reason in line for line in said)
    assert [r for r in caplog.records if r.levelno == logging.WARNING][len(said) :] == []  # once, however often named


def test_a_model_loads_beside_all_of_them(unusable):
    model = load(Variant.DEV, device="cpu", loras=unusable)
    with pytest.raises(InvalidInput, match="loras names 'flux', which cannot be used: the LoRA flux matches no layer"):
        generate(model, asked(LoraUse("flux")))
    assert generate(model, asked()).warnings == ()


@contextmanager
def somebody():
    """Be somebody to whom permissions apply, which they do not to root."""
    user = os.geteuid()
    if user == 0:
        os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(user)


def test_permissions_are_looked_at_anew():
    with tempfile.TemporaryDirectory() as made:  # pytest's own folders are open for their owner only
        folder, file = Path(made), Path(made) / "ink.safetensors"
        folder.chmod(0o755)
        save_file(tensors_of(), file)
        file.chmod(0)
        with somebody():
            loras = LoraFolder(folder, LAYERS)
            refused = r"'ink', which cannot be used: ink\.safetensors cannot be read: Permission denied"
            with pytest.raises(InvalidInput, match=refused):
                loras.named("ink")
        file.chmod(0o644)
        with somebody():
            assert value_of(loras.named("ink")) == 1
        folder.chmod(0)
        with (
            somebody(),
            pytest.raises(ConfigurationError, match=r"folder of LoRAs .* cannot be read: Permission denied"),
        ):
            LoraFolder(folder, LAYERS)
        folder.chmod(0o755)


def test_new_changed_and_deleted_files_are_found(tmp_path):
    file = tmp_path / "ink.safetensors"
    folder = LoraFolder(tmp_path, LAYERS)
    with pytest.raises(InvalidInput, match="loras names 'ink'; accepted: none, because the folder has none"):
        folder.named("ink")
    save_file(tensors_of(value=2.0), file)
    first = folder.named("ink")
    assert value_of(first) == 2

    file.write_bytes(save(tensors_of(value=3.0)))  # in place
    assert value_of(folder.named("ink")) == 3
    save_file(tensors_of(value=4.0), tmp_path / "new")
    (tmp_path / "new").replace(file)
    assert value_of(folder.named("ink")) == 4
    assert value_of(first) == 2  # what is under way keeps what it has

    file.write_bytes(save(tensors_of(value=5.0))[:-7])  # on its way
    with pytest.raises(InvalidInput, match="cannot be read"):
        folder.named("ink")
    file.write_bytes(save(tensors_of(value=5.0)))
    assert value_of(folder.named("ink")) == 5
    file.unlink()
    with pytest.raises(InvalidInput, match="loras names 'ink'; accepted: none"):
        folder.named("ink")
    shutil.rmtree(tmp_path)
    with pytest.raises(InvalidInput, match="loras names 'ink'; accepted: none"):
        folder.named("ink")


def test_times_and_sizes_that_stay_do_not_hide_a_change(tmp_path):
    file = tmp_path / "ink.safetensors"
    save_file(tensors_of(value=2.0), file)
    folder, before = LoraFolder(tmp_path, LAYERS), file.stat()
    file.write_bytes(save(tensors_of(value=3.0)))
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))  # as `cp -p` and `rsync -t` do
    assert file.stat().st_size == before.st_size
    assert value_of(folder.named("ink")) == 3


def test_what_is_written_while_it_is_read_is_read_again(tmp_path, monkeypatch):
    file = tmp_path / "ink.safetensors"
    save_file(tensors_of(value=2.0), file)

    def read_and_replaced(path, wants):
        found = read_lora(path, wants)
        file.write_bytes(save(tensors_of(value=3.0)))
        return found

    with monkeypatch.context() as patched:
        patched.setattr(lora_folder, "read_lora", read_and_replaced)
        folder = LoraFolder(tmp_path, LAYERS)
    assert value_of(folder.named("ink")) == 3


def test_what_was_read_is_not_read_again(tmp_path, caplog, monkeypatch):
    save_file(tensors_of(), tmp_path / "ink.safetensors")
    (tmp_path / "torn.safetensors").write_bytes(b"torn")
    folder = LoraFolder(tmp_path, LAYERS)
    caplog.clear()
    monkeypatch.setattr(Path, "read_bytes", None)
    monkeypatch.setattr(lora_folder, "read_lora", None)
    assert folder.named("ink") is folder.named("ink")
    for _ in range(2):
        with pytest.raises(InvalidInput, match="'torn', which cannot be used"):
            folder.named("torn")
    assert not caplog.records


def test_as_many_are_kept_as_there_is_memory_for(tmp_path, monkeypatch):
    one = sum(tensor.nbytes for tensor in tensors_of().values())
    for name in "abcd":
        save_file(tensors_of(), tmp_path / f"{name}.safetensors")
    monkeypatch.setattr(lora_folder, "CACHE_BYTES", 2 * one)
    folder = LoraFolder(tmp_path, LAYERS)
    c, d = folder.named("c"), folder.named("d")
    assert folder.named("c") is c
    a = folder.named("a")  # instead of d, which was used before c
    assert folder.named("a") is a
    assert folder.named("c") is c
    assert folder.named("d") is not d
    monkeypatch.setattr(lora_folder, "CACHE_BYTES", 0)
    latest = folder.named("b")
    assert folder.named("b") is latest  # one is always kept


@pytest.mark.parametrize(
    "name",
    ["../secret", "sub/ink", "./ink", "sub/../ink", "", ".", "..", "ink.safetensors", "ink/", "ink\0", "\0", "a\ud800",
     "x" * 300, "x" * 100_000, "*", "in?", "~/ink", "INK"],
)  # fmt: skip
def test_no_name_leads_out_of_the_folder(name, tmp_path):
    inside = tmp_path / "loras"
    (inside / "sub").mkdir(parents=True)
    for file in (tmp_path / "secret", inside / "ink", inside / "sub" / "ink"):
        save_file(tensors_of(), file.with_suffix(".safetensors"))
    folder = LoraFolder(inside, LAYERS)
    for each in (name, str(tmp_path / "secret"), str(inside / "ink")):
        with pytest.raises(InvalidInput, match=r"loras names .*; accepted: ink$") as raised:
            folder.named(each)
        assert len(raised.value.message) < 200
        assert raised.value.message.isprintable()


def test_names_that_could_not_stand_in_an_answer_are_not_offered(tmp_path):
    for name in (b"a\xff.safetensors", b"b\n.safetensors", b".safetensors"):
        Path(os.fsdecode(os.fsencode(tmp_path) + b"/" + name)).write_bytes(b"")
    assert LoraFolder(tmp_path, LAYERS).names() == []


def test_a_long_list_is_cut(tmp_path):
    for i in range(60):
        (tmp_path / f"{i:02}.safetensors").write_bytes(b"")
    with pytest.raises(InvalidInput, match=r"accepted: 00, .*, 49 and 10 more$"):
        LoraFolder(tmp_path, LAYERS).named("ink")


def test_a_folder_that_is_not_there(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    for path, why in ((tmp_path / "absent", "No such file"), (tmp_path / "file", "Not a directory")):
        with pytest.raises(
            ConfigurationError, match=rf"the folder of LoRAs .* cannot be read: {why}.*accepted: a folder"
        ):
            load(Variant.DEV, device="cpu", loras=path)
    with pytest.raises(InvalidInput, match="loras names 'ink'; accepted: none, because none is configured"):
        LoraFolder().named("ink")
    with pytest.raises(CheckpointError, match="cannot be read: No such file"):
        LoraFolder(tmp_path, LAYERS).read("ink")


def test_a_lazy_folder_reads_what_is_named_and_nothing_else(tmp_path, caplog):
    save_file(tensors_of(), tmp_path / "ink.safetensors")
    (tmp_path / "of another model.safetensors").write_bytes(b"torn")
    with caplog.at_level(logging.INFO, "hidream.model.checkpoint.lora_folder"):
        folder = LoraFolder(tmp_path, LAYERS, lazy=True)
        assert not caplog.records
        assert value_of(folder.named("ink")) == 1.0
    assert [record.getMessage().split()[1] for record in caplog.records] == ["name=ink"]
