"""The command line: `hidream generate`, `serve`, `worker`, `keys`, `info`, `convert`.

Reads flags and settings, calls one function of one room, prints for people. Imports of rooms happen inside the
commands, so that `hidream --help` answers at once.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import re
import secrets
import sys
from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from hidream import __version__, settings
from hidream.errors import HiDreamError, InvalidInput
from hidream.types import (
    SEED_MAX,
    STRENGTH,
    Conformance,
    ImageFormat,
    ImageRequest,
    LoraUse,
    Render,
    Sampler,
    Size,
    Storage,
    Variant,
)

if TYPE_CHECKING:
    from hidream.model.loading import Model
    from hidream.store.database import Database

T = TypeVar("T")

CLI_SMALLEST_PX = 256
PARTS = {
    "llama": "Llama-3.1-8B-Instruct, a folder or a file",
    "t5": "T5-XXL's encoder, a folder or a file",
    "clip_l": "HiDream's CLIP-L, a folder or a file",
    "clip_g": "HiDream's CLIP-G, a folder or a file",
    "vae": "the autoencoder, a folder or a file",
    "tokenizers": "folder of the four tokenizers, for single files",
    "loras": "folder of LoRAs",
}
"""What `[models]` names beside the variants, for the flags."""
SUFFIXES = {
    ".png": ImageFormat.PNG,
    ".jpg": ImageFormat.JPEG,
    ".jpeg": ImageFormat.JPEG,
    ".webp": ImageFormat.WEBP,
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; the exit status is 0, or 1 after an error that is printed in one line."""
    arguments = _parser().parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s", stream=sys.stderr)
    logging.getLogger("alembic").setLevel(logging.WARNING)  # it tells of every start as of a migration
    try:
        return int(arguments.command(arguments, settings.load(os.environ, _flags(arguments))))
    except HiDreamError as error:
        print(f"hidream: {error.message}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


def _let_threads_sleep() -> None:
    """Have waiting OpenMP threads sleep instead of spin; to be called before torch is imported.

    Where anything else wants the cores, spinning is ruinous: beside one busy process a nano picture took 30 to 70 s
    on two cores instead of 1.0, sleeping 1.3 (1.2 on an idle machine). OMP_WAIT_POLICY=active brings the spinning back.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")


def _generate(arguments: argparse.Namespace, config: settings.Settings) -> int:
    output_format = SUFFIXES.get(arguments.out.suffix.lower())
    if output_format is None:
        raise InvalidInput(f"--out is {str(arguments.out)!r}; accepted: a name that ends in {', '.join(SUFFIXES)}")
    request = ImageRequest(
        prompt=arguments.prompt,
        size=Size.parse(arguments.size, CLI_SMALLEST_PX),
        seed=secrets.randbelow(SEED_MAX + 1) if arguments.seed == -1 else arguments.seed,
        negative_prompt=arguments.negative,
        steps=arguments.steps,
        guidance=arguments.guidance,
        shift=arguments.shift,
        sampler=arguments.sampler and Sampler(arguments.sampler),
        conformance=Conformance(arguments.conformance),
        render=Render(arguments.render),
        image=_bytes(arguments.image),
        strength=arguments.strength,
        mask=_bytes(arguments.mask),
        loras=tuple(arguments.lora),
    )

    _let_threads_sleep()
    from tqdm import tqdm

    from hidream.model.pipeline import generate
    from hidream.outputs.encode import encode

    model = _load(Variant(arguments.variant), config)
    with tqdm(unit="step", desc=f"seed {request.seed}") as bar:

        def on_step(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        picture = generate(model, request, on_step)
    arguments.out.write_bytes(encode(picture.pixels, output_format, seed=request.seed, version=model.version))
    t = picture.timings
    for warning in picture.warnings:
        print(f"hidream: {warning}", file=sys.stderr)
    print(
        f"{arguments.out}: {request.size}, seed {request.seed}, {model.version}\n"
        f"text {t.text_s:.2f} s, denoise {t.denoise_s:.2f} s, decode {t.decode_s:.2f} s"
    )
    return 0


def _info(arguments: argparse.Namespace, config: settings.Settings) -> int:
    if arguments.plan:
        return _plan(arguments, config)
    import torch

    print(f"hidream   {__version__}, torch {torch.__version__}, {torch.get_num_threads()} threads")
    print(f"home      {config.home}")
    for variant in Variant:
        try:
            model = _load(variant, config)
        except HiDreamError as error:
            print(f"{variant:9} not served: {error.message}")
            continue
        parts = {
            "transformer": [model.transformer],
            "text encoders": model.text.encoders,
            "autoencoder": [model.vae.module],
        }
        tensors = {name: [p for module in modules for p in module.parameters()] for name, modules in parts.items()}
        sizes = ", ".join(
            f"{name} {sum(p.numel() for p in ps):,} parameters ({sum(p.nbytes for p in ps) / 2**20:,.0f} MiB)"
            for name, ps in tensors.items()
        )
        print(f"{variant:9} {model.version} on {model.device}\n          {sizes}")
    return 0


def _plan(arguments: argparse.Namespace, config: settings.Settings) -> int:
    from hidream.model import plan_text
    from hidream.model.ways import Options

    size = Size.parse(arguments.size, CLI_SMALLEST_PX)
    wish = None if config.compute.storage == "auto" else Storage(config.compute.storage)
    options = Options.of(Variant(arguments.variant), size, transformer=wish, fewest_bits=arguments.bits)
    device = config.compute.device if config.compute.device in ("cpu", "mps") else "cuda"
    print(plan_text.tell(arguments.memory, arguments.host, options, device))
    return 0


def _convert(arguments: argparse.Namespace, config: settings.Settings) -> int:
    _let_threads_sleep()
    from tqdm import tqdm

    from hidream.formats.convert import convert, format_of
    from hidream.formats.targets import Format, Wish
    from hidream.model.inferred import published_config

    to = Format(arguments.to) if arguments.to else format_of(arguments.target)
    wish = Wish(to, arguments.type, arguments.shard_size, arguments.force)
    with tqdm(unit="B", unit_scale=True, delay=0.2) as bar:

        def on_bytes(target: Path, done: int, total: int) -> None:
            bar.set_description(target.name, refresh=False)
            bar.total = total
            bar.update(done - bar.n)

        written = convert(arguments.source, arguments.target, wish, published_config, on_bytes)
    for path in written:
        print(path)
    return 0


def _serve(arguments: argparse.Namespace, config: settings.Settings) -> int:
    from hidream.server.serve import run

    return run(config)


def _worker(arguments: argparse.Namespace, config: settings.Settings) -> int:
    _let_threads_sleep()
    from hidream.worker.main import run

    return run(config, with_parent=arguments.with_parent)


def _keys_create(arguments: argparse.Namespace, config: settings.Settings) -> int:
    from hidream.store import keys

    key, secret = _in_store(config, lambda database: keys.create(database, arguments.name))
    print(f"{secret}\nshown once: only its hash is kept; the key's id is {key.id}")
    return 0


def _keys_list(arguments: argparse.Namespace, config: settings.Settings) -> int:
    from hidream.store import keys

    for key in _in_store(config, keys.listed):
        revoked = f"revoked {_day(key.revoked_ms)}" if key.revoked_ms else "valid"
        print(f"{key.id}  created {_day(key.created_ms)}  {revoked:18}  {key.name}")
    return 0


def _keys_revoke(arguments: argparse.Namespace, config: settings.Settings) -> int:
    from hidream.store import keys

    _in_store(config, lambda database: keys.revoke(database, arguments.id))
    print(f"revoked {arguments.id}")
    return 0


def _in_store(config: settings.Settings, call: Callable[[Database], Awaitable[T]]) -> T:
    """Open the database for one call."""
    from hidream.store.database import Database

    async def run() -> T:
        async with Database.open(config.database_url) as database:
            return await call(database)

    return asyncio.run(run())


def _day(ms: int) -> str:
    return datetime.fromtimestamp(ms / 1000, UTC).strftime("%Y-%m-%d")


def _load(variant: Variant, config: settings.Settings) -> Model:
    """Load the configured checkpoint of a variant, or without any configured the embedded one."""
    import torch

    from hidream.model.loading import load
    from hidream.model.weights import Checkpoint

    if config.compute.threads:
        torch.set_num_threads(config.compute.threads)
    parts = config.models.parts(variant)
    return load(
        variant,
        None if parts is None else Checkpoint(**parts),
        device=config.compute.device,
        dtype=config.compute.dtype,
        storage=config.compute.storage,
        memory_gb=config.compute.memory_gb,
        loras=config.models.loras,
        hash_cache=config.hash_cache,
    )


def _bytes(path: Path | None) -> bytes | None:
    """Content of a file that a flag names."""
    try:
        return None if path is None else path.read_bytes()
    except OSError as error:
        raise InvalidInput(f"{path} cannot be read: {error.strerror}") from error


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="hidream", description="The self-hosted home of HiDream-I1.")
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _generate_parser(commands)

    serve = commands.add_parser("serve", help="serve the HTTP API, with a worker beside it")
    serve.add_argument("--host", dest="server.host", help="address to listen on")
    serve.add_argument("--port", dest="server.port", type=int, help="port to listen on; 0 takes a free one")
    _model_flags(serve)
    serve.set_defaults(command=_serve)

    worker = commands.add_parser("worker", help="draw what the database asks for")
    worker.add_argument("--with-parent", action="store_true", help="end when standard input is closed")
    _model_flags(worker)
    worker.set_defaults(command=_worker)

    keys = commands.add_parser("keys", help="make, list and revoke API keys").add_subparsers(
        required=True, metavar="ACTION"
    )
    create = keys.add_parser("create", help="make a key and print it, once")
    create.add_argument("--name", default="", help="whose it is, for the list")
    create.set_defaults(command=_keys_create)
    keys.add_parser("list", help="all keys, revoked ones included").set_defaults(command=_keys_list)
    revoke = keys.add_parser("revoke", help="make a key worthless from now on")
    revoke.add_argument("id", help="as `hidream keys list` shows it")
    revoke.set_defaults(command=_keys_revoke)

    info = commands.add_parser("info", help="models, parameters, memory, device")
    _model_flags(info)
    _plan_flags(info)
    info.set_defaults(command=_info)
    _convert_parser(commands)
    return parser


def _convert_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    convert = commands.add_parser("convert", help="bring weights into another format or type")
    convert.add_argument("source", type=Path, help="a file or folder of one part, or a whole folder")
    convert.add_argument("target", type=Path, help="a file or folder that does not exist yet")
    convert.add_argument("--to", choices=("diffusers", "comfy", "gguf"), help="default: what the target's name says")
    convert.add_argument(
        "--type", help="bf16, fp16, fp32, fp8, fp8_scaled, Q8_0, Q4_0, … (default: as stored, where that can be kept)"
    )
    convert.add_argument(
        "--shard-size", type=_nbytes, default="5GB", help="largest file of a diffusers folder (default: %(default)s)"
    )
    convert.add_argument("--force", action="store_true", help="replace what is there")
    convert.set_defaults(command=_convert)


def _plan_flags(info: argparse.ArgumentParser) -> None:
    info.add_argument("--plan", action="store_true", help="instead, what the published model does with some memory")
    info.add_argument(
        "--memory", type=_gigabytes, default="8,12,16,24,32,48,80", help="cards in GB (default: %(default)s)"
    )
    info.add_argument("--host", type=float, default=64, help="GB of host memory beside the card (default: %(default)s)")
    info.add_argument("--size", default="1024*1024", help="width*height in pixels (default: %(default)s)")
    info.add_argument("--variant", choices=list(Variant), default=Variant.DEV)
    info.add_argument(
        "--bits", type=int, choices=(16, 8, 4), default=4, help="fewest bits of a weight (default: %(default)s)"
    )


def _generate_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    generate = commands.add_parser("generate", help="draw one picture")
    generate.add_argument("prompt")
    generate.add_argument("--size", default="1024*1024", help="width*height in pixels (default: %(default)s)")
    generate.add_argument("--seed", type=_seed, default=-1, help=f"0 to {SEED_MAX}; -1 draws one (default)")
    generate.add_argument("--out", type=Path, default=Path("out.png"), help="a .png, .jpg or .webp file")
    generate.add_argument("--variant", choices=list(Variant), default=Variant.DEV)
    generate.add_argument(
        "--negative", default="", metavar="PROMPT", help="what the picture should not show (full only)"
    )
    generate.add_argument("--steps", type=int, help="denoising steps (default: the variant's own)")
    generate.add_argument("--guidance", type=float, help="classifier-free guidance (default: the variant's own)")
    generate.add_argument("--shift", type=float, help="shift of the noise levels (default: the variant's own)")
    generate.add_argument("--sampler", choices=list(Sampler), help="default: the variant's own")
    generate.add_argument(
        "--conformance",
        choices=list(Conformance),
        default=Conformance.DIFFUSERS,
        help="whose schedule, where they differ",
    )
    generate.add_argument("--image", type=Path, help="a picture to start from")
    generate.add_argument(
        "--strength",
        type=float,
        default=STRENGTH,
        help="how much of --image is redrawn, up to 1 (default: %(default)s)",
    )
    generate.add_argument("--mask", type=Path, help="white where --image may change, and of its size")
    generate.add_argument(
        "--lora",
        type=_lora,
        action="append",
        default=[],
        metavar="NAME[:WEIGHT]",
        help="one of --loras; may be repeated",
    )
    generate.add_argument(
        "--render", choices=list(Render), default=Render.BEST, help="which shape the model itself draws"
    )
    _model_flags(generate)
    generate.set_defaults(command=_generate)


def _model_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--model", type=Path, help="the variant's folder or transformer file (default: as configured, or the embedded)"
    )
    for part, what in PARTS.items():
        parser.add_argument(f"--{part.replace('_', '-')}", dest=f"models.{part}", type=Path, help=what)
    parser.add_argument("--device", dest="compute.device", help="torch device (default: auto)")
    parser.add_argument("--dtype", dest="compute.dtype", help="float32, bfloat16 or float16 (default: auto)")
    parser.add_argument("--storage", dest="compute.storage", help="compute, stored, fp8, int8 or nf4 (default: auto)")
    parser.add_argument("--memory-gb", dest="compute.memory_gb", type=float, help="GB of the device that may be used")
    parser.add_argument("--threads", dest="compute.threads", type=int, help="CPU threads (default: torch's choice)")


def _lora(text: str) -> LoraUse:
    name, _, weight = text.partition(":")
    return LoraUse(name, float(weight or 1))


def _gigabytes(text: str) -> list[float]:
    if not re.fullmatch(r"[1-9]\d{0,4}(\.\d+)?(,[1-9]\d{0,4}(\.\d+)?)*", text):
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of sizes; accepted: gigabytes such as 12,16,24")
    return [float(part) for part in text.split(",")]


def _nbytes(text: str) -> int:
    match = re.fullmatch(r"([1-9]\d{0,4})(KB|MB|GB)", text.upper())
    if not match:
        raise argparse.ArgumentTypeError(f"{text!r} is not a size; accepted: such as 500MB or 5GB")
    return int(match[1]) * {"KB": 10**3, "MB": 10**6, "GB": 10**9}[match[2]]


def _seed(text: str) -> int:
    value = int(text)
    if not -1 <= value <= SEED_MAX:
        raise argparse.ArgumentTypeError(f"{text} is out of range; accepted: -1 to {SEED_MAX}")
    return value


def _flags(arguments: argparse.Namespace) -> dict[str, dict[str, object]]:
    """Flags that were given, as {table: {key: value}}: those whose destination is `table.key`."""
    flags: dict[str, dict[str, object]] = {}
    if getattr(arguments, "model", None):
        flags["models"] = {str(getattr(arguments, "variant", Variant.DEV)): arguments.model}
    for name, value in vars(arguments).items():
        if "." in name and value is not None:
            table, key = name.split(".")
            flags.setdefault(table, {})[key] = value
    return flags


if __name__ == "__main__":
    raise SystemExit(main())
