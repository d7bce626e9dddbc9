"""Images at URLs: from allowed hosts alone, whatever the URL, the name's addresses or the host try."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from reward_server import RewardServer, error_of, filled

from fk_steer.server import Limits
from fk_steer.server.errors import RequestError
from fk_steer.server.fetching import Fetcher, is_public
from fk_steer.server.memory import Memory


class Host:
    """A host of images on this machine, on two ports, which notes what is asked of it."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, str]] = []
        owner = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *args: Any) -> None:
                pass

            def do_GET(self) -> None:
                owner.asked.append((self.headers["Host"], self.path))
                kind = self.path.strip("/").partition("?")[0]
                # The server may have had enough.
                with contextlib.suppress(OSError):
                    getattr(owner, kind.partition("/")[0], owner.missing)(self)

        self.servers = [ThreadingHTTPServer(("127.0.0.1", 0), Handler) for _ in range(2)]
        self.port, self.other = (server.server_port for server in self.servers)
        for server in self.servers:
            threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    def close(self) -> None:
        for server in self.servers:
            server.shutdown()
            server.server_close()

    def send(self, handler: Any, status: int, body: bytes = b"", **headers: str) -> None:
        handler.send_response(status)
        for name, value in headers.items():
            handler.send_header(name.replace("_", "-"), value)
        handler.end_headers()
        handler.wfile.write(body)

    def image(self, handler: Any) -> None:
        self.send(handler, 200, filled(77))

    def missing(self, handler: Any) -> None:
        self.send(handler, 404)

    def moved(self, handler: Any) -> None:
        self.send(handler, 302, Location="/image")

    def elsewhere(self, handler: Any) -> None:
        self.send(handler, 302, Location=f"http://127.0.0.1:{self.other}/image")

    def metadata(self, handler: Any) -> None:
        self.send(handler, 302, Location="http://169.254.169.254/latest/meta-data")

    def circle(self, handler: Any) -> None:
        self.send(handler, 302, Location="/circle")

    def endless(self, handler: Any) -> None:
        handler.send_response(200)
        handler.end_headers()
        for _ in range(2000):
            handler.wfile.write(bytes(65536))

    def stated(self, handler: Any) -> None:
        self.send(handler, 200, Content_Length=str(10**12))

    def packed(self, handler: Any) -> None:
        self.send(handler, 200, b"x", Content_Encoding="gzip")

    def slow(self, handler: Any) -> None:
        handler.send_response(200)
        handler.end_headers()
        for _ in range(100):
            handler.wfile.write(b"x")
            handler.wfile.flush()
            time.sleep(0.05)

    def text(self, handler: Any) -> None:
        self.send(handler, 200, b"<html>")


@pytest.fixture(scope="module")
def host():
    running = Host()
    yield running
    running.close()


@pytest.fixture(scope="module")
def server(host):
    hosts = [f"localhost:{host.port}", f"127.0.0.1:{host.port}", "images.example.com"]
    with RewardServer(hosts=hosts, private_hosts=True, limits=Limits(body=1_000_000, fetch_seconds=20.0)) as running:
        yield running


def ask(server: RewardServer, url: str):
    return server.client.post("/score", json={"images": [url], "prompts": ["a"]})


@pytest.mark.parametrize("path", ["image", "image?size=8&x=%20", "moved"])
def test_images_are_fetched_from_allowed_hosts(server, host, path):
    reply = ask(server, f"http://localhost:{host.port}/{path}")
    assert reply.json() == {"scores": {"red": [77.0]}}
    assert (f"localhost:{host.port}", f"/{path}") in host.asked  # by its name and not its address
    assert server.service.memory.used == 0


@pytest.mark.parametrize(
    ("path", "status", "code"),
    [
        ("missing", 502, "fetch_failed"),
        ("elsewhere", 403, "url_not_allowed"),
        ("metadata", 403, "url_not_allowed"),
        ("circle", 502, "fetch_failed"),
        ("endless", 413, "too_large"),
        ("stated", 413, "too_large"),
        ("packed", 502, "fetch_failed"),
        ("text", 415, "unknown_image_type"),
    ],
)
def test_what_hosts_do_instead(server, host, path, status, code):
    reply = ask(server, f"http://localhost:{host.port}/{path}")
    assert error_of(reply, status) == code
    assert "image 1" in reply.json()["error"]["message"]
    assert server.service.memory.used == 0


def test_slow_hosts_are_not_waited_for(host):
    with RewardServer(hosts=[f"localhost:{host.port}"], private_hosts=True, limits=Limits(fetch_seconds=0.3)) as server:
        reply = ask(server, f"http://localhost:{host.port}/slow")
        assert error_of(reply, 502) == "fetch_failed"
        assert "within 0.3 seconds" in reply.json()["error"]["message"]


URLS = [
    "http://127.0.0.1:{other}/image",
    "http://localhost/image",
    "https://localhost:{port}0/image",
    "http://evil.com/image",
    "http://images.example.com.evil.com/",
    "http://evil-images.example.com/",
    "http://sub.images.example.com/",
    "http://images.example.com:22/",
    "http://images.example.com@evil.com/",
    "http://localhost:{port}@evil.com/",
    "http://evil.com#@localhost:{port}/image",
    "http://evil.com\\@localhost:{port}/image",
    "http://localhost:{port}\\.evil.com/",
    "http://user:secret@localhost:{port}/image",
    "http://localhost:{port}\n/image",
    "http://loc\u0430lhost:{port}/image",
    "http://2130706433:{port}/image",
    "http://0x7f.1:{port}/image",
    "http://[::1]:{port}/image",
    "http://[::ffff:127.0.0.1]:{port}/image",
    "http://0.0.0.0:{port}/image",
    "http://localhost:0/image",
    "http://localhost:99999/image",
    "http:///image",
    "http://[/image",
    "HTTP://EVIL.COM/",
]


