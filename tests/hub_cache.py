"""Folders put into a cache of the Hub, as `huggingface_hub` has them, without a server."""

from __future__ import annotations

import hashlib
from pathlib import Path

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def git_sha1(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def digest_of(path: str, content: bytes) -> str:
    """As the Hub has it: large files are in Git LFS, under their SHA-256."""
    return hashlib.sha256(content).hexdigest() if path.endswith(".safetensors") else git_sha1(content)


def put(cache: Path, repository: str, files: dict[str, bytes | Path], *, commit: str = COMMIT, ref: str = "main"):
    """Write blobs, links and a ref; returns the snapshot."""
    folder = cache / f"models--{repository.replace('/', '--')}"
    snapshot = folder / "snapshots" / commit
    for path, source in files.items():
        content = source.read_bytes() if isinstance(source, Path) else source
        blob, link = folder / "blobs" / digest_of(path, content), snapshot / path
        for each in (blob, link):
            each.parent.mkdir(parents=True, exist_ok=True)
        blob.write_bytes(content)
        link.symlink_to(blob)
    if ref:
        (folder / "refs").mkdir(exist_ok=True)
        (folder / "refs" / ref).write_text(commit)
    return snapshot


def nano_files(nano: Path) -> tuple[dict[str, Path], dict[str, Path]]:
    """Nano's Dev as it would be published: an official folder, and Llama in a repository of its own."""
    official, llama = {}, {}
    for file in sorted(path for path in nano.rglob("*") if path.is_file()):
        path = file.relative_to(nano).as_posix()
        if path.startswith(("text_encoder_4/", "tokenizer_4/")):
            llama[file.name] = file
        else:
            official[path] = file
    return official, llama
