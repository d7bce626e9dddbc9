"""What a server of rewards refuses: too much, too slow, of the wrong kind, or without the key."""

from __future__ import annotations

import base64
import contextlib
import json
import logging
import socket
import threading
import time

import httpx2
import pytest
from odd_images import mutated
from reward_server import RewardServer, error_of, filled, mean_red, png_bomb, raw_reply

from fk_steer.rewards import as_pil
from fk_steer.server import Limits
from fk_steer.server.keys import KEY, read_key


SECRET = "correct-horse-battery-staple"


@pytest.fixture(scope="module")
def server():
    limits = Limits(body=200_000, images=4, pixels=10_000, prompt=100, body_seconds=0.5, head_seconds=0.5, queue=8)
    with RewardServer(limits=limits) as running:
        yield running


def alive(server) -> None:
    """Whatever was sent before, others are served, and nothing is held."""
    assert server.score(filled(5)).json()["scores"]["red"] == [5.0]
    assert server.service.memory.used == 0
    assert server.metric("fk_steer_requests_under_way") == 0


@pytest.mark.parametrize(
    ("data", "status", "code"),
    [
        (b"", 415, "unknown_image_type"),
        (b"not an image", 415, "unknown_image_type"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", 415, "unknown_image_type"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", 415, "unknown_image_type"),
        (filled(3)[:50], 422, "invalid"),
        (filled(3)[:20], 422, "invalid"),
        (png_bomb(101, 100), 413, "too_large"),
        (png_bomb(50_000, 50_000), 413, "too_large"),
        (png_bomb(2**31 - 1, 2**31 - 1), 413, "too_large"),
        (png_bomb(0, 5), 415, "unknown_image_type"),
    ],
    ids=["empty", "text", "svg", "eps", "truncated", "head alone", "pixels", "bomb", "larger bomb", "no pixels"],
)
def test_images_that_are_none(server, data, status, code):
    reply = server.score(filled(1), data)
    found = error_of(reply, status)
    assert found == code
    assert "image 2" in reply.json()["error"]["message"]
    alive(server)


def test_images_that_are_damaged_anyhow_are_scored_or_refused(server):
    statuses = [server.score(data).status_code for _, data in mutated(60)]
    assert set(statuses) <= {200, 413, 415, 422} and 200 in statuses and 422 in statuses
    alive(server)


@pytest.mark.parametrize(
    ("body", "kind", "status", "code"),
    [
        (b"{", "application/json", 400, "malformed"),
        (b"", "application/json", 400, "malformed"),
        (b"\xff\xfe", "application/json", 400, "malformed"),
        (b"[]", "application/json", 422, "invalid"),
        (b'{"images": ["!"], "prompts": ["a"]}', "application/json", 422, "invalid"),
        (b'{"images": ["data:image/png,x"], "prompts": ["a"]}', "application/json", 422, "invalid"),
        (b'{"images": [], "prompts": ["a"]}', "application/json", 422, "invalid"),
        (b'{"images": [1], "prompts": ["a"]}', "application/json", 422, "invalid"),
        (b'{"images": ["QQ=="], "prompts": ["a", "b"]}', "application/json", 422, "invalid"),
        (b'{"images": ["QQ=="], "prompts": ["a"], "rewards": ["hps"]}', "application/json", 422, "invalid"),
        (b'{"images": ["QQ=="], "prompts": ["a"], "reward": "red"}', "application/json", 422, "invalid"),
        (b'{"images": ["QQ==", "QQ==", "QQ==", "QQ==", "QQ=="], "prompts": ["a"]}', "application/json", 413,
         "too_large"),
        (json.dumps({"images": ["QQ=="], "prompts": ["a" * 101]}).encode(), "application/json", 413, "too_large"),
        (b"x" * 200_001, "application/json", 413, "too_large"),
        (b"x", "text/plain", 415, "unsupported_media_type"),
        (b"images=x", "application/x-www-form-urlencoded", 415, "unsupported_media_type"),
        (b"x", "multipart/form-data", 400, "malformed"),
        (b"x", "multipart/form-data; boundary=y", 400, "malformed"),
        (b"--y\r\n\r\nx\r\n--y--\r\n", "multipart/form-data; boundary=y", 400, "malformed"),
        (b'--y\r\nContent-Disposition: form-data; name="other"\r\n\r\nx\r\n--y--\r\n',
         "multipart/form-data; boundary=y", 422, "invalid"),
        (b'--y\r\nContent-Disposition: form-data; name="prompts"\r\n\r\nx\r\n--y--\r\n',
         "multipart/form-data; boundary=y", 422, "invalid"),
    ],
)  # fmt: skip
def test_bodies_that_cannot_be_read(server, body, kind, status, code):
    reply = server.client.post("/score", content=body, headers={"Content-Type": kind})
    assert error_of(reply, status) == code
    alive(server)


