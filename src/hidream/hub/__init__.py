"""Models of the Hugging Face Hub: which ones hidream runs, what of them is in the Hub's cache, and downloading them.

Start at `locate.py`, which turns the id of a model into a folder, without a network. `pull.py` downloads, and is only
called by `hidream models pull`. The cache is that of `huggingface_hub`, so other programs use the same files, and
HF_HOME, HF_ENDPOINT, HF_TOKEN and HF_HUB_OFFLINE mean what they mean there. Nothing here imports torch or
reads weights.
"""
