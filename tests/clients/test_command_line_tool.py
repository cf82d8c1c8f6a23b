"""`wavespeed`, the command of npm's @wavespeed/cli 0.2.2.

It declares `wavespeed ^0.2.1`, which is 0.2.3; that is overridden by 0.3.2, the SDK that is tested beside it.
"""

import json
import re
import subprocess

import pytest
from driven import surroundings
from environments import environment, node
from received_images import is_image
from service import MODEL, PROMPT

pytestmark = [pytest.mark.timeout(900), pytest.mark.long]  # the first test of a client may have to install it

SMALL = ["-i", "size=256*256", "-i", "seed=7"]


class Tool:
    """The command, with a configuration of its own."""

    def __init__(self, home, url, key):
        self.program = environment("npm-wavespeed-cli") / "node_modules" / "@wavespeed" / "cli" / "dist" / "cli.js"
        self.home, self.environ = home, surroundings(home) | {"WAVESPEED_API_KEY": key}
        self.run("config", "--base-url", url)

    def run(self, *arguments, status=0):
        done = subprocess.run(
            [node(), self.program, *arguments],
            cwd=self.home,
            env=self.environ,
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
            timeout=120,
        )
        assert done.returncode == status, done.stdout + done.stderr
        return done.stdout

    def json(self, *arguments, status=0):
        return json.loads(self.run(*arguments, "--json", status=status))


@pytest.fixture
def tool(tmp_path, service):
    return Tool(tmp_path, service.url, service.key)


@pytest.mark.parametrize("sync", [[], ["--sync"]])
def test_an_image_is_downloaded(tool, sync):
    said = tool.json("run", MODEL, "-p", PROMPT, *SMALL, *sync, "--download", "./{index}.{ext}")
    assert len(said["outputs"]) == 1
    (path,) = tool.home.glob("*.jpeg")
    assert is_image(path)


def test_what_it_says_to_people(tool, service):
    text = tool.run("run", MODEL, "-p", PROMPT, *SMALL)
    assert f"{service.url}/outputs/" in text


def test_history_show_and_delete(tool, service):
    made = tool.json("run", MODEL, "-p", "a green apple", *SMALL)
    history = tool.json("history", "--limit", "1", "--model", MODEL, "--status", "completed")
    (item,) = history["items"]
    assert (item["outputs"], item["input"]["prompt"]) == (made["outputs"], "a green apple")
    assert history["total"] >= history["page"] == 1
    assert tool.json("show", item["id"])["outputs"] == made["outputs"]
    assert item["id"] in tool.run("history", "--limit", "1")
    assert tool.json("delete", item["id"], "--yes") == {"deleted": [item["id"]]}
    assert "404 Not Found" in tool.json("show", item["id"], status=1)["error"]


def test_delete_cancels_a_task_that_waits(tmp_path, idle):
    tool = Tool(tmp_path, idle.url, idle.key)
    task = idle.http.post(f"/api/v3/{MODEL}", json={"prompt": PROMPT}).json()["data"]["id"]
    assert tool.json("show", task)["status"] == "created"
    tool.json("delete", task, "--yes")
    assert tool.json("show", task)["status"] == "cancelled"


def test_an_upload_is_an_image_to_start_from(tool, photo):
    url = tool.json("upload", str(photo))["url"]
    assert is_image(url, kind="PNG")
    assert is_image(tool.json("run", MODEL, "-p", PROMPT, *SMALL, "-i", f"image={url}")["outputs"][0])


def test_the_models_and_what_they_take(tool):
    assert MODEL in [model["model_id"] for model in tool.json("models", "--refresh")]
    assert MODEL in tool.run("models", "hidream", "--type", "text-to-image")
    schema = tool.json("schema", MODEL)
    assert "size" in json.dumps(schema)
    assert "aspect_ratio" in tool.run("schema", MODEL)


def test_balance_and_price(tool):
    assert tool.json("balance")["balance"] == 1000
    price = tool.json("price", MODEL, "-p", PROMPT)
    assert price == {"model_id": MODEL, "unit_price": 0, "currency": "USD"}


def test_its_status(tool, service):
    assert service.url in tool.run("status")


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["run", MODEL, "-i", "size=abc", "-p", PROMPT], "HTTP 400: .*size is 'abc'"),
        (["run", "wavespeed-ai/hidream-i1-large", "-p", PROMPT], f"HTTP 404: .*{MODEL}"),
        (["run", MODEL, "-p", "a naked child"], "Prediction failed .*minors"),
        (["price", "wavespeed-ai/hidream-i1-large"], "404 Not Found"),
    ],
)
def test_what_is_not_accepted_is_an_error(tool, arguments, text):
    assert re.search(text, tool.json(*arguments, status=1)["error"])


def test_a_wrong_key_and_one_that_may_draw_nothing(tmp_path, service, limited):
    wrong = Tool(tmp_path, service.url, "wrong")
    assert "HTTP 401: " in wrong.json("run", MODEL, "-p", PROMPT, status=1)["error"]
    assert "401 Unauthorized" in wrong.json("balance", status=1)["error"]
    few = Tool(tmp_path, service.url, limited)
    assert re.search("HTTP 429: .*pixels a day", few.json("run", MODEL, "-p", PROMPT, status=1)["error"])


def test_sync_mode_that_takes_too_long_leaves_a_task_that_goes_on(tmp_path, hasty):
    tool = Tool(tmp_path, hasty.url, hasty.key)
    error = tool.json("run", MODEL, "-p", PROMPT, "--sync", status=1)["error"]  # a small one may be done meanwhile
    assert re.search(r"Sync mode timed out \(task_id: [0-9a-f]{32}\)", error)
