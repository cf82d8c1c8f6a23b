"""The keywords are those of the declaration, and help() shows them."""

import inspect
import pydoc
import typing
from enum import StrEnum

import hidream
from hidream import options
from hidream.client.async_client import AsyncClient
from hidream.client.client import Client
from hidream.parameter import Choice, Flag, Number, Text, Whole
from hidream.request import PARAMETERS, Dimensions, Loras, Source

TYPES = {Whole: int, Number: float, Text: str, Flag: bool}
NAMES = {"Picture": object, "Lora": object, "Size": object}


def hints():
    return typing.get_type_hints(options.Options, localns=NAMES)


def test_there_is_a_keyword_for_each_parameter_but_those_of_delivery():
    left_out = {"prompt", "enable_base64_output", "enable_sync_mode"}
    assert [name for name in hints() if name not in options.SIDES] == [
        each.name for each in PARAMETERS if each.name not in left_out
    ]


def test_each_keyword_has_the_type_of_its_parameter():
    for parameter in options.OFFERED:
        accepted = set(typing.get_args(hints()[parameter.name]))
        assert type(None) in accepted
        match parameter.kind:
            case Choice():
                (literal,) = accepted - {type(None)}
                assert set(typing.get_args(literal)) == set(parameter.kind.values), parameter.name
            case Source() | Loras() | Dimensions():
                pass
            case kind:
                assert accepted == {TYPES[type(kind)], type(None)}, parameter.name


def test_help_has_each_parameter_with_its_description_and_default():
    for function in (Client.generate, Client.submit, Client.__call__, AsyncClient.generate, AsyncClient.submit):
        text = pydoc.render_doc(function, renderer=pydoc.plaintext)
        for parameter in options.OFFERED:
            assert parameter.name in inspect.signature(function).parameters
            assert f"{parameter.name}: {parameter.schema()['description']}" in text
    keywords = inspect.signature(Client.generate).parameters
    assert keywords["strength"].default == 0.8
    assert keywords["size"].default == "1024*1024"
    assert keywords["shift"].default is None
    assert "options" not in keywords


def test_both_clients_have_the_same_calls():
    def calls(kind):
        names = {"__aenter__": "__enter__", "__aexit__": "__exit__"}
        return {
            names.get(name, name): [(each.name, each.default) for each in inspect.signature(value).parameters.values()]
            for name, value in vars(kind).items()
            if inspect.isfunction(value) and (not name.startswith("_") or name in ("__call__", "__init__"))
        }

    from hidream.client.async_client import AsyncTask
    from hidream.client.client import Task

    assert calls(Client) == calls(AsyncClient)
    assert calls(Task) == calls(AsyncTask)


def test_values_of_enumerations_are_accepted():
    for parameter in options.OFFERED:
        if isinstance(parameter.kind, Choice):
            for value in parameter.kind.values.values():
                assert isinstance(value, StrEnum)
                assert options.checked({parameter.name: value}) == {parameter.name: value}


def test_the_package_names_what_it_offers():
    assert set(hidream.__all__) <= set(dir(hidream))
    assert hidream.Client is Client
    assert hidream.AsyncClient is AsyncClient
