"""The grammar: what is typed becomes a value, or one line that says what is accepted."""

from __future__ import annotations

import argparse
import dataclasses
import re

import pytest

from hidream import arguments
from hidream.request import LoraUse
from hidream.settings import sources, tables
from hidream.store.keys import DEFAULT_SCOPES, Limits, Scope
from hidream.types import Variant

KEYS = ["keys create", "keys limit", "keys list", "keys revoke", "keys rotate"]
KEYS += ["keys rotate-webhook", "keys export", "keys erase"]
COMMANDS = ["generate", "serve", "api", "worker", *KEYS, "audit", "mcp", "info", "convert"]
COMMANDS += ["models pull", "models list", "models show", "models verify", "models rm"]


def parsed(*argv):
    return arguments.parse(argv)


def parsers(top, name=""):
    """Every command's own parser, by its name."""
    nested = [action.choices for action in top._actions if isinstance(action, argparse._SubParsersAction)]
    if not nested:
        return {name.strip(): top}
    return {k: v for word, below in nested[0].items() for k, v in parsers(below, f"{name} {word}").items()}


def test_every_command_is_named_by_what_is_typed():
    found = parsers(arguments.parser())
    assert sorted(found) == sorted(COMMANDS)
    assert all(below.get_default("command") == name for name, below in found.items())


def test_flags_that_are_settings_are_named_as_the_settings_say():
    fields = {(table, f.name) for table, kind in tables.TABLES.items() for f in dataclasses.fields(kind)}
    seen = set()
    for below in parsers(arguments.parser()).values():
        for action in below._actions:
            if "." in action.dest:
                name = tuple(action.dest.split("."))
                assert action.option_strings == [sources.flag_name(*name)]
                assert action.type is None  # the settings read it
                seen.add(name)
    assert seen <= fields
    assert {("server", "port"), ("compute", "memory_gb"), ("models", "clip_l")} <= seen


def test_flags_are_those_that_were_given():
    assert arguments.flags(parsed("info")) == {}
    given = parsed("generate", "x", "--model", "/m", "--variant", "full", "--clip-l", "/c", "--threads", "2")
    assert arguments.flags(given) == {"models": {"full": "/m", "clip_l": "/c"}, "compute": {"threads": "2"}}
    assert arguments.flags(parsed("worker", "--model", "")) == {"models": {str(Variant.DEV): ""}}


