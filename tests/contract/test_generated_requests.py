"""Requests by the thousand, made by schemathesis from the OpenAPI document: no 5xx, every answer of the documented form.

Of each operation it sends what the document allows and what it does not. Half of the rounds are about tasks and files
that there are, because an id that was drawn at random only ever shows the 404.
"""

import io
import warnings

import httpx
import pytest
from hypothesis import HealthCheck, Phase, given, seed, settings
from PIL import Image

from soak.fleet import KEY, MODEL, Fleet, until

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of libraries that it imports
    import schemathesis
    from schemathesis import GenerationMode
    from schemathesis import checks as st

BEARER = {"Authorization": f"Bearer {KEY}"}
MODES = (GenerationMode.POSITIVE, GenerationMode.NEGATIVE)
EACH = 10
"""Cases of one operation, mode and round; of those without parameters there are fewer."""
TIMEOUT_S = 60


@pytest.fixture(scope="module")
def fleet(tmp_path_factory):
    folder = tmp_path_factory.mktemp("contract")
    with Fleet(folder, apis=1, workers=1, FAST_WORKER_FAILS_EVERY="0", FAST_WORKER_PACE_S="0.001") as fleet:
        yield fleet


def known(fleet):
    """Make a task, its delivery, a picture and an upload; how paths name them."""
    with fleet.client() as http:
        body = {"prompt": "a house", "webhook": "http://127.0.0.1:9/hook", "enable_sync_mode": True}
        task = http.post(f"/api/v3/{MODEL}", json=body | {"enable_base64_output": False}).json()["data"]
        listed = f"/api/v3/predictions/{task['id']}/webhooks"
        (owed,) = until(lambda: http.get(listed).json()["data"])
        file = io.BytesIO()
        Image.new("RGB", (8, 8)).save(file, "PNG")
        sent = http.post("/api/v3/media/upload/binary", files={"file": ("a.png", file.getvalue())}).json()["data"]
    return {
        "prediction_id": task["id"],
        "delivery_id": owed["id"],
        "/outputs/": task["outputs"][0].rpartition("/")[2],
        "/uploads/": sent["download_url"].rpartition("/")[2],
    }


def fixed(operation, there):
    """Values of an operation's path that name what is there, as far as it takes any."""
    wanted = {name: value for name, value in there.items() if f"{{{name}}}" in operation.path}
    return wanted | {"name": value for prefix, value in there.items() if operation.path == prefix + "{name}"}


def run(document, fleet, wanted):
    """Send at least so many requests; the failures, one of each operation and mode."""
    schema = schemathesis.openapi.from_dict(document)
    operations = [found.ok() for found in schema.get_all_operations()]
    assert len(operations) == sum(len(methods) for methods in document["paths"].values())
    checks = [
        st.not_a_server_error,
        st.status_code_conformance,
        st.content_type_conformance,
        st.response_headers_conformance,
        st.response_schema_conformance,
    ]
    sent, failures, numbers = 0, {}, iter(range(1000))
    while sent < wanted:
        number = next(numbers)
        there = known(fleet) if number % 2 else {}
        for operation in operations:
            for mode in MODES:
                before = sent

                def once(case):
                    nonlocal sent
                    sent += 1
                    answer = case.call(base_url=fleet.apis[0].url, headers=BEARER, timeout=TIMEOUT_S)
                    assert answer.status_code < 500, f"{answer.status_code}: {answer.text}"
                    case.validate_response(answer, checks=checks)

                try:
                    explore(operation, mode, fixed(operation, there), number, once)
                except Exception as failure:  # all of them are to be seen, not the first
                    failures.setdefault((operation.label, mode.value), f"{type(failure).__name__}: {failure}")
                print(operation.label, mode.value, sent - before, flush=True)
    return sent, failures


def explore(operation, mode, path_parameters, number, once):
    strategy = operation.as_strategy(generation_mode=mode, path_parameters=path_parameters or None)
    checked = settings(
        max_examples=EACH,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    seed(number)(checked(given(strategy)(once)))()


def hold(fleet, wanted):
    with httpx.Client() as http:
        document = http.get(f"{fleet.apis[0].url}/openapi.json").json()
    sent, failures = run(document, fleet, wanted)
    assert not failures, "\n\n".join(f"{label} {mode}: {text[:1500]}" for (label, mode), text in failures.items())
    assert sent >= wanted
    assert "Traceback" not in fleet.logs()
    assert all(member.alive for member in fleet.members)


def test_fifteen_hundred_requests(fleet):
    hold(fleet, 1500)


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_ten_thousand_requests(fleet):
    hold(fleet, 10_000)
