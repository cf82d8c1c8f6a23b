"""Starts the ComfyUI in the current folder, with its own arguments: `python launch_comfyui.py PORT_FILE ARGUMENTS...`.

Two things differ from `python main.py`:

- PyPI's torchvision registers shapes for operators that a torch without CUDA does not have; these failures are ignored.
  PyPI's torchaudio cannot be loaded there; it is hidden, and ComfyUI goes on without it.
- ComfyUI listens on a port of the system's choice (`--port 0`), whose number is written to PORT_FILE when it listens.
"""

import runpy
import sys
from pathlib import Path


def tolerate_missing_operators():
    import torch

    real = torch.library.register_fake

    def register_fake(*args, **options):
        register = real(*args, **options)

        def tolerant(function):
            try:
                return register(function)
            except RuntimeError:
                return function

        return tolerant

    torch.library.register_fake = register_fake
    try:
        import torchaudio  # noqa: F401
    except (ImportError, OSError):
        sys.modules["torchaudio"] = None  # as if it were not there: transformers imports what it finds


def report_port(file):
    from aiohttp import web

    real = web.TCPSite.start

    async def start(site):
        await real(site)
        written = file.with_suffix(".new")
        written.write_text(str(site._server.sockets[0].getsockname()[1]))
        written.replace(file)

    web.TCPSite.start = start


if __name__ == "__main__":
    port_file, *arguments = sys.argv[1:]
    tolerate_missing_operators()
    report_port(Path(port_file))
    sys.argv = ["main.py", *arguments]
    sys.path[0] = str(Path.cwd())
    runpy.run_path("main.py", run_name="__main__")
