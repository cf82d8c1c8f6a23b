"""The calls of both clients: the same, and documented."""

import inspect
import pydoc

import pytest

import hidream
from hidream.client.async_client import AsyncClient, AsyncTask
from hidream.client.client import Client, Task
from hidream.keywords import OF_CLIENT


@pytest.mark.parametrize("kind", [Client, AsyncClient])
def test_help_has_each_keyword(kind):
    for function in (kind.generate, kind.submit, kind.__call__):
        text = pydoc.render_doc(function, renderer=pydoc.plaintext)
        parameters = inspect.signature(function).parameters
        assert tuple(parameters)[-len(OF_CLIENT.names) :] == OF_CLIENT.names
        assert "options" not in parameters
        assert all(f"    {name}\n        " in text for name in OF_CLIENT.names)


def test_both_clients_have_the_same_calls():
    def calls(kind):
        names = {"__aenter__": "__enter__", "__aexit__": "__exit__"}
        return {
            names.get(name, name): [(each.name, each.default) for each in inspect.signature(value).parameters.values()]
            for name, value in vars(kind).items()
            if inspect.isfunction(value) and (not name.startswith("_") or name in ("__call__", "__init__"))
        }

    assert calls(Client) == calls(AsyncClient)
    assert calls(Task) == calls(AsyncTask)


def test_the_package_names_what_it_offers():
    assert set(hidream.__all__) <= set(dir(hidream))
    assert hidream.Client is Client
    assert hidream.AsyncClient is AsyncClient
