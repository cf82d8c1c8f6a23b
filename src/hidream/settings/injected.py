"""Environment variables that look like settings, but were set by Kubernetes or Docker.

Kubernetes sets variables in a pod for each Service of its namespace
(https://kubernetes.io/docs/concepts/services-networking/service/, "Environment variables"), and Docker sets them in a
container for each linked container (https://docs.docker.com/engine/network/links/). For a Service `hidream` or
`hidream-…` they begin like our settings. One of `hidream-server` even has the name of a setting, HIDREAM_SERVER_PORT.
So name and value together decide.
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
"""Patterns of the part of a name after the Service or container, with a pattern of the value."""


def injected(name: str, value: str) -> bool:
    """Whether a variable was set by Kubernetes or Docker, by its name and value."""
    if _is_link_name(name, value) or name.startswith("HIDREAM_ENV_"):  # no setting has this prefix
        return True
    return any(
        re.fullmatch(rf"HIDREAM_(\w+_)?{ending}", name, re.ASCII) and re.fullmatch(form, value, re.ASCII | re.DOTALL)
        for ending, form in _FORMS.items()
    )


def _is_link_name(name: str, value: str) -> bool:
    """Whether a variable is Docker's ALIAS_NAME=/container/alias."""
    alias = value.rpartition("/")[2].upper().replace("-", "_")
    return name.startswith("HIDREAM") and value.startswith("/") and name == f"{alias}_NAME"
