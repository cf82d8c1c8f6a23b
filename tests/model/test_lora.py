"""LoRAs on our transformer equal PEFT's, LyCORIS's and diffusers' own on diffusers' transformer."""

from __future__ import annotations

import dataclasses
import math

import pytest
import tiny
import torch
from diffusers import HiDreamImagePipeline
from live_bytes import LiveBytes
from lycoris import LycorisNetwork
from peft import LoHaConfig, LoKrConfig, LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from torch import nn

from hidream.errors import CheckpointError, InvalidInput
from hidream.formats.adapters import Adapter, Hadamard, Kronecker, LowRank
from hidream.formats.lora_file import LoraFile, LoraFormat, read_lora
from hidream.formats.quantized import Quantized, Scheme
from hidream.model.network.kernels import Experts, Kernels
from hidream.model.network.linear import Linear
from hidream.model.network.lora import (
    HadamardDelta,
    KroneckerDelta,
    checked_bytes,
    deltas,
    layers,
    match,
    wants,
    warnings,
)
from hidream.model.network.ragged_batch import RaggedBatch

TOLERANCE = 1e-5  # of the output's largest value, float32
CPU = torch.device("cpu")
INPUTS = tiny.inputs(2, 8, 8)
ATTENTION = ["to_q", "to_k", "to_v", "to_out", "to_q_t", "to_v_t"]


@pytest.fixture(scope="module")
def base():
    return tiny.reference()


@pytest.fixture(scope="module")
def model(base):
    return tiny.ours(base)


def load_lora(path, transformer):
    """Read a LoRA for this transformer."""
    with_deltas = layers(transformer)
    return match(read_lora(path, wants(path.stem, with_deltas)), with_deltas)


def linears(reference) -> list[str]:
    return [name for name, module in reference.named_modules() if isinstance(module, nn.Linear)]


def randomise(adapted, seed: int = 0) -> None:
    """Give every adapter weights that matter."""
    g = torch.Generator().manual_seed(seed)
    for name, parameter in adapted.named_parameters():
        if "magnitude" in name or "dora_scale" in name:
            parameter.data.mul_(1 + 0.4 * torch.rand(parameter.shape, generator=g))
        elif any(part in name for part in ("lora_", "lokr_", "hada_")):
            parameter.data.normal_(std=0.1, generator=g)


def peft_folder(folder, config, seed: int = 0):
    """PEFT's adapter of diffusers' transformer, saved by PEFT, and the adapted transformer itself."""
    adapted = get_peft_model(tiny.reference(), config).eval()
    randomise(adapted, seed)
    adapted.save_pretrained(folder)
    return adapted


@torch.no_grad()
def theirs(reference):
    return -reference(*INPUTS, return_dict=False)[0]


@torch.no_grad()
def ours(model, *loras):
    latent, timestep, *text = INPUTS
    c = model.condition(*text, (4, 4), deltas=deltas(loras, CPU, torch.float32))
    return model.velocity_at(latent, timestep, c)


CONFIGS = {
    "plain": LoraConfig(r=4, lora_alpha=6, target_modules=ATTENTION),
    "every layer, several ranks": LoraConfig(
        r=4,
        lora_alpha=6,
        target_modules=r".*\.(to_\w+|w[123]|linear(_[12])?|proj|adaLN_modulation\.1)",
        rank_pattern={"to_q": 7, r"experts\.\d\.w2": 2},
        alpha_pattern={"attn1.to_q": 3, "^x_embedder.proj": 9},
    ),
    "rslora": LoraConfig(r=5, lora_alpha=3, use_rslora=True, target_modules=ATTENTION),
    "dora": LoraConfig(r=4, lora_alpha=6, use_dora=True, target_modules=[*ATTENTION, "w1", "w2"]),
}


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """What PEFT saved of each configuration, and what its model draws."""
    folders = {name: tmp_path_factory.mktemp("peft") for name in CONFIGS}
    return {name: (folder, theirs(peft_folder(folder, CONFIGS[name]))) for name, folder in folders.items()}


