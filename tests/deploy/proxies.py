"""The proxies of deploy/proxy, as Debian has them, before an API process: free ports, a test certificate."""

import contextlib
import os
import re
import shutil
import socket
import ssl
import subprocess
import time
from pathlib import Path

import pytest
import trustme

PROXY = Path(__file__).parents[2] / "deploy" / "proxy"


class Proxy:
    """`name` is nginx or caddy, `url` what it is reached by, `trust` a context that knows its certificate."""

    def __init__(self, name, folder, api_address):
        self.name, self.folder = name, folder
        self.port, plain = free_port(), free_port()
        self.url = f"https://localhost:{self.port}"
        authority = trustme.CA()
        self.trust = ssl.create_default_context()
        authority.configure_trust(self.trust)
        certificate = authority.issue_cert("localhost")
        cert, key = folder / "cert.pem", folder / "key.pem"
        key.write_bytes(certificate.private_key_pem.bytes())
        cert.write_bytes(b"".join(part.bytes() for part in certificate.cert_chain_pems))
        environ = {"PATH": os.environ["PATH"], "HOME": str(folder), "XDG_DATA_HOME": str(folder)}
        if name == "caddy":
            environ |= {"SITE": f"localhost:{self.port}", "UPSTREAMS": api_address, "TLS": f"tls {cert} {key}"}
            environ |= {"HTTP_PORT": str(plain)}
            command = ["run", "--config", PROXY / "Caddyfile", "--adapter", "caddyfile"]
        else:
            (folder / "nginx.conf").write_text(self.nginx(api_address, cert, key))
            command = ["-c", folder / "nginx.conf", "-g", "daemon off;"]
        self.log = folder / "log"
        with self.log.open("wb") as log:
            self.process = subprocess.Popen([binary(name), *command], env=environ, stdout=log, stderr=log)

    def nginx(self, api_address, cert, key):
        """The configuration for this machine: who would deploy it changes the same places."""
        text = (PROXY / "nginx.conf").read_text()
        changes = {
            "pid /run/nginx.pid;": f"pid {self.folder}/pid;",
            "worker_processes auto;": "worker_processes 1;",
            "worker_rlimit_nofile 65536;": "worker_rlimit_nofile 4096;",
            "worker_connections 16384;": "worker_connections 1024;",
            "listen 443 ssl": f"listen 127.0.0.1:{self.port} ssl",
            "server 127.0.0.1:8000 ": f"server {api_address} ",
            "/etc/hidream/tls/cert.pem": str(cert),
            "/etc/hidream/tls/key.pem": str(key),
        }
        for before, after in changes.items():
            assert text.count(before) == 1, before
            text = text.replace(before, after)
        temporary = "".join(
            f"{kind}_temp_path {self.folder}/{kind};\n" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        )
        text = text.replace("http {\n", "http {\n" + temporary)
        return ("user root;\n" if os.geteuid() == 0 else "") + text

    def wait(self):
        deadline = time.monotonic() + 30
        while True:
            assert self.process.poll() is None, self.log.read_text()
            with contextlib.suppress(OSError), self.connect():
                return
            assert time.monotonic() < deadline, self.log.read_text()
            time.sleep(0.05)

    def connect(self):
        """A connection with TLS, on which a test may say what it likes."""
        plain = socket.create_connection(("127.0.0.1", self.port), timeout=30)
        return self.trust.wrap_socket(plain, server_hostname="localhost")

    def stop(self):
        self.process.terminate()
        try:
            self.process.wait(20)
        finally:
            self.process.kill()
            self.process.wait()


@contextlib.contextmanager
def started(name, folder, api_address):
    proxy = Proxy(name, folder, api_address)
    try:
        proxy.wait()
        yield proxy
    finally:
        proxy.stop()


def binary(name):
    """Where a proxy's program is, which Debian keeps out of a user's path; `make test` installs it."""
    found = shutil.which(name) or shutil.which(name, path="/usr/sbin:/usr/local/sbin")
    if found is None:
        package = {"nginx": "nginx-light"}.get(name, name)
        pytest.fail(f"there is no {name}; `make test` installs it as root, or: apt-get install {package}")
    return found


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as free:
        return free.getsockname()[1]


def sockets_of(pid):
    """How many sockets a process has open."""
    targets = []
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(OSError):
            targets.append(str(entry.readlink()))
    return sum(bool(re.match("socket:", target)) for target in targets)
