"""Published files to named tensors, and back: safetensors, ComfyUI single files, GGUF, LoRA. Start in `detect.py`.

Knows tensors and their published names, but no modules, requests or images.
"""
