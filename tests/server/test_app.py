"""The application: errors of every origin in one shape, and a process that stays light."""

import subprocess
import sys

import pytest

from hidream.store import predictions
from hidream.types import Mode


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/", 404),
        ("GET", "/nothing/here", 404),
        ("GET", "/docs", 404),
        ("GET", "/openapi.json", 404),
        ("GET", "/api/v9/predictions/x", 404),
        ("POST", "/api/v3/other-vendor/model", 404),
        ("GET", "/healthz/", 404),
        ("GET", "/api/v3/wavespeed-ai/hidream-i1-dev", 405),
        ("DELETE", "/healthz", 405),
        ("OPTIONS", "/api/v3/predictions/x/result", 405),
    ],
)
def test_the_frameworks_own_errors_have_the_same_shape(with_api, method, path, status):
    async def scenario(api):
        answer = await api.client.request(method, path, headers=api.bearer)
        assert answer.status_code == status
        body = answer.json()
        assert body == {"code": status, "message": body["message"], "data": None, "error": body["message"]}
        if status == 405:
            assert answer.headers["allow"] in body["message"]

    with_api(scenario)


def test_what_nobody_has_foreseen_is_a_500_that_tells_nothing(with_api):
    async def scenario(api):
        submitted = (await api.submit("v2", prompt="a house")).json()["data"]
        task = await predictions.claim(api.database, [submitted["model"]], "w", dict.fromkeys(Mode, "v1"), 15)
        (api.settings.outputs_dir / task.output_name).mkdir(parents=True)  # a folder where a file should be
        await predictions.complete(api.database, task, False, 1)
        answer = await api.get(submitted["urls"]["get"])
        assert (answer.status_code, answer.json()["code"]) == (500, 500)
        assert "directory" not in answer.text
        assert task.output_name not in answer.text

    with_api(scenario)


def test_the_api_process_has_neither_torch_nor_the_model():
    code = """
import sys
import hidream.server.serve
heavy = {"torch", "transformers", "diffusers", "onnxruntime", "hidream.model", "hidream.worker"} & set(sys.modules)
assert not heavy, heavy
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