@pytest.mark.parametrize("name", CONFIGS)
def test_peft_folders(name, base, model, saved):
    folder, expected = saved[name]
    for mine in (model, tiny.ours(base, kernels=tiny.SEPARATE)):
        result = ours(mine, (load_lora(folder, mine), 1.0))
        assert tiny.relative(result, expected) <= TOLERANCE
    assert tiny.relative(ours(model), expected) > 1e-2


def test_experts_by_the_reference_implementation(base, saved):
    folder, expected = saved["every layer, several ranks"]
    mine = tiny.ours(base, kernels=Kernels(fused=True, experts=Experts.DENSE))
    lora = load_lora(folder, mine)
    assert "double_stream_blocks.1.block.ff_i.experts.2.w1" in lora.parts
    assert tiny.relative(ours(mine, (lora, 1.0)), expected) <= TOLERANCE


def test_names_are_those_of_diffusers(base, model):
    gates = [name for name, module in base.named_modules() if type(module).__name__ == "MoEGate"]
    assert set(layers(model)) == {*linears(base), *gates}
    assert len(gates) == 5


def test_a_gate_by_pefts_target_parameters(model, tmp_path):
    config = LoraConfig(r=2, lora_alpha=8, target_modules=["to_q"], target_parameters=["ff_i.gate.weight"])
    expected = theirs(peft_folder(tmp_path, config))
    lora = load_lora(tmp_path, model)
    assert sum(name.endswith("ff_i.gate") for name in lora.parts) == 5
    assert tiny.relative(ours(model, (lora, 1.0)), expected) <= TOLERANCE


def test_pefts_lokr(model, tmp_path):
    """PEFT writes no alpha into the file, and scales whole matrices too, unlike LyCORIS."""
    config = LoKrConfig(r=4, alpha=3, decompose_both=True, target_modules=ATTENTION, rank_pattern={"to_k": 500})
    expected = theirs(peft_folder(tmp_path, config))
    assert any(key.endswith("to_k.lokr_w2") for key in load_file(tmp_path / "adapter_model.safetensors"))
    assert tiny.relative(ours(model, (load_lora(tmp_path, model), 1.0)), expected) <= TOLERANCE


@pytest.mark.parametrize("rank", [4, 30])
def test_pefts_loha(rank, model, tmp_path):
    config = LoHaConfig(
        r=rank, alpha=7 * rank, target_modules=ATTENTION, rank_pattern={"to_k": 5}, alpha_pattern={"to_v": 60}
    )
    expected = theirs(peft_folder(tmp_path, config))
    assert tiny.relative(ours(model, (load_lora(tmp_path, model), 1.0)), expected) <= TOLERANCE
    assert tiny.relative(ours(model), expected) > 1e-3


@pytest.mark.filterwarnings("ignore:Already found a `peft_config` attribute")
def test_several_with_weights_as_diffusers(model, tmp_path):
    """Diffusers adds and weighs the adapters, and writes a file of each with its settings as metadata."""
    reference = tiny.reference()
    configs = {"a": CONFIGS["plain"], "b": CONFIGS["rslora"]}
    for name, config in configs.items():
        reference.add_adapter(config, name)
    randomise(reference)
    for name in configs:
        reference.save_lora_adapter(tmp_path / name, adapter_name=name)
    loras = [load_lora(tmp_path / name, model) for name in configs]
    for weights in ([1.0, 1.0], [0.7, -0.4], [0.0, 1.3]):
        reference.set_adapters(["a", "b"], weights)
        result = ours(model, *zip(loras, weights, strict=True))
        assert tiny.relative(result, theirs(reference)) <= TOLERANCE


def renamed(kind: str, state: dict, alpha: float) -> dict:
    """PEFT's keys as other trainers write them."""
    result = {}
    for key, tensor in state.items():
        layer, _, part = key.removeprefix("base_model.model.").partition(".lora_")
        if kind == "lora_unet":
            layer = f"lora_unet_{layer.replace('.', '_')}"
        elif kind != "bare":
            layer = f"{kind}.{layer}"
        if kind in ("lora_unet", "transformer"):
            part = {"A.weight": "lora_down.weight", "B.weight": "lora_up.weight", "magnitude_vector": "dora_scale"}[
                part
            ]
            tensor = tensor[:, None] if part == "dora_scale" else tensor
        else:
            part = f"lora_{part}"
        result |= {f"{layer}.{part}": tensor.contiguous(), f"{layer}.alpha": torch.tensor(alpha)}
    return result


