"""Which URLs may be requested: protection against server-side request forgery, since clients choose the URLs.

`check` parses a URL when it is submitted, and again before every attempt. It accepts http and https, no credentials,
and no literal address that is not public. `addresses` then resolves the host, and refuses it if any of its addresses is
not public. Connect only to the returned addresses: a second resolution may give others.

A URL is parsed only here, into a `Target`: if two parsers disagree, such checks can be bypassed. Whatever is in the
operator's `Allowlist` is allowed.
"""

from __future__ import annotations

import asyncio
import re
import socket
import threading
from collections.abc import Awaitable, Callable, Iterable
from concurrent.futures import Future
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import Self

from hidream.errors import ConfigurationError, InvalidInput

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network

Resolver = Callable[[str, int], Awaitable[list[str]]]
"""Resolves a host name and port to addresses; raises OSError if there are none."""

URL_MAX_CHARS = 2048
"""Longer than any receiver's URL; every prediction's row contains one."""

ACCEPTED = (
    f"accepted: an http or https URL of up to {URL_MAX_CHARS} ASCII characters, without user name and password, "
    "whose host has public addresses only, unless the operator allows it (HIDREAM_WEBHOOKS_ALLOWED)"
)

DEFAULT_PORTS = {"http": 80, "https": 443}

_PRIVATE_4 = tuple(
    IPv4Network(network)
    for network in (
        "0.0.0.0/8",  # this network; 0.0.0.0 reaches this machine (RFC 791)
        "10.0.0.0/8",  # private (RFC 1918)
        "100.64.0.0/10",  # carrier-grade NAT (RFC 6598); Alibaba's metadata is 100.100.100.200
        "127.0.0.0/8",  # loopback (RFC 1122)
        "168.63.129.16/32",  # what Azure's machines ask about themselves; looks public
        "169.254.0.0/16",  # link-local (RFC 3927); most clouds' metadata is 169.254.169.254
        "172.16.0.0/12",  # private (RFC 1918)
        "192.0.0.0/24",  # protocol assignments (RFC 6890); Oracle's metadata is 192.0.0.192
        "192.0.2.0/24",  # documentation (RFC 5737)
        "192.88.99.0/24",  # relays from IPv6, given up (RFC 7526)
        "192.168.0.0/16",  # private (RFC 1918)
        "198.18.0.0/15",  # benchmarks (RFC 2544)
        "198.51.100.0/24",  # documentation (RFC 5737)
        "203.0.113.0/24",  # documentation (RFC 5737)
        "224.0.0.0/4",  # multicast (RFC 5771)
        "240.0.0.0/4",  # reserved (RFC 1112), and broadcast
    )
)
_GLOBAL_6 = IPv6Network("2000::/3")
"""Global unicast (RFC 4291), all that is assigned so far: loopback, private, link-local and multicast lie outside."""
_PRIVATE_6 = tuple(
    IPv6Network(network)
    for network in (
        "2001::/23",  # protocol assignments (RFC 2928); Teredo, which wraps IPv4, among them
        "2001:db8::/32",  # documentation (RFC 3849)
        "2002::/16",  # 6to4, which wraps IPv4, given up (RFC 7526)
        "3fff::/20",  # documentation (RFC 9637)
    )
)
_NAT64 = IPv6Network("64:ff9b::/96")
"""How a network without IPv4 writes public IPv4 addresses (RFC 6052); the last 32 bits are the address."""
_LOOPBACKS = (IPv4Address("127.0.0.1"), IPv6Address("::1"))

_LABEL = "[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?"
_NAME = re.compile(rf"(?=.{{1,253}}$){_LABEL}(?:\.{_LABEL})*")
_NUMBER = re.compile(r"(?:.*\.)?(?:[0-9]+|0x[0-9a-f]*)")
"""A host that a resolver takes for an address, however it is written: 127.1, 0x7f000001 (WHATWG URL, "ends in a
number")."""
_URL = re.compile(
    r"(?P<scheme>https?)://"
    r"(?P<credentials>[^/?#]*@)?"
    r"(?:\[(?P<literal>[0-9a-f:.]+)\]|(?P<name>[a-z0-9._-]+))"
    r"(?::(?P<port>[0-9]{1,5}))?"
    r"(?P<path>/[!-~]*|\?[!-~]*|)",
    re.IGNORECASE | re.ASCII,
)


@dataclass(frozen=True, slots=True)
class Allowlist:
    """What the operator allows besides public addresses: networks, and hosts whatever their addresses are."""

    networks: tuple[Network, ...] = ()
    hosts: frozenset[str] = frozenset()

    @classmethod
    def read(cls, entries: Iterable[str]) -> Self:
        """Read networks such as 10.1.0.0/16, addresses and host names. Raises ConfigurationError."""
        networks, hosts = [], set()
        for entry in entries:
            text = entry.strip().lower().rstrip(".")
            if network := _network(text):
                networks.append(network)
            elif _NAME.fullmatch(text) and not _NUMBER.fullmatch(text):
                hosts.add(text)
            else:
                raise ConfigurationError(
                    f"{entry!r:.100} is not a webhook target; accepted: a network such as 10.1.0.0/16 or fd00:1::/32, "
                    "an address, or a host name without scheme and port"
                )
        return cls(tuple(networks), frozenset(hosts))


