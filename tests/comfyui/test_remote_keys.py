"""Keys: found by their names, sent only to their servers, and never shown."""

import pytest
from loaded_nodes import module

from hidream.errors import ConfigurationError, Forbidden, HiDreamError, InvalidInput, Unauthorized

KEY = "hd_secret0123456789"
STUDIO = f'[STUDIO_KEY]\nurl = "https://images.example.com"\nkey = "{KEY}"\n'


@pytest.fixture
def find(standin):
    """Find a key in the stand-in's user folder and an environment."""
    keys = module("remote.keys")

    def find(url, name, file=None, **environ):
        if file is not None:
            path = standin.user_folder / keys.FILE
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(file, encoding="utf-8")
        return keys.credentials(url, name, environ, standin.user_folder)

    return find


@pytest.mark.parametrize(
    ("environ", "name", "url", "found"),
    [
        ({"HIDREAM_API_KEY": KEY}, "HIDREAM_API_KEY", "", "http://127.0.0.1:8000"),
        ({"HIDREAM_API_KEY": KEY}, "HIDREAM_API_KEY", "http://127.0.0.1:8000/", "http://127.0.0.1:8000/"),
        ({"HIDREAM_API_KEY": KEY, "HIDREAM_BASE_URL": "http://lan:9000"}, "HIDREAM_API_KEY", "", "http://lan:9000"),
        ({"WAVESPEED_API_KEY": KEY}, "WAVESPEED_API_KEY", "", "https://api.wavespeed.ai"),
        ({"WAVESPEED_API_KEY": KEY}, "WAVESPEED_API_KEY", "https://API.wavespeed.ai:443", None),
    ],
)
def test_keys_of_the_environment(find, environ, name, url, found):
    credentials = find(url, name, **environ)
    assert (credentials.url, credentials.key) == (found or url, KEY)
    assert KEY not in repr(credentials)


def test_keys_of_the_user_folder(find):
    assert find("", "STUDIO_KEY", STUDIO).url == "https://images.example.com"
    assert find("https://images.example.com", "STUDIO_KEY").key == KEY
    assert find("", "STUDIO_KEY", f"\ufeff{STUDIO}").key == KEY  # as Notepad writes it


def test_the_user_folder_comes_first(find):
    file = STUDIO.replace("STUDIO_KEY", "HIDREAM_API_KEY")
    assert find("", "HIDREAM_API_KEY", file, HIDREAM_API_KEY="hd_other").key == KEY


@pytest.mark.parametrize(
    ("url", "name"),
    [
        ("https://thief.example", "HIDREAM_API_KEY"),
        ("http://127.0.0.1:8001", "HIDREAM_API_KEY"),
        ("https://127.0.0.1:8000", "HIDREAM_API_KEY"),
        ("http://127.0.0.1:8000@thief.example", "HIDREAM_API_KEY"),
        ("not a url", "HIDREAM_API_KEY"),
        ("http://127.0.0.1:port", "HIDREAM_API_KEY"),
        ("http://images.example.com", "STUDIO_KEY"),
        ("https://api.wavespeed.ai", "HIDREAM_API_KEY"),
    ],
)
def test_a_key_is_not_sent_to_another_server(find, url, name):
    with pytest.raises(Forbidden, match="and not for") as refused:
        find(url, name, STUDIO, HIDREAM_API_KEY=KEY)
    assert KEY not in str(refused.value)


@pytest.mark.parametrize("name", ["", KEY, "hidream", "0" * 32, "A" * 65, "PATH\n"])
def test_a_key_in_the_place_of_its_name_is_refused_and_not_repeated(find, name):
    with pytest.raises(InvalidInput, match="never the key itself") as refused:
        find("", name, HIDREAM_API_KEY=KEY)
    assert not name or name not in str(refused.value)
    assert module("remote.server").ServerNode.validate_inputs(name) == refused.value.message


def test_no_other_variable_of_the_environment_is_a_key(find):
    with pytest.raises(Unauthorized, match=r"no key AWS_SECRET_ACCESS_KEY.*keys\.toml"):
        find("", "AWS_SECRET_ACCESS_KEY", AWS_SECRET_ACCESS_KEY="secret")
    with pytest.raises(Unauthorized):
        find("", "HIDREAM_API_KEY", HIDREAM_API_KEY="")


@pytest.mark.parametrize(
    "file",
    [
        f"[STUDIO_KEY\nkey = '{KEY}'",
        f"STUDIO_KEY = '{KEY}'",
        f"[STUDIO_KEY]\nkey = '{KEY}'",
        f"[STUDIO_KEY]\nkey = '{KEY}'\nurl = 'images.example.com'",
        f"[STUDIO_KEY]\nkey = '{KEY}'\nurl = 'https://images.example.com'\nother = 1",
        f"[studio]\nkey = '{KEY}'\nurl = 'https://images.example.com'",
        f"[STUDIO_KEY]\nkey = ''\nurl = 'https://{KEY}'",
    ],
)
def test_a_file_that_is_not_understood(find, file):
    with pytest.raises(ConfigurationError, match=r"keys\.toml") as refused:
        find("", "STUDIO_KEY", file)
    assert KEY not in str(refused.value)


def test_a_file_that_is_no_text(find, standin):
    find("", "STUDIO_KEY", STUDIO)
    (standin.user_folder / module("remote.keys").FILE).write_bytes(b"\xff\xfe\x00")
    with pytest.raises(HiDreamError, match="no text in UTF-8"):
        find("", "STUDIO_KEY")


def test_what_a_workflow_hands_on_has_no_key(standin):
    server = module("remote.server")
    (described,) = server.ServerNode.execute(" http://127.0.0.1:8000 ", "HIDREAM_API_KEY", 600).args
    assert str(described) == "Server(url='http://127.0.0.1:8000', key='HIDREAM_API_KEY', timeout_s=600)"