@pytest.mark.parametrize("config", ["plain", "dora"])
@pytest.mark.parametrize("kind", ["bare", "diffusion_model", "transformer", "lora_unet", "model.diffusion_model"])
def test_other_trainers_keys(kind, config, model, saved, tmp_path):
    folder, expected = saved[config]
    state = load_file(folder / "adapter_model.safetensors")
    save_file(renamed(kind, state, 6.0), tmp_path / "style.safetensors")
    lora = load_lora(tmp_path / "style.safetensors", model)
    assert tiny.relative(ours(model, (lora, 1.0)), expected) <= TOLERANCE


def test_diffusers_loads_the_same(model, saved, tmp_path):
    """Its own loader as a second oracle, for the layout that it converts: without alpha, the strength is 1."""
    state = load_file(saved["plain"][0] / "adapter_model.safetensors")
    file = tmp_path / "style.safetensors"
    save_file({k.replace("base_model.model", "diffusion_model"): v for k, v in state.items()}, file)
    reference = tiny.reference()
    loaded, metadata = HiDreamImagePipeline.lora_state_dict(file, return_lora_metadata=True)
    HiDreamImagePipeline.load_lora_into_transformer(loaded, reference, metadata=metadata)
    result = ours(model, (load_lora(file, model), 1.0))
    assert tiny.relative(result, theirs(reference)) <= TOLERANCE


LYCORIS = {
    "full left": {"factor": 8},
    "both in factors": {"factor": 16, "decompose_both": True, "lora_dim": 2},
    "both full": {"full_matrix": True, "lora_dim": 4, "alpha": 16},
    "rslora": {"factor": 8, "rs_lora": True},
    "unbalanced": {"factor": 4, "unbalanced_factorization": True},
    "dora of rows": {"factor": 8, "weight_decompose": True},
    "dora of columns": {"factor": 8, "weight_decompose": True, "wd_on_out": False},
    "loha": {"network_module": "loha", "alpha": 30},
    "loha of a high rank": {"network_module": "loha", "lora_dim": 20, "alpha": 90},
    "loha, rslora": {"network_module": "loha", "alpha": 20, "rs_lora": True},
    "loha, dora of rows": {"network_module": "loha", "weight_decompose": True},
    "loha, dora of columns": {"network_module": "loha", "weight_decompose": True, "wd_on_out": False},
    "low rank": {"network_module": "locon"},
    "low rank, dora of rows": {"network_module": "locon", "weight_decompose": True},
    "low rank, dora of columns": {"network_module": "locon", "weight_decompose": True, "wd_on_out": False},
}


def lycoris(file, monkeypatch, **options):
    """LyCORIS's adapter of diffusers' transformer, saved by LyCORIS, and the adapted transformer itself."""
    reference = tiny.reference()
    monkeypatch.setattr(LycorisNetwork, "TARGET_REPLACE_MODULE", [])
    monkeypatch.setattr(LycorisNetwork, "TARGET_REPLACE_NAME", [r".*\.(to_[qkv]|to_out|w[12]|linear_1)$"])
    network = LycorisNetwork(reference, **({"network_module": "lokr", "lora_dim": 3, "alpha": 2} | options))
    network.apply_to()
    randomise(network)
    network.save_weights(str(file), None, None)
    return reference