@dataclass(frozen=True, slots=True)
class Target:
    """A parsed URL; `host` is without brackets, in lower case.

    `field` is the request's field that errors name.
    """

    scheme: str
    host: str
    port: int
    path: str
    field: str = "webhook"

    @property
    def netloc(self) -> str:
        """The header `Host`: an IPv6 address has brackets, and the scheme's default port is omitted."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == DEFAULT_PORTS[self.scheme] else f"{host}:{self.port}"


def check(url: str, allowed: Allowlist, field: str = "webhook") -> Target:
    """Parse a URL and check it without resolving its host. Raises InvalidInput."""
    parts = _URL.fullmatch(url.partition("#")[0]) if len(url) <= URL_MAX_CHARS else None
    if parts is None:
        raise _refused(url, field)
    if parts["credentials"] is not None:
        raise InvalidInput(f"{field} has a user name or a password in it (not shown); {ACCEPTED}")
    scheme = parts["scheme"].lower()
    port = int(parts["port"]) if parts["port"] else DEFAULT_PORTS[scheme]
    host = (parts["literal"] or parts["name"].removesuffix(".")).lower()
    literal = _literal(host, bracketed=parts["literal"] is not None)
    if not 1 <= port <= 65535 or (literal is None and (_NUMBER.fullmatch(host) or not _NAME.fullmatch(host))):
        raise _refused(url, field)
    if host not in allowed.hosts and not all(is_permitted(address, allowed) for address in _known(host, literal)):
        raise _refused(url, field)
    path = parts["path"]
    return Target(scheme, str(literal or host), port, path if path.startswith("/") else f"/{path}", field)


async def addresses(target: Target, allowed: Allowlist, resolve: Resolver) -> list[Address]:
    """Return the addresses that may be connected to, in the order in which to try them.

    Raises InvalidInput if any address of the host is not public, OSError if there is none. The error does not contain
    the address, because it would reveal names of the internal network to clients.
    """
    literal = _literal(target.host, bracketed=":" in target.host)
    found = [literal] if literal else [ip_address(text) for text in await resolve(target.host, target.port)]
    if not found:
        raise socket.gaierror(socket.EAI_NONAME, "the name has no address")
    if target.host not in allowed.hosts and not all(is_permitted(address, allowed) for address in found):
        raise InvalidInput(f"{target.field} leads to an address that is not public; {ACCEPTED}")
    return found


def is_permitted(address: Address, allowed: Allowlist) -> bool:
    """Whether an address is public, or in a network that the operator allows."""
    unwrapped = _unwrapped(address)
    return any(address in network or unwrapped in network for network in allowed.networks) or _public(unwrapped)


async def resolve(host: str, port: int) -> list[str]:
    """Resolve a name with the system's resolver, including the hosts file. Raises OSError.

    Each look-up has its own daemon thread. If a name server does not answer, the thread hangs for half a minute; that
    must not block other look-ups, file accesses, or the exit of the process.
    """
    answer: Future[list[str]] = Future()
    answer.set_running_or_notify_cancel()  # so that a cancelled wait does not affect the thread

    def ask() -> None:
        try:
            found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
            answer.set_result([str(sockaddr[0]) for *_, sockaddr in found])
        except OSError as error:
            answer.set_exception(error)

    threading.Thread(target=ask, name="webhook-lookup", daemon=True).start()
    return await asyncio.wrap_future(answer)


def _refused(url: str, field: str) -> InvalidInput:
    seen = f"is {url!r:.100}" if len(url) <= URL_MAX_CHARS else f"has {len(url)} characters"
    return InvalidInput(f"{field} {seen}; {ACCEPTED}")


def _known(host: str, literal: Address | None) -> tuple[Address, ...]:
    """List the addresses that are known without a look-up; localhost needs none (RFC 6761)."""
    if literal is not None:
        return (literal,)
    return _LOOPBACKS if host == "localhost" or host.endswith(".localhost") else ()


def _literal(host: str, bracketed: bool) -> Address | None:
    """Parse an address in its unambiguous notation; None if it is anything else."""
    try:
        return IPv6Address(host) if bracketed else IPv4Address(host)
    except ValueError:
        return None


def _network(text: str) -> Network | None:
    try:
        return ip_network(text)
    except ValueError:
        return None


def _unwrapped(address: Address) -> Address:
    """Return the IPv4 address that an IPv6 address contains, or the address itself."""
    if isinstance(address, IPv4Address):
        return address
    if address in _NAT64:
        return IPv4Address(int(address) & 0xFFFF_FFFF)
    return address.ipv4_mapped or address


def _public(address: Address) -> bool:
    if isinstance(address, IPv4Address):
        return not any(address in network for network in _PRIVATE_4)
    return address in _GLOBAL_6 and not any(address in network for network in _PRIVATE_6)
