"""The command under load from other processes' clients: good, slow, broken and hostile ones at once."""

from __future__ import annotations

import base64
import contextlib
import os
import random
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx2
import psutil
import pytest
import torch
from odd_images import encoded, picture
from reward_server import filled, png_bomb
from typer.testing import CliRunner

from fk_steer import load_reward
from fk_steer.cli import app


REPOSITORY = Path(__file__).parents[2]
PROMPT = "a photo of a red star"
KEY = "a-key-of-the-tests"
MEGABYTE = 2**20


def free_port() -> int:
    with socket.socket() as tried:
        tried.bind(("127.0.0.1", 0))
        return tried.getsockname()[1]


@contextlib.contextmanager
def command(*arguments: str) -> Iterator[SimpleNamespace]:
    """`fk-steer serve` in a process of its own."""
    port = free_port()
    environment = {
        **os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1", "FK_STEER_API_KEY": KEY, "COLUMNS": "200",
    }  # fmt: skip
    words = [sys.executable, "-m", "fk_steer", "serve", "--port", str(port), "--device", "cpu", *arguments]
    process = subprocess.Popen(
        words, env=environment, cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    running = SimpleNamespace(process=process, url=f"http://127.0.0.1:{port}", port=port, output="")
    try:
        end = time.monotonic() + 240
        while True:
            assert process.poll() is None, process.stdout.read()
            with contextlib.suppress(httpx2.TransportError):
                if httpx2.get(f"{running.url}/ready", timeout=10).status_code == 200:
                    break
            assert time.monotonic() < end
            time.sleep(0.1)
        running.memory = psutil.Process(process.pid).memory_info
        yield running
    finally:
        if process.poll() is None:
            process.kill()
        running.output = process.stdout.read()
        process.wait(30)


def headers() -> dict[str, str]:
    return {"Authorization": f"Bearer {KEY}"}


def score(server: Any, image: bytes, timeout: float = 600) -> httpx2.Response:
    return httpx2.post(
        f"{server.url}/score", files=[("images", ("a", image))], data={"prompts": [PROMPT]}, headers=headers(),
        timeout=timeout,
    )  # fmt: skip


def half_a_body(server: Any) -> str:
    """Leaves in the middle."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=60) as connection:
        connection.sendall(
            b"POST /score HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
            + f"Authorization: Bearer {KEY}\r\nContent-Length: 100000\r\n\r\n".encode()
            + bytes(5000)
        )
    return "left"


def no_key(server: Any) -> str:
    reply = httpx2.post(f"{server.url}/score", content=bytes(300_000), timeout=600)
    return f"{reply.status_code} {reply.json()['error']['code']}"


def sent(data: bytes) -> Any:
    def send(server: Any) -> str:
        reply = score(server, data)
        return f"{reply.status_code} {reply.json()['error']['code'] if reply.status_code != 200 else ''}".strip()

    return send


def private_url(server: Any) -> str:
    body = {"images": [f"http://127.0.0.1:{server.port}/health"], "prompts": ["a"]}
    reply = httpx2.post(f"{server.url}/score", json=body, headers=headers(), timeout=600)
    return f"{reply.status_code} {reply.json()['error']['code']}"


TROUBLE = {
    "half a body": (half_a_body, "left"),
    "no key": (no_key, "401 unauthorized"),
    "truncated": (sent(encoded(picture((200, 200)), "PNG")[:3000]), "422 invalid"),
    "bomb": (sent(png_bomb(60_000, 60_000)), "413 too_large"),
    "text": (sent(b"no image"), "415 unknown_image_type"),
    "too large": (sent(bytes(3 * MEGABYTE)), "413 too_large"),
    "URL": (private_url, "403 url_not_allowed"),
}
"""What is sent -> how, and what comes of it."""


def under_load(server: Any, good: int, trouble: int, slow: int) -> tuple[list[float], Counter[str], int]:
    """The scores of good requests that are in flight all at once, what came of the others, and the most memory that
    the server had."""
    images = [encoded(picture((48, 48), seed=seed), "PNG") for seed in range(good)]
    scores: list[float] = [float("nan")] * good
    came_of: Counter[str] = Counter()
    gate, lock, stop, peak = threading.Barrier(good + trouble * len(TROUBLE)), threading.Lock(), threading.Event(), [0]

    def ask(index: int) -> None:
        gate.wait(60)
        reply = score(server, images[index])
        # Full, or this process was too slow: to be asked again, as remote rewards do.
        while reply.status_code in (503, 408):
            assert reply.status_code == 408 or reply.headers["retry-after"] == "1"
            with lock:
                came_of[str(reply.status_code)] += 1
            time.sleep(1)
            reply = score(server, images[index])
        assert reply.status_code == 200, reply.text
        (scores[index],) = reply.json()["scores"]["clip-score"]

    def bother(name: str) -> None:
        gate.wait(60)
        while (found := TROUBLE[name][0](server)) == "408 too_slow":
            pass
        with lock:
            came_of[f"{name}: {found}"] += 1

    def watch() -> None:
        while not stop.wait(0.02):
            peak[0] = max(peak[0], server.memory().rss)

    watcher = threading.Thread(target=watch)
    watcher.start()
    with contextlib.ExitStack() as open_connections:
        for _ in range(slow):
            connection = open_connections.enter_context(socket.create_connection(("127.0.0.1", server.port)))
            connection.sendall(b"POST /score HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Le")
        work: list[tuple[Any, Any]] = [(ask, index) for index in range(good)]
        work += [(bother, name) for name in TROUBLE for _ in range(trouble)]
        random.Random(0).shuffle(work)
        with ThreadPoolExecutor(len(work)) as executor:
            for future in [executor.submit(*one) for one in work]:
                future.result()
    stop.set()
    watcher.join()
    return scores, came_of, peak[0]


def check_load(good: int, trouble: int, slow: int, *arguments: str) -> Counter[str]:
    clip = load_reward("clip-score", path="shapes", device="cpu")
    images = [picture((48, 48), seed=seed) for seed in range(good)]
    options = ("--reward", "clip-score", "--reward-option", "path=shapes", "--max-megabytes", "1", "--timeout", "600")
    with command(*options, *arguments) as server:
        score(server, filled(1))  # whatever is set up by the first
        before = server.memory().rss
        scores, came_of, peak = under_load(server, good, trouble, slow)
        expected = clip(images, [PROMPT] * good)
        torch.testing.assert_close(torch.tensor(scores), expected, atol=1e-5, rtol=0)
        for name, (_, result) in TROUBLE.items():
            assert came_of.pop(f"{name}: {result}") == trouble, came_of
        assert set(came_of) <= {"503", "408"}, came_of
        assert peak - before < 300 * MEGABYTE, (peak - before) / MEGABYTE
        told = httpx2.get(f"{server.url}/metrics", headers=headers(), timeout=60).text
        assert re.search(r"^fk_steer_memory_bytes 0.0$", told, re.M)
        assert re.search(rf'^fk_steer_images_total{{reward="clip-score"}} {good + 1}.0$', told, re.M)
        assert re.search(r'^fk_steer_queue_images{reward="clip-score"} 0.0$', told, re.M)
        stopped_while_scoring(server, clip)
    assert KEY not in server.output
    assert "Traceback" not in server.output, server.output
    return came_of


def stopped_while_scoring(server: Any, clip: Any) -> None:
    """SIGTERM loses nothing that was accepted, and the command ends well."""
    image = picture((64, 64), seed=99)
    text = base64.b64encode(encoded(image, "PNG")).decode()
    # All of them fit into the smallest queue there is here.
    body = {"images": [text] * 30, "prompts": [PROMPT]}
    replies: list[httpx2.Response] = []

    def ask() -> None:
        replies.append(httpx2.post(f"{server.url}/score", json=body, headers=headers(), timeout=600))

    threads = [threading.Thread(target=ask) for _ in range(3)]
    for thread in threads:
        thread.start()
    end = time.monotonic() + 60
    while time.monotonic() < end:
        told = httpx2.get(f"{server.url}/metrics", headers=headers(), timeout=60).text
        if "fk_steer_requests_under_way 3.0" in told:
            break
    server.process.send_signal(signal.SIGTERM)
    for thread in threads:
        thread.join()
    expected = clip([image], [PROMPT]).item()
    for reply in replies:
        assert reply.json()["scores"]["clip-score"] == pytest.approx([expected] * 30, abs=1e-5)
    assert server.process.wait(60) == 0


def test_a_small_crowd():
    check_load(24, 2, 4)


@pytest.mark.slow
def test_two_hundred_in_flight():
    """Beside 140 broken and hostile requests and 50 that never end, with a queue that holds half of them."""
    came_of = check_load(200, 20, 50, "--max-queue", "100", "--max-images", "64", "--max-memory", "64")
    assert came_of["503"] > 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--reward", "hpz"], "Unknown reward 'hpz'"),
        (["--reward", "clip-score", "--reward-option", "path=nowhere"], "nowhere"),
        (["--reward", "clip-score", "--reward-option", "hps:path=x"], "not scored by: clip-score"),
        (["--reward", "clip-score", "--max-images", "9", "--max-queue", "3"], "the queue to take the images"),
        (["--reward", "clip-score", "--api-key-file", "/nowhere/key"], "/nowhere/key"),
    ],
)
def test_what_cannot_be_served_is_one_line(arguments, message):
    result = CliRunner().invoke(app, ["serve", *arguments, "--port", str(free_port())])
    assert result.exit_code == 1
    lines = [line for line in result.output.splitlines() if line.startswith("error:")]
    assert len(lines) == 1 and message in lines[0], result.output


def test_a_port_that_is_taken_is_told_before_anything_is_loaded():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        result = CliRunner().invoke(app, ["serve", "--reward", "nothing", "--port", str(taken.getsockname()[1])])
    assert result.exit_code == 1
    assert "Choose another with --host or --port" in result.output and "Unknown reward" not in result.output
