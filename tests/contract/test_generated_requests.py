"""Thousands of requests that schemathesis generates from the OpenAPI document: no 5xx, and documented responses.

Of each operation it sends what the document allows and what it does not. Half of the rounds are about tasks and files
that there are, because an id that was drawn at random only ever shows the 404.
"""

import io
import itertools
import warnings
from collections import defaultdict

import httpx
import pytest
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis.errors import Unsatisfiable
from PIL import Image

from soak.fleet import KEY, MODEL, Fleet, until

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of libraries that it imports
    import schemathesis
    from schemathesis import GenerationMode
    from schemathesis import checks as st

BEARER = {"Authorization": f"Bearer {KEY}"}
MODES = (GenerationMode.POSITIVE, GenerationMode.NEGATIVE)
CHECKS = [
    st.not_a_server_error,
    st.status_code_conformance,
    st.content_type_conformance,
    st.response_headers_conformance,
    st.response_schema_conformance,
]
TIMEOUT_S = 60
NEVER_RIGHT = {"PUT /uploads/{name}", "POST /v1/images/edits", "GET /docs", "HEAD /docs", "GET /docs/{path}"}
NEVER_RIGHT |= {"HEAD /docs/{path}"}
"""The first two take images (the first only the one that was announced), and generated texts and bytes are none. The
documents are not built here, and their first page is a redirect.
"""


@pytest.fixture(scope="module")
def fleet(tmp_path_factory):
    folder = tmp_path_factory.mktemp("contract")
    with Fleet(folder, apis=1, workers=1, FAST_WORKER_FAILS_EVERY="0", FAST_WORKER_PACE_S="0.001") as fleet:
        yield fleet


def known(fleet):
    """Make a task, its delivery, an image and an upload; how paths name them."""
    with fleet.client() as http:
        body = {"prompt": "a house", "webhook": "http://127.0.0.1:9/hook", "enable_base64_output": False}
        task = told(http.post(f"/api/v3/{MODEL}", json=body))
        listed = f"/api/v3/predictions/{task['id']}/webhooks"
        (owed,) = until(lambda: told(http.get(listed)), 240)  # all that was submitted before is drawn first
        task = told(http.get(f"/api/v3/predictions/{task['id']}"))
        file = io.BytesIO()
        Image.new("RGB", (8, 8)).save(file, "PNG")
        sent = told(http.post("/api/v3/media/upload/binary", files={"file": ("a.png", file.getvalue())}))
    return {
        "prediction_id": task["id"],
        "delivery_id": owed["id"],
        "/v1/models/": MODEL.partition("/")[2],
        "/outputs/": task["outputs"][0].rpartition("/")[2],
        "/uploads/": sent["download_url"].rpartition("/")[2],
    }


def told(answer):
    assert answer.status_code == 200, answer.text
    return answer.json()["data"]


def fixed(operation, there):
    """Values of an operation's path that name what is there, as far as it takes any."""
    wanted = {name: value for name, value in there.items() if f"{{{name}}}" in operation.path}
    for prefix, value in there.items():
        if operation.path == prefix + "{name}":
            wanted["name"] = value
    return wanted


def removes(operation):
    """Whether it is last, because others would not find what they are about."""
    return operation.method.upper() == "DELETE"


def run(document, fleet, wanted, each, first_seed):
    """Send so many requests, in whole rounds, or until one has failed.

    `each` is the number of cases of one operation, mode and round; of those without parameters there are fewer.
    `first_seed` is even: the odd rounds are those about what there is.

    Their number, the answers' statuses of each operation, and a failure of each operation and mode.
    """
    schema = schemathesis.openapi.from_dict(document)
    operations = sorted((found.ok() for found in schema.get_all_operations()), key=removes)
    assert len(operations) == sum(len(methods) for methods in document["paths"].values())
    failures, seen, numbers = {}, defaultdict(list), itertools.count(first_seed)
    while sum(map(len, seen.values())) < wanted and not failures:
        number = next(numbers)
        there = known(fleet) if number % 2 else {}
        for operation in operations:
            for mode in MODES:
                try:
                    once = sender(fleet, seen[operation.label])
                    explore(strategy_of(operation, mode, there), each, number, once)
                except Unsatisfiable:  # where all is settled there is nothing to get wrong
                    pass
                except Exception as failure:  # all of a round are to be seen, not the first
                    failures.setdefault((operation.label, mode.value), f"{type(failure).__name__}: {failure}")
    return seen, failures


def sender(fleet, statuses):
    """What sends a case, checks its answer and notes the status. `given` takes no function with defaults."""

    def once(case):
        answer = case.call(base_url=fleet.apis[0].url, headers=BEARER, timeout=TIMEOUT_S)
        statuses.append(answer.status_code)
        assert answer.status_code < 500, f"{answer.status_code}: {answer.text}"
        case.validate_response(answer, checks=CHECKS)

    return once


def strategy_of(operation, mode, there):
    path = fixed(operation, there) or None
    if there and operation.path.startswith("/api/{api}/model/"):
        body = {"model_id": MODEL, "inputs": {"prompt": "a house"}}
        return operation.as_strategy(generation_mode=mode, path_parameters=path, body=body)
    return operation.as_strategy(generation_mode=mode, path_parameters=path)


def explore(strategy, each, number, once):
    checked = settings(
        max_examples=each,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    seed(number)(checked(given(strategy)(once)))()


def hold(fleet, wanted, each, first_seed):
    with httpx.Client() as http:
        document = http.get(f"{fleet.apis[0].url}/openapi.json").json()
    seen, failures = run(document, fleet, wanted, each, first_seed)
    assert not failures, "\n\n".join(f"{label} {mode}: {text[:1500]}" for (label, mode), text in failures.items())
    assert sum(map(len, seen.values())) >= wanted
    assert {label for label, statuses in seen.items() if not {200, 204} & set(statuses)} <= NEVER_RIGHT
    assert "Traceback" not in fleet.logs()
    assert KEY not in fleet.logs()
    assert all(member.alive for member in fleet.members)


def test_two_rounds_of_requests(fleet, first_seed):
    hold(fleet, 300, each=3, first_seed=first_seed)


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_ten_thousand_requests(fleet, first_seed):
    hold(fleet, 10_000, each=10, first_seed=first_seed)
