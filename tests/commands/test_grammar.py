"""The flags: typed text becomes a value, or an error line that says what is accepted."""

from __future__ import annotations

import dataclasses
import re
import shlex

import pytest

from hidream import cli
from hidream.commands.grammar import Group
from hidream.commands.index import TOP
from hidream.commands.keys import LIMITS, SCOPES
from hidream.commands.setting_flags import SettingFlag, settings_of
from hidream.request import LoraUse
from hidream.settings import sources, tables
from hidream.store.keys import DEFAULT_SCOPES, Limits, Scope
from hidream.types import Variant

KEYS = ["keys create", "keys limit", "keys list", "keys revoke", "keys rotate"]
KEYS += ["keys rotate-webhook", "keys export", "keys erase"]
COMMANDS = [
    "generate",
    "inspect",
    "batch submit",
    "batch status",
    "batch fetch",
    "doctor",
    "bench",
    "completion",
    "help",
]
COMMANDS += ["serve", "api", "worker", *KEYS, "audit", "store copy", "mcp", "info", "convert"]
COMMANDS += ["models pull", "models list", "models show", "models verify", "models rm"]
COMMANDS += ["comfyui install", "comfyui uninstall", "comfyui doctor"]


def parsed(*argv):
    _, given = cli.parse(argv)
    return given


def commands(top=TOP, name=""):
    """Every command, by its name."""
    if not isinstance(top, Group):
        return {name.strip(): top}
    below = {word: entry.load(word) for word, entry in top.entries.items()}
    return {k: v for word, command in below.items() for k, v in commands(command, f"{name} {word}").items()}


def test_every_command_is_named_by_what_is_typed():
    assert sorted(commands()) == sorted(COMMANDS)
    needed = {"convert": ["a", "b"], "completion": ["bash"], "models show": ["dev"], "inspect": ["x.png"]}
    needed |= {name: ["dev"] for name in ("models pull", "models rm")} | {"keys export": ["k", "--out", "o.zip"]}
    needed |= {"store copy": ["a.db", "b.db"]}
    needed |= {name: ["f"] for name in ("batch submit", "batch status", "batch fetch")}
    needed |= {f"comfyui {name}": ["d"] for name in ("install", "uninstall", "doctor")}
    for name in commands():
        rest = needed.get(name, ["k"] if name.startswith("keys ") and name not in ("keys create", "keys list") else [])
        assert parsed(*name.split(), *rest).command == name


def test_every_command_but_services_takes_json_and_has_examples_that_are_understood():
    for name, command in commands().items():
        assert command.service is ("--json" not in {opt for flag in command.flags for opt in flag.opts}), name
        assert command.examples, name
        for example in command.examples:
            if example.startswith("hidream "):
                typed = shlex.split(example.partition(" | ")[0], comments=True)
                assert parsed(*typed[1:]).command == name


def test_flags_that_are_settings_are_named_as_the_settings_say():
    fields = {(table, f.name) for table, kind in tables.TABLES.items() for f in dataclasses.fields(kind)}
    flags = [flag for command in commands().values() for flag in command.flags if isinstance(flag, SettingFlag)]
    for flag in flags:
        assert flag.opts == [sources.flag_name(*flag.setting)]
    seen = {flag.setting for flag in flags}
    assert seen <= fields
    assert {("server", "port"), ("compute", "memory_gb"), ("models", "clip_l")} <= seen


def test_no_name_of_a_flag_means_two_things_in_one_command():
    for name, command in commands().items():
        names = [each for flag in command.flags for each in (*flag.opts, *flag.also, *flag.former)]
        assert len(names) == len(set(names)), name


def test_flags_are_those_that_were_given():
    assert settings_of(parsed("info")) == {}
    given = parsed("generate", "x", "--model", "/m", "--variant", "full", "--clip-l", "/c", "--threads", "2")
    assert settings_of(given) == {"models": {"full": "/m", "clip_l": "/c"}, "compute": {"threads": "2"}}
    assert settings_of(parsed("worker", "--model", "")) == {"models": {str(Variant.DEV): ""}}


def test_what_is_typed_becomes_values():
    given = parsed(
        "generate", "x", "--lora", "a:-0.5", "--lora", "b", "--lora", "c:d:2", "--seed", "7", "--strength", "0.5"
    )
    assert (given.loras, given.seed, given.strength) == (
        (LoraUse("a", -0.5), LoraUse("b", 1.0), LoraUse("c:d", 2.0)),
        7,
        0.5,
    )
    plan = parsed("info", "--plan", "--memory", "12,15.5GB", "--host-memory", "32GB")
    assert (plan.memory, plan.host_memory) == ([12.0, 15.5], 32.0)
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
        (["generate", "\udcff"], r"prompts: '\udcff' is not UTF-8; accepted: text in UTF-8"),
        (["generate", "x", "--render", "worst"], "--render: 'worst' is not one of the choices; accepted: best, scaled"),
        (
            ["generate", "x", "--mode", "fast"],
            "--mode: 'fast' is not one of the choices; accepted: exact, balanced, turbo",
        ),
        (["keys", "revoke", "\udcff"], "id: "),
        (["info", "--memory", "0,12"], "'0,12' is not a list of sizes; accepted: gigabytes such as 12,16,24"),
        (["info", "--host-memory", "nan"], "'nan' is not a size of host memory; accepted: gigabytes, 4 or more"),
        (["info", "--host-memory", "3.9"], "'3.9' is not a size of host memory"),
        (["info", "--bits", "3"], "--bits: '3' is not one of the choices; accepted: 16, 8, 4"),
        (["info", "--memory", "12"], "hidream info: --memory: given without --plan; accepted: with it"),
        (["info", "--host-memory", "64"], "--host-memory: given without --plan"),
        (["info", "--variant", "full", "--size", "512*512"], "--size: given without --plan"),
        (["info", "--bits", "4"], "--bits: given without --plan"),
        (["convert", "a", ""], "target: '' is not a path"),
        (["convert", "a", "b", "--shard-size", "5 apples"], "'5 apples' is not a size; accepted: such as 500MB or 5GB"),
        (["api", "one\ntwo"], "unexpected argument: one two"),
        (["keys"], "a command is missing; accepted: create, list, revoke"),
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
    assert set(SCOPES) == set(Scope)
    assert set(parsed("keys", "create").scopes) == DEFAULT_SCOPES
    assert parsed("keys", "create").priority == 0
    assert parsed("keys", "create", "--priority", "-2").priority == -2
    assert list(LIMITS) == [field.name for field in dataclasses.fields(Limits)]


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
