"""Images at URLs that strangers send: from hosts that are allowed, and by no detour from any other.

A name is resolved once, its addresses are checked, and the connection goes to the address that was checked, so that a
name that changes its address in between gains nothing.
"""

from __future__ import annotations

import asyncio
import ipaddress
import re
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from urllib.parse import SplitResult, urljoin, urlsplit

import httpx2

from .errors import RequestError, too_large
from .limits import Limits
from .memory import Held


PORTS = {"http": 80, "https": 443}
REDIRECTS = 3
"""How often an image may have moved, within its host."""

_WRAPPING = tuple(map(ipaddress.ip_network, ("64:ff9b::/96", "2002::/16")))
"""Addresses that lead to an IPv4 address in them."""

_HOST = re.compile(r"(?:\*\.)?[a-z0-9](?:[a-z0-9.-]*[a-z0-9])?|\[[0-9a-f:.]+\]")


@dataclass(frozen=True)
class _Place:
    """Where a URL leads."""

    scheme: str
    host: str
    port: int
    path: str

    @property
    def origin(self) -> tuple[str, str, int]:
        return self.scheme, self.host, self.port


class Fetcher:
    """Fetches images from hosts that are allowed.

    Args:
        hosts: see `create_app`.
        private: whether they may have addresses of this machine and of private networks.

    Raises:
        ValueError: for what is no name of a host.
    """

    def __init__(self, hosts: Sequence[str], private: bool, limits: Limits) -> None:
        self._allowed = [_pattern(host) for host in hosts]
        self._private, self._limits = private, limits
        # Kept connections would carry requests to another host of the same address.
        self._client = httpx2.AsyncClient(
            trust_env=False,
            follow_redirects=False,
            timeout=limits.fetch_seconds,
            limits=httpx2.Limits(max_connections=16, max_keepalive_connections=0),
        )

    async def close(self) -> None:
        """Let go of all connections."""
        await self._client.aclose()

    async def fetch(self, url: str, name: str, held: Held) -> bytes:
        """The file at a URL.

        Args:
            name: for messages, such as 'image 1'.

        Raises:
            RequestError: if it is elsewhere, too large, or cannot be had in time.
        """
        place = self._allowed_place(url, name)
        try:
            async with asyncio.timeout(self._limits.fetch_seconds):
                for _ in range(REDIRECTS + 1):
                    found = await self._get(place, name, held)
                    if isinstance(found, bytes):
                        return found
                    moved = self._allowed_place(urljoin(f"{place.scheme}://{_netloc(place)}{place.path}", found), name)
                    if moved.origin != place.origin:
                        raise _refused(name, "it has moved to another host")
                    place = moved
        except TimeoutError:
            raise _failed(name, f"it did not come within {self._limits.fetch_seconds:g} seconds") from None
        except httpx2.HTTPError as error:
            raise _failed(name, f"there was a {type(error).__name__}") from None
        raise _failed(name, "it has moved too often")

    async def _get(self, place: _Place, name: str, held: Held) -> bytes | str:
        """The file, or where it has moved to."""
        address = await self._address(place, name)
        host = f"[{address}]" if ":" in address else address
        async with self._client.stream(
            "GET",
            f"{place.scheme}://{host}:{place.port}{place.path}",
            # What is packed may be any size unpacked.
            headers={"Host": _netloc(place), "Accept": "image/*", "Accept-Encoding": "identity"},
            extensions={"sni_hostname": place.host},
        ) as response:
            if response.is_redirect:
                return response.headers.get("location", "")
            if response.status_code != 200:
                raise _failed(name, f"its host answered with the status {response.status_code}")
            if response.headers.get("content-encoding", "identity").lower() != "identity":
                raise _failed(name, "its host sent it packed")
            length = response.headers.get("content-length", "")
            if length.isdecimal() and int(length) > self._limits.body:
                raise _file_too_large(name, self._limits)
            data = bytearray()
            async for chunk in response.aiter_raw():
                if len(data) + len(chunk) > self._limits.body:
                    raise _file_too_large(name, self._limits)
                held.add(2 * len(chunk))
                data += chunk
            return bytes(data)

    def _allowed_place(self, url: str, name: str) -> _Place:
        parts = _parsed(url)
        if parts is None or parts.hostname is None:
            raise _refused(name, "its URL cannot be read")
        if parts.username is not None or parts.password is not None:
            raise _refused(name, "its URL holds a user or password")
        host, port = parts.hostname.rstrip("."), parts.port or PORTS[parts.scheme]
        for pattern, own_port in self._allowed:
            inside = host.endswith(pattern[1:]) if pattern.startswith("*.") else host == pattern
            if inside and port == (own_port or PORTS[parts.scheme]):
                path = parts.path or "/"
                return _Place(parts.scheme, host, port, f"{path}?{parts.query}" if parts.query else path)
        raise _refused(name, "this server fetches no images from its host")

    async def _address(self, place: _Place, name: str) -> str:
        """An address of the host, all of whose addresses are public ones unless others are allowed."""
        try:
            found = await asyncio.get_running_loop().getaddrinfo(place.host, place.port, type=socket.SOCK_STREAM)
        except OSError:
            raise _failed(name, "its host has no address") from None
        addresses = [str(entry[4][0]).partition("%")[0] for entry in found]
        if not addresses or (not self._private and not all(map(is_public, addresses))):
            raise _refused(name, "its host is in a private network")
        return addresses[0]


def is_public(address: str) -> bool:
    """Whether an IP address is one of the internet, and not of this machine, its networks, or of none."""
    found = ipaddress.ip_address(address)
    if isinstance(found, ipaddress.IPv6Address):
        if found.ipv4_mapped is not None:
            return is_public(str(found.ipv4_mapped))
        if any(found in network for network in _WRAPPING):
            return False
    return found.is_global and not found.is_multicast and not found.is_reserved


def _pattern(host: str) -> tuple[str, int | None]:
    """A host as it is allowed, and its port if it has one of its own."""
    name, colon, port = host.strip().lower().rpartition(":")
    if not colon or (name.startswith("[") and not name.endswith("]")) or not port.isdecimal():
        name, port = host.strip().lower(), ""
    if not _HOST.fullmatch(name) or (port and not 0 < int(port) < 65536):
        raise ValueError(
            f"Expected the name of a host, such as 'images.example.com', '*.example.com' or 'localhost:8000', but got "
            f"{host!r}."
        )
    return name.strip("[]"), int(port) if port else None


def _parsed(url: str) -> SplitResult | None:
    # Programs do not agree on what these mean.
    if not url.isascii() or re.search(r"[\s\\\x00-\x20\x7f]", url):
        return None
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError:
        return None
    return parts if parts.scheme in PORTS and parts.port != 0 else None


def _netloc(place: _Place) -> str:
    host = f"[{place.host}]" if ":" in place.host else place.host
    return host if place.port == PORTS[place.scheme] else f"{host}:{place.port}"


def _refused(name: str, why: str) -> RequestError:
    return RequestError(403, "url_not_allowed", f"Expected {name} at an allowed URL, but {why}. Send the file itself.")


def _failed(name: str, why: str) -> RequestError:
    return RequestError(502, "fetch_failed", f"Could not fetch {name}: {why}.")


def _file_too_large(name: str, limits: Limits) -> RequestError:
    return too_large(f"Expected {name} to have at most {limits.body} bytes, but it has more.")
