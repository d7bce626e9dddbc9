"""A chat server on this machine that speaks OpenAI's protocol and judges images by their colour, and the options of
rewards that ask it: for the tests of chat judges and for tests over all rewards."""

from __future__ import annotations

import base64
import io
import json
import math
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image


MODEL = "tiny-judge"


class ChatServer:
    """`with ChatServer() as server: ... base_url=server.url`.

    Args:
        reply: (text of the question, images) -> text of the reply.
        fault: number of the request from 0 -> None to answer it, or a function of the request handler that does
            something else; see below for some.
        logprobs: whether log-probabilities are given when asked for.

    Attributes:
        requests: bodies received, in order.
        keys: what was sent for authorisation.
        most: the most requests that were under way at a time.
    """

    def __init__(
        self,
        reply: Callable[[str, list[Image.Image]], str] | None = None,
        fault: Callable[[int], Callable[[Any], None] | None] = lambda number: None,
        logprobs: bool = True,
        delay: float = 0.0,
    ) -> None:
        self.reply, self.fault, self.logprobs, self.delay = reply or judge, fault, logprobs, delay
        self.requests: list[dict[str, Any]] = []
        self.keys: list[str | None] = []
        self.most = self.under_way = 0
        self.lock = threading.Lock()
        owner = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True

            def log_message(self, *args: Any) -> None:
                pass

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with owner.lock:
                    number = len(owner.requests)
                    owner.requests.append(body)
                    owner.keys.append(self.headers["Authorization"])
                    owner.under_way += 1
                    owner.most = max(owner.most, owner.under_way)
                try:
                    time.sleep(owner.delay)
                    fault = owner.fault(number)
                    if fault is None:
                        send(self, owner.complete(body))
                    else:
                        fault(self)
                except OSError:
                    pass  # The client has gone.
                finally:
                    with owner.lock:
                        owner.under_way -= 1

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}/v1"

    def __enter__(self) -> ChatServer:
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def complete(self, body: dict[str, Any]) -> dict[str, Any]:
        text, images = parts(body)
        choice: dict[str, Any] = {
            "index": 0,
            "message": {"role": "assistant", "content": self.reply(text, images)},
            "finish_reason": "stop",
        }
        if body.get("logprobs") and self.logprobs:
            yes = redness(images[0])
            top = [("Yes", 0.75 * yes), (" yes", 0.25 * yes), ("No", 1.0 - yes)]
            top = [{"token": token, "logprob": math.log(p)} for token, p in top if p > 0]
            choice["logprobs"] = {"content": [{**top[0], "top_logprobs": top}]}
        return {"id": "0", "object": "chat.completion", "created": 0, "model": body["model"], "choices": [choice]}


def send(handler: Any, payload: Any, status: int = 200, **headers: str) -> None:
    raw = payload if isinstance(payload, bytes) else json.dumps(payload).encode()
    handler.send_response(status)
    handler.send_header("Content-Type", "application/json")
    handler.send_header("Content-Length", str(len(raw)))
    for name, value in headers.items():
        handler.send_header(name.replace("_", "-"), value)
    handler.end_headers()
    handler.wfile.write(raw)


def failing(status: int, message: str = "no", **headers: str) -> Callable[[Any], None]:
    return lambda handler: send(handler, {"error": {"message": message}}, status, **headers)


def cut_off(handler: Any) -> None:
    """Half of a response, then nothing."""
    handler.send_response(200)
    handler.send_header("Content-Type", "application/json")
    handler.send_header("Content-Length", "1000")
    handler.end_headers()
    handler.wfile.write(b'{"choices": [{"mess')
    handler.wfile.flush()
    handler.close_connection = True
    handler.connection.close()


def parts(body: dict[str, Any]) -> tuple[str, list[Image.Image]]:
    """Text and images of a request."""
    (message,) = body["messages"]
    images = [part["image_url"]["url"] for part in message["content"] if part["type"] == "image_url"]
    (text,) = [part["text"] for part in message["content"] if part["type"] == "text"]
    return text, [Image.open(io.BytesIO(base64.b64decode(url.split("base64,")[1]))).convert("RGB") for url in images]


def redness(image: Image.Image) -> float:
    """In [0, 1]: 1 for red, 0 for cyan."""
    red, green, blue = np.asarray(image).mean((0, 1)) / 255
    return float((red + 1.0 - (green + blue) / 2) / 2)


def judge(text: str, images: list[Image.Image]) -> str:
    """A reply in the form the question asks for, which says how red the images are."""
    scores = [redness(image) for image in images]
    if '"score": [' in text:
        return f'{{"reasoning": "red", "score": [{25 * scores[-1]}, 25]}}'
    if len(images) == 2:
        better = 1 if scores[0] > scores[1] else 2
        verdict = f"Image {better} is better" if scores[0] != scores[1] else "Both images are equally good"
        return f"<think>Image {3 - better} is better?</think><answer>{verdict}</answer>"
    score = scores[0]
    if "overall_score" in text:
        return f'```json\n{{"overall_score": {{"explanation": "red", "score": {10 * score}}}}}\n```'
    if "Probability:" in text:
        return f"Probability: {100 * score}"
    if "Alignment Score" in text:
        return "\n".join(f"**{axis} Score (1-5):** {1 + 4 * score}" for axis in ("Alignment", "Coherence", "Style"))
    return f"circle (object): 1\n**Final Score:** {1 + 4 * score}"


CHAT_REWARDS: dict[str, dict[str, Any]] = {
    "unified-reward": {},
    "unified-reward:axes": {},
    "unified-reward:pair": {},
    "unified-reward:think": {"both_orders": True},
    "checklist-chat": {},
    "edit-score": {"source": Image.new("RGB", (8, 8))},
    "llm-grader": {},
    "vqa-chat": {},
}
"""Name, or NAME:VARIANT, of a chat reward -> its options."""


def chat_options(key: str) -> Callable[[Path], dict[str, Any]]:
    """What a test over all rewards needs: a function that returns the options of a reward, and starts a server for the
    rest of the process. It takes a folder for the sake of rewards with weights."""

    def options(folder: Path) -> dict[str, Any]:
        return {"base_url": ChatServer().__enter__().url, "model": MODEL, **CHAT_REWARDS[key]}

    return options
