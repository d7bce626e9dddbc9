"""A server of rewards, `fk-steer serve`: other programs send it images and prompts over HTTP, and get scores.

`create_app` makes the application and `serve` runs it; both need the extra `server`. A reward that asks such a server,
`load_reward("remote", url=...)`, needs nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from llava_reward_guide.packages import require

from .limits import Limits


if TYPE_CHECKING:
    from fastapi import FastAPI

    from ..rewards.base import RewardFunction


def create_app(
    rewards: Mapping[str, RewardFunction],
    *,
    limits: Limits | None = None,
    api_key: str | None = None,
    hosts: Sequence[str] = (),
    private_hosts: bool = False,
    max_batch: int = 16,
    max_wait: float = 0.005,
    models: Mapping[str, str] | None = None,
) -> FastAPI:
    """Make the application that scores images by rewards, for any ASGI server.

    Args:
        rewards: the name that clients ask for -> the reward. It is given PIL images, of several sizes in a call.
        limits: what can be asked for; None for the usual ones.
        api_key: what clients have to send as `Authorization: Bearer ...`; None lets everybody in.
        hosts: from which images are fetched for clients that send URLs: names, 'images.example.com' or
            '*.example.com', with ':PORT' for a port other than the scheme's. None by default.
        private_hosts: whether these may have addresses of this machine and of private networks.
        max_batch: images of all requests that a reward scores at a time. One that compares images scores a request's
            at a time.
        max_wait: seconds that an image waits for others to fill a batch.
        models: name of a reward -> the model behind it, which is told where it is not given by the reward.

    Raises:
        ImportError: without the packages of the extra.
        ValueError: for no rewards, a reward of videos, a name of a host that is none, or a number out of range.
    """
    _require()
    from .app import make_app

    return make_app(
        rewards,
        limits=limits or Limits(),
        api_key=api_key,
        hosts=hosts,
        private_hosts=private_hosts,
        max_batch=max_batch,
        max_wait=max_wait,
        models=models or {},
    )


def serve(app: FastAPI, host: str = "127.0.0.1", port: int = 8008) -> None:
    """Serve an application of `create_app` until SIGTERM or SIGINT come; what was accepted by then is finished.

    Args:
        host: the address to listen at; '0.0.0.0' lets other machines in.
        port: to listen at.

    Raises:
        ImportError: without the packages of the extra.
        OSError: for a port that is taken, or an address that is not of this machine.
    """
    _require()
    from .running import run

    run(app, host, port)


def _require() -> None:
    require("fastapi")
    require("uvicorn")
    require("python_multipart")
    require("prometheus_client")


__all__ = ["Limits", "create_app", "serve"]