def test_messages_say_what_to_change(server):
    def said(**body) -> str:
        return server.client.post("/score", json=body).json()["error"]["message"]

    image = base64.b64encode(filled(1)).decode()
    assert said(images=[image], prompts=["a"], rewards=["rad"]) == (
        "`rewards`: there is no 'rad'. There are: red. Did you mean 'red'?"
    )
    assert said(prompts=["a"]) == "`images`: Field required."
    assert "at most 4 images, but got 5" in said(images=[image] * 5, prompts=["a"])
    assert "at most 100 characters, but got one of 101" in said(images=[image], prompts=["a" * 101])


def test_too_many_files_in_a_form(server):
    assert error_of(server.score(*[filled(1)] * 5), 413) == "too_large"
    alive(server)


def test_a_packed_body_is_refused(server):
    reply = server.client.post("/score", content=b"x", headers={
        "Content-Type": "application/json", "Content-Encoding": "gzip",
    })  # fmt: skip
    assert error_of(reply, 415) == "unsupported_media_type"


@pytest.mark.parametrize("sized", [True, False], ids=["of a stated size", "in chunks"])
def test_a_body_beyond_the_limit_is_answered_and_not_kept(server, sized):
    """Also to a sender that goes on sending."""
    chunk = bytes(65536)

    def body():
        for _ in range(100):
            yield chunk

    headers = {"Content-Type": "application/json"} | ({"Content-Length": str(100 * 65536)} if sized else {})
    reply = server.client.post("/score", content=body(), headers=headers)
    assert error_of(reply, 413) == "too_large"
    alive(server)


def test_paths_and_methods(server):
    assert error_of(server.client.get("/nowhere"), 404) == "not_found"
    wrong = server.client.get("/score")
    assert error_of(wrong, 405) == "method_not_allowed"
    assert wrong.headers["allow"] == "POST"


HEAD = b"POST /score HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 1000\r\n\r\n"


def test_half_a_body_is_not_waited_for(server):
    with server.connect() as connection:
        connection.sendall(HEAD + b'{"images": [')
        start = time.monotonic()
        reply = raw_reply(connection)
    assert reply.startswith(b"HTTP/1.1 408 ") and b'"too_slow"' in reply
    assert time.monotonic() - start < 8
    alive(server)


def test_half_a_head_is_not_waited_for(server):
    with server.connect() as connection:
        connection.sendall(b"POST /score HT")
        reply = raw_reply(connection)
    assert reply.startswith(b"HTTP/1.1 408 ") and b'"too_slow"' in reply
    with server.connect() as connection:
        assert b'"too_slow"' in raw_reply(connection)  # nothing at all
    alive(server)


