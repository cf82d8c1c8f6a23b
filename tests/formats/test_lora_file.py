"""LoRA files: formats by their keys, strengths by each trainer's rule, and errors that say what is wrong."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from lycoris.functional import loha, lokr
from peft import LoraConfig
from peft.utils.other import get_pattern_key
from safetensors.torch import save, save_file

import hidream
from hidream.errors import CheckpointError
from hidream.formats import detect
from hidream.formats.adapters import HADAMARD, Hadamard, Kronecker, LowRank
from hidream.formats.lora_file import LoraFormat, layer_name, read_lora

A, B = torch.randn(4, 6), torch.randn(10, 4)
LAYER = "double_stream_blocks.3.block.attn1.to_q"
UNDERSCORED = LAYER.replace(".", "_")
PAIR = {f"{LAYER}.lora_A.weight": A, f"{LAYER}.lora_B.weight": B}


def read(folder, tensors, metadata=None, name="style.safetensors"):
    save_file({key: tensor.clone().contiguous() for key, tensor in tensors.items()}, folder / name, metadata)
    return read_lora(folder / name)


@pytest.mark.parametrize(
    ("down", "up", "format_"),
    [
        (f"transformer.{LAYER}.lora_A.weight", f"transformer.{LAYER}.lora_B.weight", LoraFormat.PEFT),
        (f"base_model.model.{LAYER}.lora_A.weight", f"base_model.model.{LAYER}.lora_B.weight", LoraFormat.PEFT),
        (f"{LAYER}.lora_A.default.weight", f"{LAYER}.lora_B.default.weight", LoraFormat.PEFT),
        (
            f"diffusion_model.{LAYER}.lora_A.weight",
            f"diffusion_model.{LAYER}.lora_B.weight",
            LoraFormat.DIFFUSION_MODEL,
        ),
        (f"transformer.{LAYER}.lora_down.weight", f"transformer.{LAYER}.lora_up.weight", LoraFormat.DOWN_UP),
        (f"transformer.{LAYER}.lora.down.weight", f"transformer.{LAYER}.lora.up.weight", LoraFormat.DOWN_UP),
        (f"lora_unet_{UNDERSCORED}.lora_down.weight", f"lora_unet_{UNDERSCORED}.lora_up.weight", LoraFormat.LORA_UNET),
        (f"lycoris_{UNDERSCORED}.lora_down.weight", f"lycoris_{UNDERSCORED}.lora_up.weight", LoraFormat.LYCORIS),
    ],
)
def test_formats(down, up, format_, tmp_path):
    file = read(tmp_path, {down: A, up: B})
    (key, adapter), *others = file.adapters.items()
    assert (file.name, file.format, file.notes, others) == ("style", format_, (), [])
    assert layer_name(key) in (LAYER, UNDERSCORED)
    assert down.startswith(key)
    assert isinstance(adapter, LowRank)
    assert adapter.shape == (10, 6)
    torch.testing.assert_close(adapter.delta(), B @ A)  # without alpha, alpha is the rank


@pytest.mark.parametrize("alpha", [torch.tensor(2.0), torch.tensor([2.0]), torch.tensor(2, dtype=torch.int64)])
def test_alpha_is_over_the_rank(alpha, tmp_path):
    tensors = {
        f"{LAYER}.lora_down.weight": A[:, :, None, None],
        f"{LAYER}.lora_up.weight": B.half(),
        f"{LAYER}.alpha": alpha,
    }
    adapter = read(tmp_path, tensors).adapters[LAYER]
    assert adapter.scale == 0.5
    torch.testing.assert_close(adapter.delta(), 0.5 * B.half().float() @ A)


@pytest.mark.parametrize("rslora", [False, True])
@pytest.mark.parametrize("where", ["diffusers", "pipeline", "peft"])
def test_pefts_configuration(where, rslora, tmp_path):
    patterns = {"to_q": 3, r"block\.attn1\.to_k": 5, "^double_stream_blocks.3.block.attn1.to_v": 7}
    settings = {"r": 4, "lora_alpha": 2, "alpha_pattern": patterns, "use_rslora": rslora}
    prefix = "transformer." if where == "pipeline" else ""
    names = [LAYER.replace("to_q", name) for name in ("to_q", "to_k", "to_v", "to_out", "to_q_t")]
    tensors = {f"{prefix}{n}.lora_{side}.weight": m for n in names for side, m in (("A", A), ("B", B))}
    if where == "peft":
        (tmp_path / "adapter_config.json").write_text(json.dumps(settings))
        read(tmp_path, tensors, name="adapter_model.safetensors")
        file = read_lora(tmp_path)
        assert file.name == tmp_path.name
    else:
        metadata = {"lora_adapter_metadata": json.dumps({prefix + key: value for key, value in settings.items()})}
        file = read(tmp_path, tensors, metadata)
    config = LoraConfig(**settings)
    for name in names:
        alpha = config.alpha_pattern.get(get_pattern_key(patterns, name), config.lora_alpha)
        assert file.adapters[prefix + name].scale == alpha / (2 if rslora else 4)
    assert len({adapter.scale for adapter in file.adapters.values()}) == 4


@pytest.mark.parametrize(
    "settings",
    ['["r"]', '"r"', '{"lora_alpha": 2, "alpha_pattern": {"(": 1}}', '{"lora_alpha": 2, "alpha_pattern": [1]}',
     '{"lora_alpha": NaN}', '{"lora_alpha": 0}', '{"lora_alpha": -1}', '{"peft_type": "LOHA", "alpha": 1, "r": 0}',
     '{"lora_alpha": Infinity}', "[" * 100_000],
)  # fmt: skip
def test_a_configuration_that_makes_no_sense(settings, tmp_path):
    with pytest.raises(CheckpointError, match="PEFT's configuration of the LoRA"):
        read(tmp_path, PAIR, {"lora_adapter_metadata": settings})


@pytest.mark.parametrize("left", [("w1",), ("w1_a", "w1_b")])
@pytest.mark.parametrize("right", [("w2",), ("w2_a", "w2_b"), ("t2", "w2_a", "w2_b")])
def test_lokr_is_lycoriss(left, right, tmp_path):
    shapes = {"w1": (2, 3), "w1_a": (2, 4), "w1_b": (4, 3), "w2": (5, 7), "w2_a": (5, 4), "w2_b": (4, 7), "t2": (4, 4)}
    if "t2" in right:
        shapes["w2_a"] = (4, 5)
    parts = {name: torch.randn(shapes[name]) for name in (*left, *right)}
    tensors = {f"lycoris_{UNDERSCORED}.lokr_{name}": tensor for name, tensor in parts.items()}
    file = read(tmp_path, tensors | {f"lycoris_{UNDERSCORED}.alpha": torch.tensor(3.0)})
    adapter = file.adapters[f"lycoris_{UNDERSCORED}"]
    assert isinstance(adapter, Kronecker)
    assert adapter.shape == (10, 21)
    order = [parts.get(name) for name in ("w1", "w1_a", "w1_b", "w2", "w2_a", "w2_b", "t2")]
    scale = 1.0 if len(parts) == 2 else 3 / 4
    torch.testing.assert_close(adapter.delta(), lokr.kron_weight(*order, scale=scale))


@pytest.mark.parametrize(
    ("key", "shape", "becomes"),
    [
        ("lora_magnitude_vector", (10,), (10, 1)),
        ("lora_magnitude_vector.weight", (10,), (10, 1)),
        ("dora_scale", (10, 1), (10, 1)),
        ("dora_scale", (1, 6), (1, 6)),
        ("dora_scale", (1, 6, 1, 1), (1, 6)),
    ],
)
def test_magnitudes(key, shape, becomes, tmp_path):
    tensors = {f"{LAYER}.lora_A.weight": A, f"{LAYER}.lora_B.weight": B, f"{LAYER}.{key}": torch.ones(shape)}
    assert read(tmp_path, tensors).adapters[LAYER].magnitude.shape == becomes


@pytest.mark.parametrize(
    "encoder",
    ["lora_te1_text_model_encoder_layers_0_mlp_fc1", "text_encoder_2.text_model.fc1", "llama.layers.0.q_proj", "t5.fc",
     "text_encoder.text_model.fc1", "lora_te_text_model_fc1", "clip_l.text_model.fc1", "lora_te4_model_layers_0"],
)  # fmt: skip
def test_text_encoders_are_skipped_and_said_to_be(encoder, tmp_path):
    pair = {"lora_down.weight": A, "lora_up.weight": B}
    tensors = {f"{layer}.{part}": m for layer in (encoder, f"transformer.{LAYER}") for part, m in pair.items()}
    file = read(tmp_path, tensors)
    assert set(file.adapters) == {f"transformer.{LAYER}"}
    assert file.notes == ("skipped tensors of text encoders: 2",)
    only = {key: tensor for key, tensor in tensors.items() if key.startswith(encoder)}
    with pytest.raises(CheckpointError, match="no LoRA of the transformer: it is for text encoders only: "):
        read(tmp_path, only)


def test_what_is_unknown_is_said(tmp_path):
    file = read(tmp_path, {f"{LAYER}.lora_A.weight": A, f"{LAYER}.lora_B.weight": B, "final_layer.linear.diff": B})
    shown = "final_layer.linear.diff (differences of whole weights, which is not supported)"
    assert file.notes == (f"skipped tensors of an unknown kind: 1 ({shown})",)


PREFIXES = [f"{prefix}{LAYER}" for prefix in (
    "transformer.", "base_model.model.", "", "diffusion_model.", "model.diffusion_model.", "lycoris.",
    "base_model.model.transformer.",
)] + [f"{prefix}{UNDERSCORED}" for prefix in ("lora_unet_", "lora_transformer_", "lycoris_")]  # fmt: skip


@pytest.mark.parametrize("default", ["", ".default"])
@pytest.mark.parametrize("layer", PREFIXES)
def test_loha_in_every_layout(layer, default, tmp_path):
    up_1, down_1, up_2, down_2 = (torch.randn(shape) for shape in ((10, 4), (4, 6)) * 2)
    parts = {"w1_a": up_1, "w1_b": down_1, "w2_a": up_2, "w2_b": down_2}
    tensors = {f"{layer}.hada_{name}{default}": tensor for name, tensor in parts.items()}
    file = read(tmp_path, tensors | {f"{layer}.alpha": torch.tensor(2.0)})
    assert (file.format, file.notes, list(file.adapters)) == (LoraFormat.LYCORIS, (), [layer])
    assert layer_name(layer) in (LAYER, UNDERSCORED)
    adapter = file.adapters[layer]
    assert isinstance(adapter, Hadamard)
    torch.testing.assert_close(adapter.delta(), loha.diff_weight(down_1, up_1, down_2, up_2, None, None, gamma=0.5))


@pytest.mark.parametrize(
    ("keys", "kind"),
    [
        (["oft_blocks", "alpha"], "OFT"),
        (["oft_R.weight"], "OFT"),
        (["boft_R", "boft_s"], "BOFT"),
        (["a1.weight", "a2.weight", "b1.weight", "b2.weight", "alpha"], "GLoRA"),
        (["weight", "on_input"], "IA3"),
        (["ia3_l"], "IA3"),
        (["diff", "diff_b"], "differences of whole weights"),
        (["w_norm", "b_norm"], "changes of norms"),
        (["q_layer.weight", "p_layer.weight", "lambda_layer", "alpha"], "T-LoRA"),
    ],
)
@pytest.mark.parametrize("layer", [LAYER, f"lycoris_{UNDERSCORED}"])
def test_other_kinds_are_called_by_their_names(layer, keys, kind, tmp_path):
    others = {f"{layer}.{key}": torch.ones(()) for key in keys}
    with pytest.raises(CheckpointError, match=rf"style.safetensors has no LoRA .*\({kind}, which is not supported\)"):
        read(tmp_path, others)
    notes = read(tmp_path, others | {f"{LAYER}_q.{part}.weight": m for part, m in (("lora_A", A), ("lora_B", B))}).notes
    assert len(notes) == 1
    assert notes[0].startswith(f"skipped tensors of an unknown kind: {len(keys)} ({layer}.")
    assert notes[0].endswith(f" ({kind}, which is not supported))")


def test_whole_models_are_recognised_before_they_are_read(monkeypatch):
    monkeypatch.setattr(Path, "read_bytes", None)
    nano = Path(hidream.__file__).parent / "nano" / "dev"
    for part, what in (("transformer", "a HiDream-I1 transformer"), ("vae", "an autoencoder")):
        with pytest.raises(CheckpointError, match=f"has no LoRA of the transformer: it is {what}; accepted"):
            read_lora(next((nano / part).glob("*.safetensors")))


def test_a_file_that_is_written_to_later_is_another(tmp_path):
    adapter = read(tmp_path, PAIR).adapters[LAYER]
    changed = save({key: tensor * 2 for key, tensor in PAIR.items()})
    (tmp_path / "style.safetensors").write_bytes(changed)  # the same inode
    torch.testing.assert_close(adapter.delta(), B @ A)
    (tmp_path / "style.safetensors").write_bytes(b"")  # reading what is mapped would end the process
    torch.testing.assert_close(adapter.delta(), B @ A)


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"weight": A}, "no LoRA of the transformer: its keys are weight; accepted: safetensors with lora_A"),
        ({}, "no LoRA of the transformer: it has no tensors; accepted: safetensors with lora_A"),
        (
            {f"{LAYER}.hada_w1_a": A, f"{LAYER}.hada_w1_b": B},
            "incomplete: it has only hada_w1_a, hada_w1_b; accepted",
        ),
        (PAIR | {f"{LAYER}.lora_down.weight": A}, "in an unknown way: .*lora_down.weight"),
        (PAIR | {f"{LAYER}\n.lora_A.weight": A}, r"with the key '.*\\n.lora_A.weight'"),
        (PAIR | {f"{LAYER}\0.diff": A}, r"with the key '.*\\x00.diff'"),
        (PAIR | {"x" * 400: A}, "has the key 'xxx"),
        ({f"{LAYER}.lora_A.weight": A}, f"layer {LAYER} is incomplete: it has only down"),
        ({f"{LAYER}.alpha": A}, f"layer {LAYER} is incomplete: it has only alpha; accepted: all parts of a LoRA, a"),
        ({f"{LAYER}.lokr_w1": A, f"{LAYER}.lokr_w2_a": B}, "is incomplete"),
        ({f"{LAYER}.lokr_w1_a": A, f"{LAYER}.lokr_w1_b": A, f"{LAYER}.lokr_w2": A}, r"\[4, 6\] and \[4, 6\]"),
        (PAIR | {f"{LAYER}.lora_B.weight": B[:, :3]}, r"shapes \[10, 3\] and \[4, 6\]; accepted: parts of one rank"),
        (PAIR | {f"{LAYER}.lora_mid.weight": A}, "in an unknown way: .*lora_mid.weight"),
        (PAIR | {f"{LAYER}.lora_B.bias": B[:, 0]}, "in an unknown way: .*lora_B.bias"),
        (PAIR | {f"{LAYER}.lora_A.weight": A * torch.nan}, "values that are not finite in down"),
        (PAIR | {f"{LAYER}.lora_A.weight": A.int()}, "type torch.int32 in down"),
        (PAIR | {f"{LAYER}.alpha": torch.tensor(torch.inf)}, "scale inf; accepted: a finite alpha"),
        ({f"{LAYER}.lora_A.weight": A[:0], f"{LAYER}.lora_B.weight": B[:, :0]}, r"the shape \[0, 6\] in down"),
    ],
)
def test_errors(tensors, message, tmp_path):
    with pytest.raises(CheckpointError, match=message):
        read(tmp_path, tensors)


def test_what_is_no_file_of_tensors(tmp_path):
    (tmp_path / "style.pt").write_bytes(b"PK\x03\x04 a pickle, perhaps")
    for path in (tmp_path / "style.pt", tmp_path / "absent.safetensors"):
        with pytest.raises(CheckpointError, match=f"{path.name} cannot be read: .*; accepted: safetensors"):
            read_lora(path)
    with pytest.raises(CheckpointError, match="has 0 safetensors files; accepted: a LoRA's file, or its folder"):
        read_lora(tmp_path)


@pytest.mark.parametrize("size", [0, 4, 20, -1])
def test_a_torn_file(size, tmp_path):
    (tmp_path / "style.safetensors").write_bytes(save(PAIR)[:size])
    with pytest.raises(CheckpointError, match=r"^style\.safetensors cannot be read: .*; accepted: safetensors"):
        read_lora(tmp_path / "style.safetensors")


def test_a_file_that_becomes_another_while_it_is_read(tmp_path):
    def write(key, spec):
        (tmp_path / "style.safetensors").write_bytes(save({"other": torch.ones(20, 20)}))
        return True

    save_file(PAIR, tmp_path / "style.safetensors")
    with pytest.raises(CheckpointError, match=r"style\.safetensors cannot be read: .* was changed while it was read"):
        read_lora(tmp_path / "style.safetensors", write)


def test_a_loha_is_not_taken_for_a_model():
    names = [f"{LAYER}.{part}" for part in HADAMARD]
    assert detect.kind_of(names) is None
    assert detect.description_of(names).startswith("a LoRA, which a request names")


def test_a_type_that_torch_does_not_have(tmp_path):
    head = json.dumps({f"{LAYER}.lora_{side}.weight": {"dtype": "F4", "shape": [1, 1], "data_offsets": [i, i + 1]}
                       for i, side in enumerate("AB")}).encode()  # fmt: skip
    (tmp_path / "style.safetensors").write_bytes(len(head).to_bytes(8, "little") + head + b"\0\0")
    with pytest.raises(CheckpointError, match="tensors of the type 'F4', which is not supported"):
        read_lora(tmp_path / "style.safetensors")


def test_a_broken_configuration(tmp_path):
    save_file(PAIR, tmp_path / "adapter_model.safetensors")
    (tmp_path / "adapter_config.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"configuration of the LoRA .* cannot be read"):
        read_lora(tmp_path)
    (tmp_path / "adapter_config.json").write_text('{"lora_alpha": "much"}')
    with pytest.raises(CheckpointError, match=f"gives {LAYER} the alpha 'much'; accepted: a number"):
        read_lora(tmp_path)


def test_float8(tmp_path):
    tensors = {key: tensor.to(torch.float8_e4m3fn) for key, tensor in PAIR.items()}
    adapter = read(tmp_path, tensors).adapters[LAYER]
    torch.testing.assert_close(adapter.delta(), B.to(torch.float8_e4m3fn).float() @ A.to(torch.float8_e4m3fn).float())