IN_UNIT = ("both in factors", "dora of rows", "loha", "low rank, dora of columns")
"""One of each algorithm; all of them in `make test`."""


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in IN_UNIT else pytest.mark.slow) for name in LYCORIS]
)
def test_lycoris(name, model, monkeypatch, tmp_path):
    file = tmp_path / "style.safetensors"
    expected = theirs(lycoris(file, monkeypatch, **LYCORIS[name]))
    lora = load_lora(file, model)
    assert tiny.relative(ours(model, (lora, 1.0)), expected) <= TOLERANCE
    assert tiny.relative(ours(model), expected) > 1e-3
    dotted = {key.replace("lycoris_", "lycoris."): tensor for key, tensor in load_file(file).items()}
    save_file(dotted, file)
    torch.testing.assert_close(ours(model, (load_lora(file, model), 1.0)), ours(model, (lora, 1.0)), rtol=0, atol=0)


@pytest.mark.parametrize("kind", ["bare", "diffusion_model", "transformer", "lora_unet", "base_model.model"])
def test_loha_under_other_trainers_keys(kind, model, monkeypatch, tmp_path):
    file = tmp_path / "style.safetensors"
    expected = theirs(lycoris(file, monkeypatch, network_module="loha", alpha=30))
    names = {f"lycoris_{name.replace('.', '_')}": name for name in layers(model)}
    state = {}
    for key, tensor in load_file(file).items():
        layer, _, part = key.partition(".")
        own = f"lora_unet_{layer.removeprefix('lycoris_')}" if kind == "lora_unet" else f"{kind}.{names[layer]}"
        state[f"{own.removeprefix('bare.')}.{part}"] = tensor
    save_file(state, file)
    assert tiny.relative(ours(model, (load_lora(file, model), 1.0)), expected) <= TOLERANCE


@pytest.mark.parametrize(
    ("module", "kind"),
    [
        ("glora", "GLoRA"),
        ("diag-oft", "OFT"),
        ("boft", "OFT"),
        ("ia3", "IA3"),
        ("full", "differences of whole weights"),
    ],
)
def test_what_lycoris_writes_and_is_not_read(module, kind, model, monkeypatch, tmp_path):
    lycoris(tmp_path / "style.safetensors", monkeypatch, network_module=module)
    with pytest.raises(CheckpointError, match=rf"no LoRA of the transformer: .*\({kind}, which is not supported\)"):
        load_lora(tmp_path / "style.safetensors", model)


@pytest.mark.parametrize("columns", [False, True])
def test_the_weight_of_dora_goes_from_none_to_all(columns, monkeypatch, tmp_path, base):
    """W + w·(W' − W), as ComfyUI's strength: here with the weights themselves replaced."""
    file = tmp_path / "style.safetensors"
    lycoris(file, monkeypatch, network_module="locon", weight_decompose=True, wd_on_out=not columns)
    plain, state = tiny.reference().state_dict(), load_file(file)
    merged = dict(plain)
    for name in {key.rsplit(".lora_")[0] for key in state if ".lora_" in key}:
        key = next(k for k in plain if f"lycoris_{k.removesuffix('.weight').replace('.', '_')}" == name)
        up, down, m = (state[f"{name}.{part}"] for part in ("lora_up.weight", "lora_down.weight", "dora_scale"))
        new = plain[key] + 2 / 3 * up @ down
        new = m * new / new.norm(dim=0 if columns else 1, keepdim=True)
        merged[key] = plain[key] + 0.3 * (new - plain[key])
    reference = tiny.reference()
    reference.load_state_dict(merged)
    mine = tiny.ours(base)
    result = ours(mine, (load_lora(file, mine), 0.3))
    assert tiny.relative(result, theirs(reference)) <= TOLERANCE


def quantised(base, scheme: Scheme, *, store: bool):
    """Our transformer with every linear weight in 8 bits, or with what those bits stand for."""
    model = tiny.ours(base, kernels=tiny.SEPARATE)
    for layer in model.modules():
        if isinstance(layer, Linear):
            top = layer.weight.abs().amax(dim=1, keepdim=True)
            largest, dtype = (127, torch.int8) if scheme is Scheme.INT8 else (448, torch.float8_e4m3fn)
            values = layer.weight * largest / top
            data = (values.round() if scheme is Scheme.INT8 else values).to(dtype)
            weight = Quantized(scheme, {"data": data, "scale": top / largest}, layer.weight.shape)
            if store:
                layer.store(weight)
            else:
                layer.weight.data = weight.dense(torch.float32)
    return model if store else model.copy_with(tiny.FUSED)


