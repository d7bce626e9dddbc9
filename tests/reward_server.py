"""A server of rewards on this machine, and the ways to send it something wrong."""

from __future__ import annotations

import io
import socket
import struct
import threading
import time
import zlib
from collections.abc import Mapping
from typing import Any

import httpx2
import numpy as np
from odd_images import chunk
from PIL import Image

from fk_steer.rewards import as_pil
from fk_steer.server import create_app
from fk_steer.server.running import make_server


def mean_red(images: list[Image.Image]) -> list[float]:
    """A score in [0, 255] that depends on the image alone."""
    return [float(np.asarray(image.convert("RGB"))[..., 0].mean()) for image in images]


class RewardServer:
    """`with RewardServer({"red": red()}) as server: ... server.url`.

    Args:
        rewards: name -> reward; None for `red()`.
        **options: of `create_app`.
    """

    def __init__(self, rewards: Mapping[str, Any] | None = None, **options: Any) -> None:
        self.app = create_app({"red": red()} if rewards is None else rewards, **options)
        self.server = make_server(self.app, "127.0.0.1", 0)
        self.thread = threading.Thread(target=self.server.run, daemon=True)

    def __enter__(self) -> RewardServer:
        self.thread.start()
        while not self.server.started:
            assert self.thread.is_alive()
            time.sleep(0.005)
        self.port = self.server.servers[0].sockets[0].getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.client = httpx2.Client(base_url=self.url, timeout=30, trust_env=False)
        return self

    def __exit__(self, *exception: object) -> None:
        self.client.close()
        self.server.should_exit = True
        self.thread.join(30)
        assert not self.thread.is_alive()

    @property
    def service(self) -> Any:
        return self.app.state.service

    def score(self, *images: bytes, prompt: str = "a", **options: Any) -> httpx2.Response:
        """Send files."""
        files = [("images", (f"{place}", image)) for place, image in enumerate(images)]
        return self.client.post("/score", files=files, data={"prompts": [prompt]}, **options)

    def metric(self, name: str) -> float:
        """The value of a metric with its labels; 0 if it has none."""
        for line in self.client.get("/metrics").text.splitlines():
            if line.startswith(f"{name} "):
                return float(line.rpartition(" ")[2])
        return 0.0

    def connect(self) -> socket.socket:
        """A connection of bytes."""
        return socket.create_connection(("127.0.0.1", self.port), timeout=20)


def red() -> Any:
    """The reward that tests are fond of: its scores are known."""
    return as_pil_in_any_mode(mean_red, "red")


def as_pil_in_any_mode(function: Any, name: str) -> Any:
    return as_pil(lambda pictures, prompts: function(pictures), name, 1.0)


def filled(value: int, size: tuple[int, int] = (8, 8)) -> bytes:
    """A PNG file whose mean red is known."""
    buffer = io.BytesIO()
    Image.new("RGB", size, (value, 0, 255)).save(buffer, "png")
    return buffer.getvalue()


def png_bomb(width: int, height: int) -> bytes:
    """A PNG file of any size in a few bytes: of its pixels, all black, there are as many as a megabyte holds."""
    head = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    pixels = zlib.compress(bytes(min(height * (1 + (width + 7) // 8), 2**20)))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def error_of(response: httpx2.Response, status: int) -> str:
    """The code of an error that is as all are."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/json"
    (name,) = response.json()
    assert name == "error"
    error = response.json()["error"]
    assert set(error) == {"code", "message"}
    assert error["message"].endswith(".") and len(error["message"]) > 20 and "\n" not in error["message"]
    return error["code"]


def raw_reply(connection: socket.socket) -> bytes:
    """What comes until the connection is closed."""
    data = b""
    while more := connection.recv(65536):
        data += more
    return data
