"""The command line: its commands, their flags, and the conversion of flags to values.

The flag of a setting stays text, under the destination `table.key`; `settings/sources.py` converts it, like a variable
of the environment. Every other flag is converted here. This module runs nothing: `cli.py` has the commands.
"""

from __future__ import annotations

import argparse
import functools
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from hidream import __version__
from hidream.errors import InvalidInput
from hidream.nearest import nearest
from hidream.parameter import Choice, CommandFlag, Integer, Number, Parameter, Text, in_words
from hidream.parts import NAMED_ALONE
from hidream.request import PARAMETERS, Dimensions, Loras, LoraUse, Source
from hidream.settings.sources import flag_name
from hidream.types import DEFAULT_SIZE, FORMAT_NAMES, PRIORITY_MAX, SEED_MAX, Variant

if TYPE_CHECKING:
    Commands = argparse._SubParsersAction["Parser"]

GIGABYTES = r"[1-9]\d{0,4}(\.\d+)?"
HOST_SMALLEST_GB = 4
"""The least host memory of a plan: the system itself takes 3 GB (`model/memory/candidates.HOST_RESERVE_BYTES`)."""
MODELS = {part.setting: part.about for part in NAMED_ALONE} | {
    "tokenizers": "folder with some of the four tokenizers, for those that the checkpoint lacks",
    "loras": "folder of LoRAs",
}
"""The keys of `[models]` beside the variants, with the help of their flags."""
SCOPES = ("submit", "view", "read", "admin")
"""The scopes of a key, as in `store/keys.Scope`, which this module does not import; a test compares the two."""
LIMITS = {
    "requests_per_minute": "submissions a minute",
    "tasks_max": "unfinished tasks at a time",
    "pixels_per_day": "pixels in 24 hours",
    "steps_max": "steps of a task",
    "pixels_max": "pixels of an image",
    "images_max": "images of a task",
    "work_per_day": "pixel steps in 24 hours",
    "bytes_max": "bytes of stored uploads and images",
}
"""The limits of a key, as in `store/keys.Limits`, which this module does not import; a test compares the two."""


class Parser(argparse.ArgumentParser):
    """A parser that reports an error in one line, as the commands do, without a list of all flags."""

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> tuple[Any, list[str]]:  # noqa: ANN401
        """Parse as usual, but suggest the nearest flag of this command for an unknown one."""
        namespace, unknown = super().parse_known_args(args, namespace)
        if unknown:
            flag = next((each.partition("=")[0] for each in unknown if each.startswith("--")), "")
            suggestion = nearest(flag, {known: known for known in self._option_string_actions})
            self.error(f"unrecognized arguments: {' '.join(unknown)}{suggestion}")
        return namespace, unknown

    def error(self, message: str) -> NoReturn:
        """End with status 2."""
        self.exit(2, f"{self.prog}: {' '.join(message.split())}; `{self.prog} --help` says more\n")


class OnlyWithPlan(argparse.Action):
    """Stores the value of a flag that only `--plan` uses, and in `complain` how to refuse it without `--plan`."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        given: argparse.Namespace,
        value: object,
        flag: str | None = None,
    ) -> None:
        """Store one flag."""
        setattr(given, self.dest, value)
        given.complain = lambda: parser.error(f"argument {flag}: given without --plan; accepted: with it")


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse a command line, by default that of this process; exits with status 2 if it is not understood.

    The result has the name of the command in `command`; `flags` extracts the settings from it.
    """
    given = parser().parse_args(argv)
    if given.command == "info" and given.complain and not given.plan:
        given.complain()
    return given


def parser() -> argparse.ArgumentParser:
    """Build the parser, without the checks of `parse` on combinations of flags."""
    top = Parser(prog="hidream", description="The self-hosted home of HiDream-I1.")
    top.add_argument("--version", action="version", version=__version__)
    commands = top.add_subparsers(required=True, metavar="COMMAND")
    _generate(commands)
    _serve(commands)
    _api(commands)
    _worker(commands)
    _keys(commands)
    _audit(commands)
    _store(commands)
    _mcp(commands)
    _info(commands)
    _convert(commands)
    _models(commands)
    return top