@pytest.mark.parametrize("scheme", [Scheme.INT8, Scheme.FP8])
def test_on_quantised_weights(scheme, base, saved, monkeypatch, tmp_path):
    columns = tmp_path / "columns.safetensors"
    lycoris(columns, monkeypatch, weight_decompose=True, wd_on_out=False)
    weights = {saved["every layer, several ranks"][0]: 0.5, saved["dora"][0]: 0.2, columns: 0.1}
    kept, dense = (quantised(base, scheme, store=store) for store in (True, False))
    results = [ours(mine, *((load_lora(p, mine), w) for p, w in weights.items())) for mine in (kept, dense)]
    assert tiny.relative(*results) <= TOLERANCE
    assert tiny.relative(results[0], ours(dense)) > 1e-2


@torch.no_grad()
def test_two_requests_do_not_disturb_each_other(model, saved):
    loras = [(load_lora(saved[name][0], model), 1.0) for name in ("plain", "dora")]
    alone = [ours(model), ours(model, loras[0]), ours(model, loras[1])]
    latent, timestep, *text = INPUTS
    requests = [model.condition(*text, (4, 4), deltas=deltas(of, CPU, torch.float32)) for of in ([], *zip(loras))]
    modulations = [model.modulation(timestep, c) for c in requests]
    for c, modulation, expected in zip(requests, modulations, alone, strict=True):
        assert torch.equal(model.velocity([latent], [modulation], RaggedBatch.of([c]))[0], expected)
    assert not torch.equal(alone[0], alone[1])


@pytest.mark.parametrize("name", ["plain", "dora"])
def test_bfloat16_is_as_near_as_pefts(name, base, saved, tmp_path):
    folder, exact = saved[name]
    latent, timestep, *text = (INPUTS[0].bfloat16(), INPUTS[1], *(tensor.bfloat16() for tensor in INPUTS[2:]))
    peft = peft_folder(tmp_path, CONFIGS[name]).bfloat16()
    mine = tiny.ours(base, kernels=tiny.SEPARATE).bfloat16().copy_with(tiny.FUSED)
    with torch.no_grad():
        c = mine.condition(*text, (4, 4), deltas=deltas([(load_lora(folder, mine), 1.0)], CPU, torch.bfloat16))
        result = mine.velocity_at(latent, timestep, c)
        reference = -peft(latent, timestep, *text, return_dict=False)[0]
    assert (result - exact).norm() <= 1.2 * (reference - exact).norm()


@pytest.mark.long
@torch.no_grad()
def test_a_step_is_still_one_graph(model, saved, monkeypatch, tmp_path):
    lycoris(tmp_path / "rows.safetensors", monkeypatch, weight_decompose=True)
    lycoris(
        tmp_path / "columns.safetensors", monkeypatch, network_module="locon", weight_decompose=True, wd_on_out=False
    )
    lycoris(tmp_path / "loha.safetensors", monkeypatch, network_module="loha")
    own = [tmp_path / f"{name}.safetensors" for name in ("rows", "columns", "loha")]
    paths = (saved["every layer, several ranks"][0], *own)
    loras = [(load_lora(path, model), 0.3) for path in paths]
    latent, timestep, *text = INPUTS
    compiled = torch.compile(model.velocity, fullgraph=True, backend="eager")
    for stance, weight in (("default", 1.0), ("fail_on_recompile", 0.6)):  # one graph for all weights of a LoRA
        weighted = [(lora, weight * w) for lora, w in loras]
        c = model.condition(*text, (4, 4), deltas=deltas(weighted, CPU, torch.float32))
        modulation = model.modulation(timestep, c)
        with torch.compiler.set_stance(stance):
            result = compiled([latent], [modulation], RaggedBatch.of([c]))[0]
        torch.testing.assert_close(result, model.velocity([latent], [modulation], RaggedBatch.of([c]))[0])


def low_rank(outputs: int, inputs: int, **more) -> LowRank:
    return LowRank(torch.ones(2, inputs), torch.ones(outputs, 2), 1.0, **more)


