"""Placement candidates: the ways to place a model's parts on a machine, each in a weight format, best first.

`candidates` enumerates them. `plan.py` adds up the memory of each and takes the first that fits. So more memory never
leads to a worse placement, and equal input gives equal plans. Knows no sizes.

The order: first the transformer (`tiers`), because its weights decide the image and its placement the time; then the
encoders' weight formats, of which 8 and even 4 bits change little (docs/MEMORY.md); then decoding without tiles; then
the fastest. On a machine without a graphics card, or whose GPU shares its memory, the device's memory is the host's.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import StrEnum
from itertools import product

from hidream.errors import ConfigurationError
from hidream.types import SAMPLING_PRESETS, Render, Size, Variant, WeightFormat

HOST_RESERVE_BYTES = 3_000_000_000
"""What the system, Python and torch's libraries take of the host's memory. An assumption."""
ECC_SHARE = 1 / 16
"""What error correction takes of a card's memory where it has no chips of its own for it (T4, A10, L4)."""
MPS_SHARE = 0.75
"""What Metal lets the GPU have of the memory (recommendedMaxWorkingSetSize of the larger machines)."""
TILE_PX = 512
"""Side of the tiles in which an image is decoded, where it cannot be decoded whole."""
LOSS = {WeightFormat.COMPUTE: 0, WeightFormat.STORED: 0, WeightFormat.INT8: 1, WeightFormat.FP8: 2, WeightFormat.NF4: 3}
"""Which weight format changes the weights more; STORED changes nothing in the file."""


class Placement(StrEnum):
    """Where a part lives.

    DEVICE: on the device, always.
    SEQUENTIAL: in host memory; copied to the device for its phase, and dropped there when another part needs the
        memory. On a CPU: the mapping of its file, whose pages the system takes back.
    STREAMED: in host memory; copied to the device matrix by matrix or block by block, the next while one computes.
    HOST: in host memory, and computed there.
    """

    DEVICE = "device"
    SEQUENTIAL = "sequential"
    STREAMED = "streamed"
    HOST = "host"


@dataclass(frozen=True, slots=True)
class Hardware:
    """What there is. `device_bytes` counts for a card only; elsewhere the device's memory is the host's."""

    device: str  # type of a torch device: cuda, mps or cpu
    device_bytes: int
    host_bytes: int
    fp8: bool = True  # whether it converts from float8

    @classmethod
    def card(cls, device_gb: float, host_gb: float) -> Hardware:
        """Describe a card as it is sold: n GB are n·2^30 bytes, of which error correction may take some."""
        return cls("cuda", int(device_gb * 2**30 * (1 - ECC_SHARE)), int(host_gb * 2**30))

    @classmethod
    def cpu(cls, host_gb: float) -> Hardware:
        """Describe a machine without a card."""
        return cls("cpu", 0, int(host_gb * 2**30))

    @property
    def separate(self) -> bool:
        """Whether the device has memory of its own."""
        return self.device not in ("cpu", "mps")

    @property
    def device_budget(self) -> int:
        """Bytes that may be used on the device: none where the system takes all there is."""
        if self.separate:
            return self.device_bytes
        share = MPS_SHARE if self.device == "mps" else 1.0
        return max(round(share * self.host_bytes) - HOST_RESERVE_BYTES, 0)

    @property
    def host_budget(self) -> int:
        """Bytes that may be used in the host's memory: none where the system takes all there is."""
        return max(self.host_bytes - HOST_RESERVE_BYTES, 0)

    @property
    def compute_bytes(self) -> int:
        """Bytes of the usual compute type: bfloat16, on a CPU float32."""
        return 4 if self.device == "cpu" else 2


@dataclass(frozen=True, slots=True)
class Options:
    """What the plan is for. A part without a requested weight format takes the best that fits ("auto")."""

    size: Size = field(default_factory=lambda: Size(1024, 1024))
    render: Render = Render.NATIVE
    guided: bool = False
    steps: int = 28
    transformer: WeightFormat | None = None
    encoders: WeightFormat | None = None  # T5 and Llama; the CLIPs are small and keep 16 bits
    stored_bits: float = 16.0  # bits per value of the transformer's file, for WeightFormat.STORED: 4.5 for Q4_K
    encoder_bits: float = 16.0  # the same for T5's and Llama's files
    fewest_bits: int = 4  # "auto" stores no value in fewer: 16, 8 or 4
    lora_bytes: int = 0  # of the LoRAs of one request
    compute_bytes: int | None = None  # of a value as it is computed; None is the device's usual type
    decode_bytes: int | None = None  # the same for the autoencoder; None is as the rest

    @classmethod
    def of(cls, variant: Variant, size: Size, transformer: WeightFormat | None = None, fewest_bits: int = 4) -> Options:
        """Make options with a variant's own steps and guidance."""
        preset = SAMPLING_PRESETS[variant]
        guided = preset.guidance > 1
        return cls(size, guided=guided, steps=preset.steps, transformer=transformer, fewest_bits=fewest_bits)


