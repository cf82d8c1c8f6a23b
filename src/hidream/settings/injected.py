"""Variables that look like settings, and were put into the environment by Kubernetes or Docker.

A pod gets variables for each Service of its namespace (https://kubernetes.io/docs/concepts/services-networking/service/,
"Environment variables"), a container some for each that it is linked to (https://docs.docker.com/engine/network/links/).
Those of a Service `hidream` or `hidream-…` begin like ours; that of `hidream-server` is even called like one of ours,
HIDREAM_SERVER_PORT. They are told apart by name and value together.
"""

from __future__ import annotations

import re

_URL = r"(tcp|udp|sctp)://[\w.:\[\]-]+:\d+"
_ADDRESS = r"[\da-fA-F.:]+"
_NUMBER = r"\d+"
_LINK = r"PORT_\d+_(TCP|UDP|SCTP)"

_FORMS = {
    "SERVICE_HOST": _ADDRESS,
    r"SERVICE_PORT(_\w+)?": _NUMBER,
    "PORT": _URL,
    rf"{_LINK}(_START|_END)?": _URL,
    rf"{_LINK}_ADDR": _ADDRESS,
    rf"{_LINK}_PORT(_START|_END)?": _NUMBER,
    rf"{_LINK}_PROTO": "tcp|udp|sctp",
}
"""What follows the Service's or container's name, and the values that it has."""


def injected(name: str, value: str) -> bool:
    """Whether a variable has name and value of one that was put there."""
    if _names_a_link(name, value) or name.startswith("HIDREAM_ENV_"):  # no setting begins so
        return True
    return any(
        re.fullmatch(rf"HIDREAM_(\w+_)?{ending}", name, re.ASCII) and re.fullmatch(form, value, re.ASCII | re.DOTALL)
        for ending, form in _FORMS.items()
    )


def _names_a_link(name: str, value: str) -> bool:
    """Whether it is Docker's ALIAS_NAME=/container/alias."""
    alias = value.rpartition("/")[2].upper().replace("-", "_")
    return name.startswith("HIDREAM") and value.startswith("/") and name == f"{alias}_NAME"