def file_of(**adapters) -> LoraFile:
    return LoraFile("style", LoraFormat.PEFT, adapters, ())


def test_says_what_does_not_match(model):
    name = "double_stream_blocks.0.block.attn1.to_q"
    lora = match(
        file_of(**{f"transformer.{name}": low_rank(128, 128), "transformer_blocks.7.to_q": low_rank(8, 8)}),
        layers(model),
    )
    assert set(lora.parts) == {name}
    assert (lora.layers, lora.notes) == (2, ("1 of its 2 layers are not in this model (transformer_blocks.7.to_q)",))
    assert lora.report == f"peft, 1 of 2 layers matched; {lora.notes[0]}"
    told = ("the LoRA style is used in part: 1 of its 2 layers are not in this model (transformer_blocks.7.to_q)",)
    assert warnings([(lora, 0.5), (lora, 1.0)]) == told
    assert warnings([(lora, 0.0)]) == ()
    whole = match(file_of(**{name: low_rank(128, 128)}), layers(model))
    assert warnings([(whole, 1.0)]) == ()
    with pytest.raises(
        CheckpointError, match=r"matches no layer.*transformer_blocks\.7\.to_q.*accepted: layers such as"
    ):
        match(file_of(**{"transformer_blocks.7.to_q": low_rank(8, 8)}), layers(model))


def test_another_models_shapes_are_refused(model):
    name = "double_stream_blocks.0.block.attn1.to_q"
    with pytest.raises(CheckpointError, match=rf"\[3072, 3072\] for {name}, which is \[128, 128\]"):
        match(file_of(**{name: low_rank(3072, 3072)}), layers(model))
    with pytest.raises(CheckpointError, match=rf"magnitude of {name}.*\[7, 1\].*\[128, 1\]"):
        match(file_of(**{name: low_rank(128, 128, magnitude=torch.ones(7, 1))}), layers(model))


def test_one_layer_under_two_names_is_refused(model):
    name = "double_stream_blocks.0.block.attn1.to_q"
    adapters = {f"{prefix}.{name}": low_rank(128, 128) for prefix in ("transformer", "diffusion_model")}
    with pytest.raises(CheckpointError, match=f"changes {name} twice"):
        match(file_of(**adapters), layers(model))


def test_underscores_that_may_mean_two_layers_are_refused():
    both = {"a.b_c": Linear(4, 4), "a_b.c": Linear(4, 4)}
    with pytest.raises(CheckpointError, match=r"may be a\.b_c or a_b\.c"):
        match(file_of(lora_unet_a_b_c=low_rank(4, 4)), both)
    assert set(match(file_of(**{"transformer.a_b.c": low_rank(4, 4)}), both).parts) == {"a_b.c"}


def test_a_row_of_zeros_stays_one():
    layer = Linear(4, 3, bias=False)
    layer.weight.data[1] = 0
    adapter = LowRank(torch.ones(2, 4), torch.tensor([[1.0, 1.0], [0, 0], [1, 1]]), 1.0, torch.ones(3, 1))
    made = deltas([(match(file_of(layer=adapter), {"layer": layer}), 1.0)], CPU, torch.float16)
    x = torch.ones(1, 4, dtype=torch.float16)
    added = made["layer"][0](x, layer.half()(x))
    assert added[0, 1] == 0
    assert added.isfinite().all()


@pytest.mark.parametrize("weight", [math.nan, math.inf])
def test_weights_are_numbers(weight, model):
    lora = match(file_of(**{"x_embedder.proj": low_rank(128, 64)}), layers(model))
    with pytest.raises(InvalidInput, match=f"style is {weight}; accepted"):
        checked_bytes([(lora, weight)], CPU, torch.float32)


MILLION = torch.full((4, 4), 1e6)
BILLION_SQUARED = torch.full((4, 4), 1e18)
HALF, BRAIN = torch.float16, torch.bfloat16


