"""Sources of settings: their precedence, and errors that name key, value and what is accepted."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path

import pytest
from every_setting import HINTS, NUMBERS
from hypothesis import example, given
from hypothesis import strategies as st

from hidream.errors import ConfigurationError
from hidream.settings import sources
from hidream.types import Variant

NOWHERE = {"HIDREAM_HOME": "/nowhere"}


def test_flag_beats_environment_beats_file_beats_default(tmp_path):
    (tmp_path / "hidream.toml").write_text("[server]\nport = 1\nhost = 'a'\nqueue_max = 5\n")
    environ = {"HIDREAM_HOME": str(tmp_path), "HIDREAM_SERVER_PORT": "2", "HIDREAM_SERVER_HOST": "b"}
    server = sources.load(environ, {"server": {"port": 3}}).server
    assert (server.port, server.host, server.queue_max, server.sync_timeout_s) == (3, "b", 5, 90.0)


def test_model_is_short_for_models_dev(tmp_path):
    environ = {"HIDREAM_HOME": str(tmp_path), "HIDREAM_MODEL": "/one", "HIDREAM_MODELS_DEV": "/two"}
    models = sources.load(environ).models
    assert models.parts(Variant.DEV) == {"folder": Path("/one")}


@pytest.mark.parametrize(
    ("environ", "named"),
    [
        ({"HIDREAM_SERVER_PORT": "many"}, "HIDREAM_SERVER_PORT is 'many'; accepted: a whole number, 0 to 65,535"),
        ({"HIDREAM_SERVER_PORT": "-1"}, "HIDREAM_SERVER_PORT is '-1'; accepted: a whole number"),
        ({"HIDREAM_SERVR_PORT": "1"}, "variable HIDREAM_SERVR_PORT; the nearest is HIDREAM_SERVER_PORT; accepted"),
        ({"HIDREAM_PORT": "1"}, "variable HIDREAM_PORT; the nearest is HIDREAM_SERVER_PORT; accepted"),
        ({"HIDREAM_PEPPER": "1"}, "variable HIDREAM_PEPPER; the nearest is HIDREAM_STORE_KEY_PEPPER; accepted"),
        ({"HIDREAM_MODEL_DEV": "1"}, "variable HIDREAM_MODEL_DEV; the nearest is HIDREAM_MODELS_DEV; accepted"),
        ({"HIDREAM_APIKEY": "1"}, "variable HIDREAM_APIKEY; the nearest is HIDREAM_API_KEY; accepted"),
        ({"HIDREAM_FOO": "1"}, "variable HIDREAM_FOO; accepted: HIDREAM_TABLE_KEY"),
        ({"HIDREAM_SERVER_PORT": "http://10.0.0.1:8000"}, "HIDREAM_SERVER_PORT is 'http://10.0.0.1:8000'; accepted"),
        ({"HIDREAM_WORKER_LEASE_S": "soon"}, "HIDREAM_WORKER_LEASE_S is 'soon'; accepted: a number, 1 to 86,400"),
        ({"HIDREAM_WORKER_LEASE_S": "nan"}, "HIDREAM_WORKER_LEASE_S is 'nan'; accepted: a number"),
        ({"HIDREAM_COMPUTE_MEMORY_GB": "0.1"}, "HIDREAM_COMPUTE_MEMORY_GB is '0.1'; accepted: a number, 0, or 1 to"),
        ({"HIDREAM_COMPUTE_MEMORY_GB": "-2.5"}, "HIDREAM_COMPUTE_MEMORY_GB is '-2.5'"),
        ({"HIDREAM_COMPUTE_STORAGE": "int3"}, "is 'int3'; accepted: auto, compute, stored, fp8, int8, nf4"),
        ({"HIDREAM_COMPUTE_DEVICE": "meta"}, "is 'meta'; accepted: auto, cpu, mps, cuda or cuda:N"),
        ({"HIDREAM_COMPUTE_DTYPE": "fp16"}, "is 'fp16'; accepted: auto, float32, bfloat16, float16"),
        ({"HIDREAM_ENGINE_POLICY": "lifo"}, "HIDREAM_ENGINE_POLICY is 'lifo'; accepted: srpt, fifo"),
        ({"HIDREAM_ENGINE_AGEING": "0"}, "HIDREAM_ENGINE_AGEING is '0'; accepted: a number, 0.001 to 1,000"),
        ({"HIDREAM_SERVER_HOST": "ä" * 70}, "HIDREAM_SERVER_HOST is 'ä"),
        ({"HIDREAM_SERVER_PUBLIC_URL": "example.org"}, "is 'example.org'; accepted: http://HOST or https://HOST"),
        ({"HIDREAM_MODEL": "~nobody-here/x"}, "HIDREAM_MODEL is '~nobody-here/x'; accepted: a path that can be"),
        ({"HIDREAM_MODELS_VAE": "x" * 5000}, "HIDREAM_MODELS_VAE is 'xxx"),
        ({"HIDREAM_MODELS_VAE": "\udcff"}, r"HIDREAM_MODELS_VAE is '\\udcff'"),
        ({"HIDREAM_CONFIG": "/nowhere.toml"}, "nowhere.toml cannot be read"),
        ({"HIDREAM_CONFIG": "~nobody-here/x"}, "HIDREAM_CONFIG is '~nobody-here/x'"),
        ({"HIDREAM_HOME": "~nobody-here"}, "HIDREAM_HOME is '~nobody-here'"),
        ({"HIDREAM_HOME": __file__}, "HIDREAM_HOME is '.*, which is a file; accepted: a folder"),
        ({"HIDREAM_HOME": f"{__file__}/home"}, "hidream.toml cannot be read: .*Not a directory"),
    ],
)
def test_bad_environment_is_named(tmp_path, environ, named):
    with pytest.raises(ConfigurationError, match=named):
        sources.load({"HIDREAM_HOME": str(tmp_path), **environ})


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("[sever]\n", r"unknown table \[sever\]; the nearest is \[server\]; accepted: models, compute"),
        ("[zzz]\n", r"unknown table \[zzz\]; accepted: models, compute"),
        ("port = 1\n", r"unknown table \[port\]; the nearest is \[server\] port; accepted: models"),
        ("[server]\nprt = 1\n", r"prt: unknown key; the nearest is port; accepted in \[server\]: host, port"),
        ("[worker]\nport = 1\n", r"port: unknown key; the nearest is \[server\] port; accepted in \[worker\]: lease_s"),
        ("[server]\nzzz = 1\n", r"zzz: unknown key; accepted in \[server\]: host, port"),
        ("[server]\nport = true\n", "port is True; accepted: a whole number"),
        ("[server]\nport = 1.5\n", "port is 1.5"),
        ("[server]\nhost = ''\n", "host is ''; accepted: an address, or a host name"),
        ("[worker]\nlease_s = inf\n", "lease_s is inf"),
        (f"[worker]\nlease_s = {10**400}\n", "lease_s is 1000"),
        (f"[worker]\nlease_s = {'9' * 5000}\n", "cannot be read"),
        ("[models]\ndev = 3\n", "dev is 3; accepted: a path"),
        ("[models]\ndev = ''\n", "dev is ''; accepted: a path"),
        ('[models]\ndev = "\\u0000"\n', "dev is .*; accepted: a path that can be followed"),
        ("[server\n", "cannot be read"),
        (f"[server]\nport = {'[' * 5000}\n", "cannot be read"),
        ("[server]\nhost = '\udcff'\n", "cannot be read"),
    ],
)
def test_bad_file_is_named(tmp_path, text, named):
    (tmp_path / "hidream.toml").write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(ConfigurationError, match=named):
        sources.load({"HIDREAM_HOME": str(tmp_path)})


def test_bad_flag_is_named():
    with pytest.raises(ConfigurationError, match="--memory-gb is '-1'; accepted: a number, 0, or 1 to 100,000"):
        sources.load(NOWHERE, {"compute": {"memory_gb": "-1"}})
    with pytest.raises(ConfigurationError, match="--model is ''; accepted: a path"):
        sources.load(NOWHERE, {"models": {"full": ""}})


def test_an_unknown_variable_is_told_in_one_line_that_a_person_can_read():
    with pytest.raises(ConfigurationError) as raised:
        sources.load({**NOWHERE, "HIDREAM_SERVR_PORT": "1"})
    assert len(raised.value.message) < 300


@pytest.mark.parametrize("key", [" s3cr3t", "s3cr3t\n", "s3cr3t\x00"])
def test_no_secret_is_shown(key):
    with pytest.raises(ConfigurationError, match="HIDREAM_API_KEY") as raised:
        sources.load({**NOWHERE, "HIDREAM_API_KEY": key})
    assert "s3cr3t" not in raised.value.message
    with pytest.raises(ConfigurationError, match=r"is 'postgresql://\*\*\*@host/db'"):
        sources.load({**NOWHERE, "HIDREAM_STORE_DATABASE_URL": "postgresql://me:s3cr3t@host/db"})


@pytest.mark.parametrize(("table", "key", "kind", "accepted"), NUMBERS)
def test_a_range_holds_its_ends_and_nothing_beyond(table, key, kind, accepted):
    step = 1 if kind is int else 0.001
    ends = {accepted.smallest, accepted.largest} | ({0} if accepted.or_zero else set())
    for end in ends:
        config = sources.load({**NOWHERE, sources.env_name(table, key): str(end)})
        assert getattr(getattr(config, table), key) == end
    beyond = [accepted.smallest - step, accepted.largest + step, -accepted.largest, *(["nan", "inf"] * (kind is float))]
    for value in beyond:
        with pytest.raises(ConfigurationError, match=f"accepted: a.* number, {re.escape(str(accepted))}$"):
            sources.load({**NOWHERE, sources.env_name(table, key): str(value)})


ODD = st.sampled_from(
    ["", " ", "0", "-1", "-0.0", "1e400", "nan", "0x10", "1_0", "auto", "cuda:1", "~", "[::1]", "a/b"]
)
TYPED = st.text(st.characters(codec="utf-8"), max_size=40) | ODD | st.floats().map(repr) | st.integers().map(str)
WRITTEN = st.one_of(
    TYPED.map(lambda text: json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")),
    st.integers().map(str),
    st.floats().map(repr),
    st.sampled_from(["true", "[]", "[1]", "{}", "{a = 1}", "1979-05-27", "07:32:00"]),
)
"""Values as TOML has them."""


@example(name=("store", "key_pepper"), text="a pepper of 25 characters")
@given(name=st.sampled_from(sorted(HINTS)), text=TYPED | st.text(max_size=20))
def test_every_text_is_accepted_or_named(name, text):
    table, key = name
    variable, flag = sources.env_name(table, key), sources.flag_name(table, key)
    for where, load in (
        (variable, lambda: sources.load({**NOWHERE, variable: text})),
        (flag, lambda: sources.load(NOWHERE, {table: {key: text}})),
    ):
        settled_or_named(name, where, load)


@given(name=st.sampled_from(sorted(HINTS)), value=WRITTEN)
def test_every_value_of_a_file_is_accepted_or_named(tmp_path_factory, name, value):
    table, key = name
    path = tmp_path_factory.mktemp("written") / "x.toml"
    path.write_text(f"[{table}]\n{key} = {value}\n", encoding="utf-8")
    settled_or_named(name, f"[{table}] {key}", lambda: sources.load({**NOWHERE, "HIDREAM_CONFIG": str(path)}))


@given(st.binary(max_size=60) | st.text(max_size=60).map(lambda text: text.encode(errors="replace")))
def test_every_file_is_read_or_named(tmp_path_factory, content):
    path = tmp_path_factory.mktemp("any") / "x.toml"
    path.write_bytes(content)
    _, refusal = loaded(lambda: sources.load({**NOWHERE, "HIDREAM_CONFIG": str(path)}))
    assert refusal is None or str(path) in refusal


def loaded(load):
    """The settings, or what is wrong with them; no error but ConfigurationError."""
    try:
        return load(), None
    except ConfigurationError as error:
        return None, error.message


def settled_or_named(name, where, load):
    """A value that is taken is one that is accepted; a worker's environment says the same, but for the pepper."""
    table, key = name
    wanted, accepted = HINTS[name]
    config, refusal = loaded(load)
    if refusal:
        assert where in refusal
        assert "; accepted: " in refusal
        return
    value = getattr(getattr(config, table), key)
    assert value is None or isinstance(value, wanted)
    assert isinstance(value, Path | None) or accepted.holds(value)
    without_pepper = dataclasses.replace(config, store=dataclasses.replace(config.store, key_pepper=""))
    assert sources.load(sources.to_environ(config)) == without_pepper


def test_a_worker_is_told_no_pepper_and_no_key():
    secrets = {
        "HIDREAM_STORE_KEY_PEPPER": "a pepper of 25 characters",
        "HIDREAM_API_KEY": "a key of some letters",
    }
    config = sources.load({**NOWHERE, **secrets})
    assert config.store.key_pepper == secrets["HIDREAM_STORE_KEY_PEPPER"]
    assert not set(secrets.values()) & set(sources.to_environ(config).values())
    assert not set(secrets) & sources.to_environ(config).keys()