def flags(arguments: argparse.Namespace) -> dict[str, dict[str, object]]:
    """The settings among the flags, as {table: {key: text}}."""
    found: dict[str, dict[str, object]] = {}
    if getattr(arguments, "model", None) is not None:
        found["models"] = {str(getattr(arguments, "variant", Variant.DEV)): arguments.model}
    for name, value in vars(arguments).items():
        if "." in name and value is not None:
            table, key = name.split(".")
            found.setdefault(table, {})[key] = value
    return found


def _generate(commands: Commands) -> None:
    generate = commands.add_parser("generate", help="generate one image")
    generate.add_argument("prompt", type=_text)
    suffixes = in_words((f".{name}" for name in FORMAT_NAMES), "or")
    for parameter in PARAMETERS:
        if parameter.flag is not None:
            _parameter(generate, parameter, parameter.flag)
        if parameter.attribute == "seed":  # the most used flags come first in the help
            generate.add_argument("--out", type=_path, default=Path("out.png"), help=f"a {suffixes} file")
            generate.add_argument("--variant", choices=list(Variant), default=Variant.DEV)
    _model_flags(generate)
    generate.set_defaults(command="generate")


def _parameter(command: argparse.ArgumentParser, parameter: Parameter, flag: CommandFlag) -> None:
    """Add the flag of a request's parameter, under the name of the request's field."""
    kind = parameter.kind
    options: dict[str, Any] = {"dest": parameter.attribute, "default": parameter.default}
    options["metavar"] = flag.metavar or flag.name.lstrip("-").upper()
    if isinstance(kind, Choice):
        options |= {"choices": list(kind.values), "metavar": flag.metavar}
    elif isinstance(kind, Loras):
        options |= {"type": _lora, "action": "append", "default": []}
    elif isinstance(kind, Dimensions):
        options["default"] = None  # the init image may decide it
    else:
        options["type"] = _seed if parameter.attribute == "seed" else _TYPES[type(kind)]
    command.add_argument(flag.name, help=flag.help or parameter.description, **options)


def parameters_of(given: argparse.Namespace) -> dict[str, Any]:
    """The fields of a request, by name, except for its size and the content of its files."""
    values = {each.attribute: getattr(given, each.attribute) for each in PARAMETERS if each.flag is not None}
    choices = {each.attribute: each.kind for each in PARAMETERS if isinstance(each.kind, Choice)}
    fields = {name: choices[name].from_json(value) if name in choices else value for name, value in values.items()}
    return fields | {"prompt": given.prompt, "loras": tuple(given.loras)}


def _serve(commands: Commands) -> None:
    serve = commands.add_parser("serve", help="serve the HTTP API, and run a worker")
    _address(serve)
    _model_flags(serve)
    serve.set_defaults(command="serve")


def _api(commands: Commands) -> None:
    api = commands.add_parser("api", help="serve the HTTP API; workers run elsewhere")
    _address(api)
    api.set_defaults(command="api")


def _worker(commands: Commands) -> None:
    worker = commands.add_parser("worker", help="generate the images of the tasks in the database")
    worker.add_argument("--with-parent", action="store_true", help="end when standard input is closed")
    _model_flags(worker)
    worker.set_defaults(command="worker")