@pytest.mark.parametrize("url", URLS)
def test_other_urls_are_refused_and_nothing_is_asked(server, host, url):
    before = len(host.asked)
    reply = ask(server, url.format(port=host.port, other=host.other))
    assert error_of(reply, 403) == "url_not_allowed"
    assert "secret" not in reply.text
    assert len(host.asked) == before


@pytest.mark.parametrize("url", ["file:///etc/passwd", "ftp://localhost/x", "gopher://localhost/", "//localhost/x"])
def test_other_schemes_are_no_urls_at_all(server, url):
    assert error_of(ask(server, url), 422) == "invalid"


def test_without_allowed_hosts_nothing_is_fetched(host):
    with RewardServer() as server:
        assert error_of(ask(server, f"http://localhost:{host.port}/image"), 403) == "url_not_allowed"


def test_private_addresses_of_allowed_hosts_are_refused(host):
    before = len(host.asked)
    with RewardServer(hosts=[f"localhost:{host.port}", f"127.0.0.1:{host.port}"]) as server:
        for name in ("localhost", "127.0.0.1"):
            reply = ask(server, f"http://{name}:{host.port}/image")
            assert error_of(reply, 403) == "url_not_allowed"
            assert "private network" in reply.json()["error"]["message"]
    assert len(host.asked) == before


class TestAddresses:
    """Of names, which their owners choose."""

    def fetch(self, monkeypatch, answers: list[list[str]], url: str, hosts: list[str]) -> Any:
        asked: list[str] = []

        async def run() -> Any:
            loop = asyncio.get_running_loop()

            async def resolve(name: str, port: int, **options: Any) -> Any:
                asked.append(name)
                return [(socket.AF_INET, 0, 0, "", (address, port)) for address in answers[len(asked) - 1]]

            monkeypatch.setattr(loop, "getaddrinfo", resolve, raising=False)
            fetcher = Fetcher(hosts, False, Limits(fetch_seconds=0.5))
            sent: list[Any] = []

            class Stream:
                def __init__(self, method: str, where: str, **options: Any) -> None:
                    sent.append((where, options["headers"]["Host"], options["extensions"]["sni_hostname"]))

                async def __aenter__(self) -> Any:
                    raise TimeoutError

                async def __aexit__(self, *exception: object) -> None:
                    pass

            monkeypatch.setattr(fetcher._client, "stream", Stream)
            with Memory(10**6).hold() as held:
                try:
                    await fetcher.fetch(url, "image 1", held)
                except RequestError as error:
                    return error.code, sent
                finally:
                    await fetcher.close()

        return asyncio.run(run())

    def test_the_connection_goes_to_the_address_that_was_checked(self, monkeypatch):
        """A name that is resolved again would be another by then."""
        code, sent = self.fetch(
            monkeypatch, [["93.184.215.14"], ["127.0.0.1"]], "https://images.example.com/a?b", ["*.example.com"]
        )
        assert code == "fetch_failed"
        assert sent == [("https://93.184.215.14:443/a?b", "images.example.com", "images.example.com")]

    @pytest.mark.parametrize("addresses", [["10.0.0.1"], ["93.184.215.14", "127.0.0.1"], ["169.254.169.254"], []])
    def test_one_private_address_is_enough_to_refuse(self, monkeypatch, addresses):
        code, sent = self.fetch(monkeypatch, [addresses], "http://images.example.com/", ["images.example.com"])
        assert (code, sent) == ("url_not_allowed", [])

    @pytest.mark.parametrize(
        ("url", "code"),
        [
            ("http://a.example.com/", "fetch_failed"), ("http://a.b.example.com/", "fetch_failed"),
            ("http://A.Example.COM./", "fetch_failed"), ("http://example.com/", "url_not_allowed"),
            ("http://badexample.com/", "url_not_allowed"),
        ],
    )  # fmt: skip
    def test_a_star_stands_for_hosts_below(self, monkeypatch, url, code):
        assert self.fetch(monkeypatch, [["93.184.215.14"]], url, ["*.example.com"])[0] == code


@pytest.mark.parametrize(
    ("address", "public"),
    [
        ("93.184.215.14", True), ("2606:2800:21f:cb07::1", True), ("127.0.0.1", False), ("10.1.2.3", False),
        ("172.16.0.1", False), ("192.168.0.1", False), ("169.254.169.254", False), ("100.64.0.1", False),
        ("0.0.0.0", False), ("224.0.0.1", False), ("255.255.255.255", False), ("::1", False), ("::", False),
        ("fe80::1", False), ("fd00::1", False), ("ff02::1", False), ("::ffff:10.0.0.1", False),
        ("64:ff9b::a00:1", False), ("2002:7f00:1::", False), ("240.0.0.1", False), ("::ffff:93.184.215.14", True),
    ],
)  # fmt: skip
def test_which_addresses_are_of_the_internet(address, public):
    assert is_public(address) == public
