"""Record what bitsandbytes makes of two matrices: `fixtures/bitsandbytes.safetensors`.

    .venv/bin/pip install bitsandbytes==0.50.2
    .venv/bin/python tests/formats/record_bitsandbytes.py

The file holds each matrix, its 4-bit tensors under the names that `Linear4bit` saves, and bitsandbytes' own
dequantisation. "plain" is float32 with a last block that is cut; "double" is bfloat16, its scales quantised too.
"""

from pathlib import Path

import bitsandbytes.functional as bnb
import torch
from safetensors.torch import save_file

CASES = {"plain": ((48, 100), torch.float32, False), "double": ((130, 128), torch.bfloat16, True)}


def record() -> dict[str, torch.Tensor]:
    """Return the fixture's tensors."""
    generator = torch.Generator().manual_seed(5)
    tensors: dict[str, torch.Tensor] = {}
    for name, (shape, dtype, nested) in CASES.items():
        matrix = (torch.randn(shape, generator=generator) * 0.02).to(dtype)
        matrix[3, :64] = 0
        packed, state = bnb.quantize_4bit(matrix, quant_type="nf4", compress_statistics=nested)
        tensors[f"{name}.matrix"] = matrix
        tensors[f"{name}.dequantized"] = bnb.dequantize_4bit(packed, state)
        tensors[f"{name}.weight"] = packed
        tensors |= {f"{name}.weight.{key}": value for key, value in state.as_dict(packed=True).items()}
    return tensors


if __name__ == "__main__":
    save_file(record(), Path(__file__).parent / "fixtures" / "bitsandbytes.safetensors")