def _keys(commands: Commands) -> None:
    keys = commands.add_parser("keys", help="create, list, revoke, rotate, export and erase API keys").add_subparsers(
        required=True, metavar="ACTION"
    )
    create = keys.add_parser("create", help="create a key and print it, once")
    create.add_argument("--name", type=_text, default="", help="a name for the list")
    create.add_argument(
        "--scopes",
        type=_scopes,
        default=("submit", "read"),
        help=f"what it may do: some of {', '.join(SCOPES)}, separated by commas (default: submit,read)",
    )
    _limit_flags(create, 0, "default: no limit")
    create.set_defaults(command="keys create")
    keys.add_parser("list", help="list all keys, including revoked ones").set_defaults(command="keys list")
    revoke = keys.add_parser("revoke", help="revoke a key; takes effect within a second")
    revoke.set_defaults(command="keys revoke")
    rotate = keys.add_parser("rotate", help="give a key a new secret and print it, once; the old one becomes invalid")
    rotate.set_defaults(command="keys rotate")
    limit = keys.add_parser("limit", help="change limits of a key; takes effect within a second")
    _limit_flags(limit, None, "0: no limit; default: unchanged")
    limit.set_defaults(command="keys limit")
    webhook = keys.add_parser("rotate-webhook", help="give a key's webhooks a new secret and print it")
    webhook.add_argument(
        "--overlap",
        type=_hours,
        default=24,
        metavar="HOURS",
        help="for how long the old secret signs too: 0 to 168 (default: %(default)s)",
    )
    webhook.add_argument("--retire", action="store_true", help="end a rotation instead: only the new secret signs")
    webhook.set_defaults(command="keys rotate-webhook")
    export = keys.add_parser("export", help="write all data of a key to a folder or a .zip file")
    export.add_argument("--out", type=_path, required=True, help="a new .zip file or folder")
    export.set_defaults(command="keys export")
    erase = keys.add_parser("erase", help="revoke a key, and erase all its data")
    erase.add_argument("--yes", action="store_true", help="confirm: erasing cannot be undone")
    erase.set_defaults(command="keys erase")
    for command in (revoke, rotate, limit, webhook, export, erase):
        command.add_argument("id", type=_text, help="as `hidream keys list` shows it")


def _audit(commands: Commands) -> None:
    audit = commands.add_parser("audit", help="show the audit log: what was done to keys, when and by whom")
    audit.add_argument(
        "--since", type=_ago, metavar="AGO", help="such as 12h, 7d or 4w (default: all, which is a year)"
    )
    audit.add_argument("--json", action="store_true", help="one JSON object per line")
    audit.set_defaults(command="audit")


def _store(commands: Commands) -> None:
    store = commands.add_parser("store", help="copy a database, or all files, to another one").add_subparsers(
        required=True, metavar="ACTION"
    )
    copy = store.add_parser("copy", help="copy a database to another one, or all files to another folder or bucket")
    copy.add_argument("source", type=_text, metavar="FROM", help="the URL of a database; or a folder or s3:// URL")
    copy.add_argument("target", type=_text, metavar="TO", help="the same kind as FROM; a database must be empty or new")
    copy.add_argument("--dry-run", action="store_true", help="only show what would be copied")
    copy.set_defaults(command="store copy")


def _limit_flags(command: argparse.ArgumentParser, default: int | None, note: str) -> None:
    for name, label in LIMITS.items():
        flag = f"--{name.replace('_', '-')}"
        command.add_argument(flag, type=_limit, default=default, metavar="N", help=f"{label} ({note})")
    about = f"how early its tasks go: {-PRIORITY_MAX} to {PRIORITY_MAX}, a higher one before a lower one (a new key: 0)"
    command.add_argument("--priority", type=_priority, default=default, metavar="N", help=about)


def _mcp(commands: Commands) -> None:
    mcp = commands.add_parser("mcp", help="serve as a tool for a language model: the Model Context Protocol over stdio")
    _setting(mcp, "mcp", "url", "base URL of a hidream server")
    mcp.set_defaults(command="mcp")


def _info(commands: Commands) -> None:
    info = commands.add_parser("info", help="show models, parameters, memory and device")
    _model_flags(info)
    info.add_argument("--variant", choices=list(Variant), default=Variant.DEV)
    info.add_argument(
        "--plan",
        action="store_true",
        help="show instead how a model uses some memory: --model, or else the published one",
    )
    plan = functools.partial(info.add_argument_group("only with --plan").add_argument, action=OnlyWithPlan)
    plan("--memory", type=_cards, default="8,12,16,24,32,48,80", help="cards in GB (default: %(default)s)")
    plan("--host", type=_host, default=64, help="GB of host memory beside the card (default: %(default)s)")
    plan("--size", default=str(DEFAULT_SIZE), help="width*height in pixels (default: %(default)s)")
    plan("--bits", type=_integer, choices=(16, 8, 4), default=4, help="fewest bits of a weight (default: %(default)s)")
    info.set_defaults(command="info", complain=None)


