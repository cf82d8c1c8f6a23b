"""`hidream models`: the grammar of the commands that `hub_models` runs, which imports huggingface_hub."""

from __future__ import annotations

import click

from hidream.commands.grammar import Command, Entry, Flag, Given, Group
from hidream.commands.values import TEXT
from hidream.settings.tables import Settings

NAMES = "A NAME is dev, full, fast, llama, or an id such as owner/name; also with @REVISION."


def _pull(given: Given, config: Settings) -> int:
    from hidream.commands import hub_models

    return hub_models.pull(given, config)


def _list(given: Given, config: Settings) -> int:
    from hidream.commands import hub_models

    return hub_models.list_(given, config)


def _show(given: Given, config: Settings) -> int:
    from hidream.commands import hub_models

    return hub_models.show(given, config)


def _verify(given: Given, config: Settings) -> int:
    from hidream.commands import hub_models

    return hub_models.verify(given, config)


def _remove(given: Given, config: Settings) -> int:
    from hidream.commands import hub_models

    return hub_models.remove(given, config)


def _yes() -> Flag:
    return Flag(["--yes", "-y"], is_flag=True, help="do not ask; needed where nobody can be asked")


def _names(*, required: bool = True) -> click.Parameter:
    return click.Argument(["names"], nargs=-1, required=required, type=TEXT, metavar="NAME...")


_INCLUDE = "files to download instead of those that hidream chooses, such as '*Q4_K_M.gguf'; may be repeated"

PULL = Command(
    _pull,
    [
        _names(),
        Flag(["--revision"], type=TEXT, metavar="REVISION", help="a branch, a tag or a commit (default: main)"),
        Flag(["--include"], multiple=True, type=TEXT, metavar="PATTERN", help=_INCLUDE),
        Flag(["--dry-run"], is_flag=True, help="only show what would be downloaded"),
        _yes(),
    ],
    details=NAMES,
    extras="torch",
    examples=["hidream models pull dev llama", "hidream models pull full --dry-run"],
)
LIST = Command(_list, extras="torch", examples=["hidream models list"])
SHOW = Command(
    _show,
    [click.Argument(["name"], type=TEXT)],
    details=NAMES,
    extras="torch",
    examples=["hidream models show dev"],
)
VERIFY = Command(
    _verify,
    [_names(required=False), Flag(["--remove"], is_flag=True, help="delete files whose content is wrong")],
    details=f"{NAMES} Without a NAME, all models in the cache.",
    extras="torch",
    examples=["hidream models verify dev --remove"],
)
RM = Command(_remove, [_names(), _yes()], details=NAMES, extras="torch", examples=["hidream models rm full --yes"])

MODELS = Group(
    {
        "Commands": {
            "pull": Entry(__name__, "PULL", "download what hidream reads of a model, after showing what and how much"),
            "list": Entry(__name__, "LIST", "list the models that are known, in the cache, or in the settings"),
            "show": Entry(__name__, "SHOW", "show a model's files, digests and licence, and the command that uses it"),
            "verify": Entry(__name__, "VERIFY", "compare the content of cached files with their digests"),
            "rm": Entry(__name__, "RM", "delete models from the cache"),
        }
    }
)