def test_what_is_typed_becomes_values():
    given = parsed(
        "generate", "x", "--lora", "a:-0.5", "--lora", "b", "--lora", "c:d:2", "--seed", "7", "--strength", "0.5"
    )
    assert (given.loras, given.seed, given.strength) == (
        [LoraUse("a", -0.5), LoraUse("b", 1.0), LoraUse("c:d", 2.0)],
        7,
        0.5,
    )
    plan = parsed("info", "--plan", "--memory", "12,15.5", "--host", "32")
    assert (plan.memory, plan.host) == ([12.0, 15.5], 32.0)
    assert parsed("convert", "a", "b", "--shard-size", "500mb").shard_size == 500_000_000


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["generate", "x", "--lora", "x:99"], "--lora: weight of the LoRA 'x' is 99.0; accepted: -10.0 to 10.0"),
        (["generate", "x", "--lora", "x:nan"], "--lora: weight of the LoRA 'x' is nan; accepted: -10.0 to 10.0"),
        (["generate", "x", "--lora", "x:abc"], "--lora: 'abc' is not a number; accepted: such as 0.8"),
        (["generate", "x", "--lora", ":1"], "--lora: ':1' is not a LoRA; accepted: NAME or NAME:WEIGHT"),
        (["generate", "x", "--seed", "abc"], "--seed: 'abc' is not a seed; accepted: -1 to 9999999999"),
        (["generate", "x", "--seed", "10000000000"], "'10000000000' is not a seed; accepted: -1 to 9999999999"),
        (["generate", "x", "--seed", "9" * 5000], "is not a seed; accepted: -1 to 9999999999"),
        (["generate", "x", "--steps", "2.5"], "--steps: '2.5' is not a whole number; accepted: such as 28"),
        (["generate", "x", "--guidance", ""], "--guidance: '' is not a number"),
        (["generate", "x", "--image", ""], "--image: '' is not a path; accepted: the path of a file or folder"),
        (["generate", "\udcff"], r"prompt: '\udcff' is not UTF-8; accepted: text in UTF-8"),
        (["generate", "x", "--render", "worst"], "--render: invalid choice: 'worst'"),
        (["generate", "x", "--mode", "fast"], "--mode: invalid choice: 'fast'"),
        (["keys", "revoke", "\udcff"], "id: "),
        (["info", "--memory", "0,12"], "'0,12' is not a list of sizes; accepted: gigabytes such as 12,16,24"),
        (["info", "--host", "nan"], "'nan' is not a size of host memory; accepted: gigabytes, 4 or more"),
        (["info", "--host", "3.9"], "'3.9' is not a size of host memory"),
        (["info", "--bits", "3"], "--bits: invalid choice: 3"),
        (["info", "--memory", "12"], "hidream info: argument --memory: given without --plan; accepted: with it"),
        (["info", "--host", "64"], "argument --host: given without --plan"),
        (["info", "--variant", "full", "--size", "512*512"], "argument --size: given without --plan"),
        (["info", "--bits", "4"], "argument --bits: given without --plan"),
        (["convert", "a", ""], "target: '' is not a path"),
        (["convert", "a", "b", "--shard-size", "5 apples"], "'5 apples' is not a size; accepted: such as 500MB or 5GB"),
        (["generate", "x", "one\ntwo"], "unrecognized arguments: one two"),
        (["keys"], "the following arguments are required: ACTION"),
        ([], "the following arguments are required: COMMAND"),
    ],
)
def test_what_is_not_understood_is_said_in_one_line(capsys, argv, said):
    with pytest.raises(SystemExit) as ended:
        parsed(*argv)
    assert ended.value.code == 2
    error = capsys.readouterr().err
    assert said in error
    assert re.fullmatch(r"(hidream( \w+)*): .+; `\1 --help` says more\n", error)


def test_a_keys_scopes_and_limits_are_read():
    given = parsed("keys", "create", "--scopes", "read, admin", "--tasks-max", "3")
    assert (given.scopes, given.tasks_max, given.requests_per_minute) == (("read", "admin"), 3, 0)
    assert parsed("keys", "create").scopes == ("submit", "read")
    assert set(arguments.SCOPES) == set(Scope)
    assert set(parsed("keys", "create").scopes) == DEFAULT_SCOPES
    assert parsed("keys", "create").priority == 0
    assert parsed("keys", "create", "--priority", "-2").priority == -2
    assert list(arguments.LIMITS) == [field.name for field in dataclasses.fields(Limits)]


def test_limits_that_are_not_said_stay_as_they_are():
    given = parsed("keys", "limit", "abc", "--steps-max", "30", "--work-per-day", "0")
    assert (given.id, given.steps_max, given.work_per_day, given.tasks_max) == ("abc", 30, 0, None)
    assert given.priority is None
    assert parsed("keys", "limit", "abc", "--priority", "+4").priority == 4


@pytest.mark.parametrize(
    ("typed", "named"),
    [
        (["--scopes", "write"], "'write' is not a list of scopes; accepted: some of submit, view, read, admin"),
        (["--scopes", ""], "'' is not a list of scopes"),
        (["--pixels-per-day", "-1"], "'-1' is not a limit; accepted: a whole number, 0 for none"),
        (["--tasks-max", "many"], "'many' is not a limit"),
        (["--priority", "5"], "'5' is not a priority; accepted: a whole number from -4 to 4"),
        (["--priority", "high"], "'high' is not a priority"),
    ],
)
def test_what_a_key_cannot_have_is_named(capsys, typed, named):
    with pytest.raises(SystemExit):
        parsed("keys", "create", *typed)
    assert named in capsys.readouterr().err