def _convert(commands: Commands) -> None:
    convert = commands.add_parser("convert", help="convert weights to another format or type")
    convert.add_argument("source", type=_path, help="a file or folder of one part, or a whole folder (also ComfyUI's)")
    convert.add_argument("target", type=_path, help="a file or folder that does not exist yet")
    convert.add_argument("--to", choices=("diffusers", "comfy", "gguf"), help="default: by the target's name")
    convert.add_argument(
        "--type", help="bf16, fp16, fp32, fp8, fp8_scaled, Q8_0, Q4_0, … (default: as stored, if the format allows it)"
    )
    convert.add_argument(
        "--shard-size", type=_nbytes, default="5GB", help="largest file of a diffusers folder (default: %(default)s)"
    )
    convert.add_argument("--variant", choices=list(Variant), help="which transformer, if a ComfyUI folder has several")
    convert.add_argument("--force", action="store_true", help="replace an existing target")
    convert.set_defaults(command="convert")


def _models(commands: Commands) -> None:
    models = commands.add_parser(
        "models", help="download models from the Hugging Face Hub; list, show, verify and remove what is there"
    ).add_subparsers(required=True, metavar="ACTION")
    about = "dev, full, fast, llama, or an id such as owner/name; also with @REVISION"
    pull = models.add_parser("pull", help="download what hidream reads of a model, after showing what and how much")
    pull.add_argument("names", nargs="+", metavar="NAME", type=_text, help=about)
    pull.add_argument("--revision", type=_text, help="a branch, a tag or a commit (default: main)")
    pull.add_argument(
        "--include", action="append", default=[], type=_text, metavar="PATTERN",
        help="files to download instead of those that hidream chooses, such as '*Q4_K_M.gguf'; may be repeated",
    )  # fmt: skip
    pull.add_argument("--dry-run", action="store_true", help="only show what would be downloaded")
    listing = models.add_parser("list", help="list the models that are known, in the cache, or in the settings")
    show = models.add_parser("show", help="show a model's files, digests and licence, and the command that uses it")
    show.add_argument("name", metavar="NAME", type=_text, help=about)
    verify = models.add_parser("verify", help="compare the content of cached files with their digests")
    verify.add_argument("names", nargs="*", metavar="NAME", type=_text, help=f"{about} (default: all in the cache)")
    verify.add_argument("--remove", action="store_true", help="delete files whose content is wrong")
    rm = models.add_parser("rm", help="delete models from the cache")
    rm.add_argument("names", nargs="+", metavar="NAME", type=_text, help=about)
    for command in (pull, rm):
        command.add_argument("--yes", "-y", action="store_true", help="do not ask; needed where nobody can be asked")
    for name, command in {"pull": pull, "list": listing, "show": show, "verify": verify, "rm": rm}.items():
        command.add_argument("--json", action="store_true", help="print the result as JSON")
        command.set_defaults(command=f"models {name}")


def _address(command: argparse.ArgumentParser) -> None:
    _setting(command, "server", "host", "address to listen on")
    _setting(command, "server", "port", "port to listen on; 0 takes a free one")


def _model_flags(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--model",
        help="an id of the Hub, the variant's folder, a ComfyUI models folder, or a transformer's file (default: nano)",
    )
    for part, about in MODELS.items():
        _setting(command, "models", part, about)
    _setting(command, "compute", "device", "torch device (default: auto)")
    _setting(command, "compute", "dtype", "float32, bfloat16 or float16 (default: auto)")
    _setting(command, "compute", "storage", "compute, stored, fp8, int8 or nf4 (default: auto)")
    _setting(command, "compute", "memory_gb", "GB of the device that may be used")
    _setting(command, "compute", "threads", "CPU threads (default: torch's choice)")