@pytest.mark.parametrize(
    ("adapter", "dtype", "weight", "fits"),
    [
        (LowRank(torch.ones(1, 4), torch.ones(4, 1), 6e4), HALF, 1.0, True),
        (LowRank(torch.ones(1, 4), torch.ones(4, 1), 6e4), HALF, -2.0, False),
        (LowRank(torch.full((1, 4), 1e5), torch.ones(4, 1), 1e-5), HALF, 1.0, False),
        (LowRank(torch.full((1, 4), 1e5), torch.ones(4, 1), 1e-5), BRAIN, 1.0, True),
        (LowRank(torch.ones(1, 4), torch.full((4, 1), 1e18), 1.0), BRAIN, 1.0, True),
        (LowRank(torch.ones(1, 4), torch.full((4, 1), 1e20), 1.0), BRAIN, 1.0, False),  # an RMSNorm squares it
        (LowRank(torch.ones(1, 4), torch.full((4, 1), 3.4e38), 1.0), BRAIN, 1.0, False),  # rounded up to infinity
        (LowRank(torch.ones(1, 4), torch.full((4, 1), 1e18), 1.0), torch.float32, 1.0, True),
        (LowRank(torch.ones(1, 4), torch.ones(4, 1), 1e30), torch.float32, 1.0, False),
        (LowRank(torch.ones(1, 4), torch.full((4, 1), 3e38), 1.0), torch.float32, 2.0, False),
        (LowRank(torch.ones(1, 4, dtype=torch.float64) * 1e300, torch.ones(4, 1), 1.0), torch.float32, 1.0, False),
        (LowRank(torch.ones(1, 4), torch.zeros(4, 1), 1e308), torch.float32, 10.0, False),  # infinity times 0
        (Kronecker(torch.ones(2, 2), torch.full((2, 2), 1e5), 1.0), HALF, 1.0, False),
        (Kronecker(torch.ones(2, 2), torch.ones(2, 2), 1e5), HALF, 0.5, True),
        (Hadamard(MILLION, MILLION, MILLION, MILLION, 1e-24), BRAIN, 1.0, True),
        (Hadamard(MILLION, MILLION, MILLION, MILLION, 1e-3), HALF, 1.0, False),
        (Hadamard(*[BILLION_SQUARED] * 4, 1.0), torch.float32, 1.0, False),
        (Hadamard(*[torch.full((1, 4), 1e5), torch.ones(4, 1)] * 2, 1e-9), HALF, 1.0, False),  # as low rank
        (LowRank(torch.ones(1, 4), torch.ones(4, 1), 1.0, torch.full((4, 1), 1e6)), HALF, 1.0, False),
        (LowRank(torch.ones(1, 4), torch.ones(4, 1), 1.0, torch.full((1, 4), 1e6)), HALF, 1.0, False),
    ],
)  # fmt: skip
def test_a_scale_beyond_the_compute_type_is_refused(adapter: Adapter, dtype, weight, fits):
    layer = Linear(4, 4, bias=False)
    layer.weight.data.fill_(0.5)
    lora = match(file_of(layer=adapter), {"layer": layer})
    if fits:
        assert checked_bytes([(lora, weight)], CPU, dtype) > 0
        assert layer.weight.shape == deltas([(lora, weight)], CPU, dtype)["layer"][0](
            torch.zeros(4, 4, dtype=dtype), torch.zeros(4, 4, dtype=dtype)
        ).shape  # fmt: skip
        return
    name = str(dtype).removeprefix("torch.")
    message = f"loras gives 'style' the scale {weight:g}, .* layer layer is not finite in {name}; accepted: a smaller"
    with pytest.raises(InvalidInput, match=message):
        checked_bytes([(lora, weight)], CPU, dtype)
    assert checked_bytes([(lora, 0.0)], CPU, dtype) == 0
    assert deltas([(lora, 0.0)], CPU, dtype) == {}


def tensors_within(held) -> list[torch.Tensor]:
    """The tensors of a delta, and of the one within a DoRA's."""
    values = [getattr(held, field.name) for field in dataclasses.fields(held)]
    inner = [tensor for value in values if dataclasses.is_dataclass(value) for tensor in tensors_within(value)]
    return [value for value in values if isinstance(value, torch.Tensor)] + inner