@dataclass(frozen=True, slots=True)
class Candidate:
    """One way to place a model."""

    storage: WeightFormat  # of the transformer
    blocks: Placement
    others: Placement  # of what makes modulations and captions
    encoders: tuple[WeightFormat, ...]
    text: Placement
    vae: Placement
    tile_px: int | None


def candidates(hardware: Hardware, options: Options) -> Iterator[Candidate]:
    """Yield all placement candidates, best first."""
    device, sequential_offload, streamed = Placement.DEVICE, Placement.SEQUENTIAL, Placement.STREAMED
    for storage, is_streamed in tiers(hardware, options):
        places = [(device, device), (device, streamed), (sequential_offload, streamed)]
        if is_streamed:
            places = [(streamed, streamed)]
        elif not _can_be_freed(hardware, storage):
            places = [(device, device)]
        vaes = [sequential_offload] if is_streamed else [device] + [sequential_offload] * hardware.separate
        for (text, encoders), tile_px, (blocks, others), vae in product(
            _encoder_placements(hardware, options, is_streamed), (None, TILE_PX), places, vaes
        ):
            yield Candidate(storage, blocks, others, encoders, text, vae, tile_px)


def tiers(hardware: Hardware, options: Options) -> list[tuple[WeightFormat, bool]]:
    """Return the tiers of the transformer's blocks, best first: (weight format, whether they are streamed).

    8 bits that stay are taken before 16 bits that are streamed: they change a weight by a hundredth of the spread of
    its row, while streaming brings up to 28 GB to the device in every step. 8 bits that are streamed are taken before
    4 bits that stay, which change it by a tenth. Raises ConfigurationError.
    """
    storages = _storages(hardware, options, options.transformer)
    found: list[tuple[WeightFormat, bool]] = []
    for storage in storages:
        found.append((storage, False))
        if hardware.separate and (LOSS[storage] or len(storages) == 1):
            found.append((storage, True))
    return found


def _storages(hardware: Hardware, options: Options, requested: WeightFormat | None) -> list[WeightFormat]:
    """Return the weight formats that a part may have, best first."""
    if requested is WeightFormat.FP8 and not hardware.fp8:
        raise ConfigurationError(f"storage is fp8, which {hardware.device} does not support; accepted: int8, nf4")
    if requested is not None:
        return [requested]
    exact = [WeightFormat.COMPUTE, WeightFormat.STORED] if hardware.device == "cpu" else [WeightFormat.COMPUTE]
    fewer = ((8, WeightFormat.INT8), (4, WeightFormat.NF4))
    return exact + [storage for bits, storage in fewer if bits >= options.fewest_bits]


def _encoder_placements(
    hardware: Hardware, options: Options, is_streamed: bool
) -> list[tuple[Placement, tuple[WeightFormat, ...]]]:
    """Return the placements of the encoders, best first; on the host only if not even the smallest can be offloaded.

    Where blocks are streamed, encoders (and the autoencoder) are offloaded: they need their memory once per image,
    the blocks in every step.
    """
    storages = _storages(hardware, options, options.encoders)

    def loss(pair: tuple[int, ...]) -> tuple[int, int, tuple[int, ...]]:
        losses = [LOSS[storages[i]] for i in pair]
        return sum(losses), max(losses), pair

    pairs = sorted(product(range(len(storages)), repeat=2), key=loss)
    types = [(storages[t5], storages[llama]) for t5, llama in pairs]
    candidates = [
        (place, each)
        for each in types
        for place in ((Placement.SEQUENTIAL,) if is_streamed else (Placement.DEVICE, Placement.SEQUENTIAL))
        if place is Placement.DEVICE or all(_can_be_freed(hardware, storage) for storage in each)
    ]
    if hardware.separate:
        candidates += [(Placement.HOST, each) for each in types]
    exact = dict.fromkeys(Placement, WeightFormat.COMPUTE)
    if hardware.device == "cpu":
        exact[Placement.SEQUENTIAL] = WeightFormat.STORED
    return [(place, (exact[place], exact[place], *each)) for place, each in candidates]


def _can_be_freed(hardware: Hardware, storage: WeightFormat) -> bool:
    """Whether a part can free its memory: on a CPU only as the mapping of a file, which holds no float32."""
    return hardware.device != "cpu" or storage is not WeightFormat.COMPUTE