def _setting(command: argparse.ArgumentParser, table: str, key: str, about: str) -> None:
    command.add_argument(flag_name(table, key), dest=f"{table}.{key}", metavar=key.upper(), help=about)


def _refused(text: str, what: str, accepted: str) -> argparse.ArgumentTypeError:
    """The error for a text that is not `what`; argparse adds the flag."""
    return argparse.ArgumentTypeError(f"{text!r:.100} is not {what}; accepted: {accepted}")


def _text(text: str) -> str:
    """Refuse surrogates: bytes that are not UTF-8 become surrogates, which neither tokenizers nor SQLite accept."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise _refused(text, "UTF-8", "text in UTF-8") from None
    return text


def _path(text: str) -> Path:
    if not text:
        raise _refused(text, "a path", "the path of a file or folder")
    return Path(_text(text))


def _integer(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise _refused(text, "a whole number", "such as 28") from None


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise _refused(text, "a number", "such as 0.8") from None


def _seed(text: str) -> int:
    if not re.fullmatch(r"-1|[0-9]{1,20}", text) or int(text) > SEED_MAX:
        raise _refused(text, "a seed", f"-1 to {SEED_MAX}")
    return int(text)


def _lora(text: str) -> LoraUse:
    name, _, weight = text.rpartition(":") if ":" in text else (text, "", "")  # a file name may contain colons
    if not name:
        raise _refused(text, "a LoRA", "NAME or NAME:WEIGHT")
    try:
        return LoraUse(_text(name), _number(weight or "1"))
    except InvalidInput as error:
        raise argparse.ArgumentTypeError(error.message) from None


_TYPES: dict[type, Callable[[str], object]] = {Text: _text, Integer: _integer, Number: _number, Source: _path}
"""The conversion of text to a value of each kind."""


def _scopes(text: str) -> tuple[str, ...]:
    given = tuple(scope.strip() for scope in text.split(","))
    if not set(given) <= set(SCOPES):
        raise _refused(text, "a list of scopes", f"some of {', '.join(SCOPES)}, separated by commas")
    return given


def _limit(text: str) -> int:
    if not re.fullmatch(r"\d{1,15}", text, re.ASCII):
        raise _refused(text, "a limit", "a whole number, 0 for none")
    return int(text)


def _priority(text: str) -> int:
    if not re.fullmatch(r"[-+]?\d", text, re.ASCII) or abs(int(text)) > PRIORITY_MAX:
        raise _refused(text, "a priority", f"a whole number from {-PRIORITY_MAX} to {PRIORITY_MAX}")
    return int(text)


def _hours(text: str) -> int:
    if not re.fullmatch(r"\d{1,3}", text, re.ASCII) or int(text) > 168:
        raise _refused(text, "an overlap", "hours, from 0 to 168")
    return int(text)


def _ago(text: str) -> float:
    """Convert a time before now to seconds."""
    match = re.fullmatch(r"(\d{1,5})([hdw])", text, re.ASCII)
    if not match:
        raise _refused(text, "a time before now", "hours, days or weeks such as 12h, 7d or 4w")
    return int(match[1]) * {"h": 3600.0, "d": 86_400.0, "w": 604_800.0}[match[2]]


def _cards(text: str) -> list[float]:
    if not re.fullmatch(f"{GIGABYTES}(,{GIGABYTES})*", text, re.ASCII):
        raise _refused(text, "a list of sizes", "gigabytes such as 12,16,24")
    return [float(part) for part in text.split(",")]


def _host(text: str) -> float:
    if not re.fullmatch(GIGABYTES, text, re.ASCII) or float(text) < HOST_SMALLEST_GB:
        raise _refused(text, "a size of host memory", f"gigabytes, {HOST_SMALLEST_GB} or more")
    return float(text)


def _nbytes(text: str) -> int:
    match = re.fullmatch(r"([1-9]\d{0,4})(KB|MB|GB)", text.upper(), re.ASCII)
    if not match:
        raise _refused(text, "a size", "such as 500MB or 5GB")
    return int(match[1]) * {"KB": 10**3, "MB": 10**6, "GB": 10**9}[match[2]]
