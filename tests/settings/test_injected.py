"""Variables that Kubernetes and Docker set are distinguished from settings, even with the same name."""

import pytest
from every_setting import HINTS

from hidream.settings import sources
from hidream.settings.injected import injected


def service(name, address="10.96.7.1", port=8000, protocol="tcp"):
    """What a pod gets for a Service, as kubelet writes it (pkg/kubelet/envvars), its first port called http."""
    prefix = name.upper().replace("-", "_")
    host = f"[{address}]" if ":" in address else address
    link, url = f"{prefix}_PORT_{port}_{protocol.upper()}", f"{protocol}://{host}:{port}"
    return {
        f"{prefix}_SERVICE_HOST": address,
        f"{prefix}_SERVICE_PORT": str(port),
        f"{prefix}_SERVICE_PORT_HTTP": str(port),
        f"{prefix}_PORT": url,
        link: url,
        f"{link}_PROTO": protocol,
        f"{link}_PORT": str(port),
        f"{link}_ADDR": address,
    }


SUFFIXES = ("-server", "-api", "-worker", "-outputs", "-models", "-model", "-service", "-2")
SERVICES = [f"hidream{suffix}" for suffix in ("", *SUFFIXES)]
ADDRESSES = [("10.96.7.1", "tcp"), ("fd00::a:1", "tcp"), ("10.96.7.1", "udp"), ("10.96.7.1", "sctp")]


@pytest.mark.parametrize("name", SERVICES)
@pytest.mark.parametrize(("address", "protocol"), ADDRESSES)
def test_variables_of_a_service_are_passed_over(name, address, protocol):
    made = service(name, address, 8000, protocol)
    assert all(injected(*each) for each in made.items())
    config = sources.load({"HIDREAM_HOME": "/nowhere"} | made)
    assert config == sources.load({"HIDREAM_HOME": "/nowhere"})
    assert sources.ignored_variables({"HIDREAM_HOME": "/nowhere"} | made) == sorted(made)
    assert not any(variable in sources.to_environ(config) for variable in made if variable != "HIDREAM_SERVER_PORT")
    assert sources.to_environ(config)["HIDREAM_SERVER_PORT"] == "8000"


def test_variables_of_a_docker_link_are_passed_over():
    link = {
        "HIDREAM_NAME": "/shop/hidream",
        "HIDREAM_API_NAME": "/shop/hidream-api",
        "HIDREAM_ENV_POSTGRES_PASSWORD": "any\nthing",
        "HIDREAM_PORT": "tcp://172.17.0.5:8000",
        "HIDREAM_PORT_8000_TCP_START": "tcp://172.17.0.5:8000",
        "HIDREAM_PORT_8000_TCP_END": "tcp://172.17.0.5:8002",
        "HIDREAM_PORT_8000_TCP_PORT_START": "8000",
        "HIDREAM_PORT_8000_TCP_PORT_END": "8002",
    }
    assert [name for name, value in link.items() if not injected(name, value)] == []


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("HIDREAM_PORT", "8000"),
        ("HIDREAM_SERVER_PORT", "8000"),
        ("HIDREAM_SERVER_PORT", "many"),
        ("HIDREAM_SERVICE_HOST", "localhost"),
        ("HIDREAM_SERVER_HOST", "10.0.0.1"),
        ("HIDREAM_SERVICE_PORTS", "8000"),
        ("HIDREAM_PORT_8000_TCP_PROTO", "http"),
        ("HIDREAM_MODEL_NAME", "/models/HiDream-I1-Dev"),
        ("HIDREAM_COMPUTE_ENV_DTYPE", "float16"),
        ("HIDREAM_SERVER_PORT", "tcp://10.0.0.1:8000x"),
        ("HIDREAMSERVICE_HOST", "10.0.0.1"),
        ("SERVICE_HOST", "10.0.0.1"),
        ("OTHER_NAME", "/x/other"),
    ],
)
def test_others_are_not(name, value):
    assert not injected(name, value)


def test_no_setting_but_the_port_could_be_taken_for_one():
    values = ["8000", "tcp://10.0.0.1:8000", "10.0.0.1", "tcp", "/a/b", "x"]
    taken = {(name, value) for name in HINTS for value in values if injected(sources.env_name(*name), value)}
    assert taken == {(("server", "port"), "tcp://10.0.0.1:8000")}