def test_what_is_no_http(server):
    with server.connect() as connection:
        connection.sendall(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n")
        reply = raw_reply(connection)
    assert reply.startswith(b"HTTP/1.1 400 ") and b'"malformed"' in reply
    alive(server)


def test_who_leaves_in_the_middle_leaves_nothing(server):
    before = server.metric("fk_steer_disconnected_total")
    for _ in range(5):
        with server.connect() as connection:
            connection.sendall(HEAD + b'{"images": [')
            # Broken off at once, not closed.
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    end = time.monotonic() + 10
    while server.metric("fk_steer_disconnected_total") < before + 5 and time.monotonic() < end:
        time.sleep(0.02)
    assert server.metric("fk_steer_disconnected_total") == before + 5
    alive(server)


def test_what_nobody_waits_for_is_not_scored():
    scored, free = [], threading.Event()

    def held_up(pictures, prompts):
        scored.extend(mean_red(pictures))
        free.wait(20)
        return mean_red(pictures)

    with RewardServer({"red": as_pil(held_up)}, max_batch=1) as server:

        def ask(value: int, timeout: float) -> None:
            files = [("images", ("a", filled(value)))]
            with contextlib.suppress(httpx2.TimeoutException):
                httpx2.post(f"{server.url}/score", files=files, data={"prompts": ["a"]}, timeout=timeout)

        first = threading.Thread(target=ask, args=(1, 30))
        first.start()
        while not scored:
            time.sleep(0.01)
        ask(2, 0.3)  # waits behind the first, and leaves
        end = time.monotonic() + 10
        while server.metric("fk_steer_disconnected_total") < 1 and time.monotonic() < end:
            time.sleep(0.02)
        free.set()
        first.join()
        ask(3, 30)
    assert scored == [1.0, 3.0]


class TestFull:
    @staticmethod
    def stuck():
        free = threading.Event()

        def held_up(pictures, prompts):
            free.wait(20)
            return mean_red(pictures)

        return as_pil(held_up), free

    def ask_in_the_background(self, server, number: int) -> list[threading.Thread]:
        self.replies: list[httpx2.Response] = []

        def ask() -> None:
            files = [("images", ("a", filled(7)))]
            self.replies.append(httpx2.post(f"{server.url}/score", files=files, data={"prompts": ["a"]}, timeout=30))

        threads = [threading.Thread(target=ask) for _ in range(number)]
        for thread in threads:
            thread.start()
        return threads

    @pytest.mark.parametrize(
        ("limits", "message"),
        [
            (Limits(queue=2, images=2), "2 images waiting, of at most 2"),
            (Limits(requests=3), "3 requests under way"),
            (Limits(memory=4000), "memory for requests is full"),
        ],
        ids=["queue", "requests", "memory"],
    )
    def test_others_are_told_to_come_back_and_nothing_accepted_is_lost(self, limits, message):
        reward, free = self.stuck()
        with RewardServer({"red": reward}, limits=limits, max_batch=1, max_wait=0.0) as server:
            threads = self.ask_in_the_background(server, 3)
            end = time.monotonic() + 20
            while server.service._under_way < 3 and time.monotonic() < end:
                time.sleep(0.01)
            time.sleep(0.3)
            # Of the memory, three small requests hold a part; a larger one does not fit beside them.
            reply = server.score(filled(1, (28, 28)))
            assert error_of(reply, 503) == "busy"
            assert message in reply.json()["error"]["message"]
            assert reply.headers["retry-after"] == "1"
            free.set()
            for thread in threads:
                thread.join()
            assert [one.json()["scores"]["red"] for one in self.replies] == [[7.0]] * 3
            assert server.service.memory.used == 0

    def test_a_request_that_never_fits_is_not_told_to_come_back(self):
        with RewardServer(limits=Limits(memory=4000)) as server:
            assert error_of(server.score(filled(1, (64, 64))), 413) == "too_large"
            assert server.service.memory.used == 0

    def test_what_was_accepted_is_finished_when_the_server_stops(self):
        reward, free = self.stuck()
        server = RewardServer({"red": reward}, max_batch=1).__enter__()
        threads = self.ask_in_the_background(server, 5)
        while server.service._under_way < 5:
            time.sleep(0.01)
        server.server.handle_exit(15, None)
        assert server.service.draining
        time.sleep(0.5)
        with pytest.raises(httpx2.ConnectError):
            httpx2.get(f"{server.url}/health")
        free.set()
        for thread in threads:
            thread.join()
        server.__exit__()
        assert [one.json()["scores"]["red"] for one in self.replies] == [[7.0]] * 5


@pytest.fixture(scope="module")
def locked():
    with RewardServer(api_key=SECRET) as running:
        yield running


class TestKey:
    @pytest.mark.parametrize(
        "header", [None, "", "Bearer", "Bearer wrong", f"Basic {SECRET}", f"Bearer {SECRET}x", "Bearer caf\xe9"]
    )
    def test_without_it_nobody_gets_in(self, locked, header):
        headers = {} if header is None else {"Authorization": header.encode("latin-1")}
        for method, path in (("GET", "/rewards"), ("GET", "/metrics"), ("POST", "/score")):
            reply = locked.client.request(method, path, headers=headers)
            assert error_of(reply, 401) == "unauthorized"
            assert reply.headers["www-authenticate"] == "Bearer"
            assert SECRET not in reply.text

    def test_with_it_they_do(self, locked):
        headers = {"Authorization": f"Bearer {SECRET}"}
        assert locked.score(filled(3), headers=headers).json()["scores"]["red"] == [3.0]
        assert locked.client.get("/metrics", headers=headers).status_code == 200

    def test_whether_the_server_is_well_is_no_secret(self, locked):
        for path in ("/health", "/ready", "/openapi.json"):
            assert locked.client.get(path).status_code == 200

    def test_a_body_without_the_key_is_not_kept(self, locked):
        reply = locked.client.post("/score", content=bytes(5_000_000), headers={"Content-Type": "application/json"})
        assert error_of(reply, 401) == "unauthorized"
        assert locked.service.memory.used == 0

    def test_it_is_in_no_log(self, locked, caplog, capfd):
        with caplog.at_level(logging.DEBUG):
            for key in (SECRET, SECRET + "x"):
                locked.client.get("/rewards", headers={"Authorization": f"Bearer {key}"})
        captured = capfd.readouterr()
        own = [record.getMessage() for record in caplog.records if not record.name.startswith(("httpcore", "httpx"))]
        assert SECRET not in captured.out + captured.err + "".join(own)

    def test_it_comes_from_the_environment_or_a_file(self, tmp_path, monkeypatch):
        monkeypatch.delenv(KEY, raising=False)
        assert read_key(None) is None
        monkeypatch.setenv(KEY, f" {SECRET}\n")
        assert read_key(None) == SECRET
        (tmp_path / "key").write_text("another\n")
        assert read_key(tmp_path / "key") == "another"

    @pytest.mark.parametrize("text", ["", "\n", "two words", "two\nlines", "pa\u00dfwort"])
    def test_what_is_no_key_is_told_and_not_shown(self, tmp_path, text):
        (tmp_path / "key").write_text(text, encoding="utf-8")
        with pytest.raises(ValueError, match="to hold a key, one line of visible ASCII characters") as caught:
            read_key(tmp_path / "key")
        assert not text.strip() or text not in str(caught.value)