KINDS = {
    "low rank": LowRank(torch.rand(2, 6), torch.rand(8, 2), 1.0),
    "LoKr": Kronecker(torch.rand(2, 3), torch.rand(4, 2), 1.0),
    "LoHa": Hadamard(torch.rand(2, 6), torch.rand(8, 2), torch.rand(2, 6), torch.rand(8, 2), 1.0),
    "DoRA of rows": LowRank(torch.rand(2, 6), torch.rand(8, 2), 1.0, torch.rand(8, 1)),
    "DoRA of columns": LowRank(torch.rand(2, 6), torch.rand(8, 2), 1.0, torch.rand(1, 6)),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", KINDS)
def test_the_bytes_are_those_of_the_deltas(kind, dtype):
    """Checking keeps none of what it makes: the same bytes again are what a request holds while it is denoised."""
    lora = match(file_of(layer=KINDS[kind]), {"layer": Linear(6, 8)})
    loras = [(lora, 1.0), (lora, 0.5), (lora, 0.0)]
    with LiveBytes() as live:
        counted = checked_bytes(loras, CPU, dtype)
        assert live.now == 0
        assert live.peak > 0
        made = deltas(loras, CPU, dtype)
    assert len(made["layer"]) == 2
    assert counted == sum(tensor.nbytes for delta in made["layer"] for tensor in tensors_within(delta))


@pytest.mark.parametrize("magnitude", [torch.ones(4, 1), torch.ones(1, 4)])
def test_dora_over_values_without_a_norm_is_refused(magnitude):
    adapter = LowRank(torch.ones(1, 4), torch.ones(4, 1), 1e30, magnitude)
    with pytest.raises(CheckpointError, match="layer layer has a norm that is not finite"):
        match(file_of(layer=adapter), {"layer": Linear(4, 4)})


@pytest.mark.parametrize(("rank", "built"), [(1, 2), (2, 1), (9, 1)])
def test_loha_is_multiplied_the_cheaper_way(rank, built):
    up, down = torch.randn(2, 6, rank), torch.randn(2, rank, 6)
    change = HadamardDelta(down[0], up[0], down[1], up[1])
    x = torch.randn(3, 6)
    assert len(change.matrices(torch.float32)) == built
    torch.testing.assert_close(change(x, x), x @ ((up[0] @ down[0]) * (up[1] @ down[1])).mT)


@pytest.mark.parametrize("stored", [torch.float16, torch.bfloat16])
def test_the_scale_is_multiplied_before_anything_is_rounded(stored):
    matrices = [torch.rand(4, 4).to(stored) for _ in range(4)]
    factor, x = 1 + 2**-11, torch.rand(3, 4)
    for kind, given in ((LowRank, matrices[:2]), (Kronecker, [m[:2, :2] for m in matrices[:2]]), (Hadamard, matrices)):
        adapter = kind(*given, 1.0)
        lora = match(file_of(layer=adapter), {"layer": Linear(4, 4, bias=False)})
        added = deltas([(lora, factor)], CPU, torch.float32)["layer"][0](x, x)
        torch.testing.assert_close(added, factor * x @ adapter.delta().mT, rtol=1e-6, atol=0)


def test_a_lokr_whose_sides_are_a_row_and_a_column_takes_no_more_than_another():
    """256 × 4096 between both products, for each token, from a file of 17 KB."""
    left, right = torch.randn(1, 4096), torch.randn(256, 1)
    change = KroneckerDelta(left, right)
    assert change.left_first
    x = torch.randn(2, 3, 4096)
    torch.testing.assert_close(change(x, x), x @ torch.kron(left, right).T, atol=1e-3, rtol=1e-4)
    usual = KroneckerDelta(torch.randn(4, 5), torch.randn(64, 51))  # as trainers factor 256 and 255
    assert not usual.left_first
    x = torch.randn(2, 3, 255)
    torch.testing.assert_close(usual(x, x), x @ torch.kron(usual.left, usual.right).T, atol=1e-3, rtol=1e-4)
