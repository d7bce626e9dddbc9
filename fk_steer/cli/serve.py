"""`fk-steer serve`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..console import console
from ..options import options_of
from .options import Device, RewardsOption, one_line_errors, start


LISTEN = "Listening"
LIMITS = "Limits"
IMAGES = "Images by URL"
"""Groups of options in `--help`."""


def serve(
    reward: Annotated[
        str,
        typer.Option(
            metavar="NAME,...", help="Serve these rewards, divided by commas; `fk-steer rewards` lists those there are."
        ),
    ],
    reward_option: RewardsOption = None,
    host: Annotated[
        str,
        typer.Option(help="Listen at this address; 0.0.0.0 lets other machines in.", rich_help_panel=LISTEN),
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="Listen at this port.", rich_help_panel=LISTEN)] = 8008,
    api_key_file: Annotated[
        Path | None,
        typer.Option(
            help="Read the key that clients have to send from this file.",
            show_default="the environment variable FK_STEER_API_KEY; without either, everybody is let in",
            rich_help_panel=LISTEN,
        ),
    ] = None,
    allow_host: Annotated[
        list[str] | None,
        typer.Option(
            metavar="HOST",
            help="Let clients send URLs of images at this host, such as images.example.com, *.example.com or "
            "localhost:8000. It may be repeated.",
            show_default="none are fetched",
            rich_help_panel=IMAGES,
        ),
    ] = None,
    allow_private: Annotated[
        bool,
        typer.Option(
            "--allow-private",
            help="Let the allowed hosts have addresses of this machine and of private networks.",
            rich_help_panel=IMAGES,
        ),
    ] = False,
    batch_size: Annotated[int, typer.Option(min=1, help="Score at most this many images at a time.")] = 16,
    batch_wait: Annotated[
        float,
        typer.Option(min=0.0, metavar="SECONDS", help="Let an image wait this long for others to share its batch."),
    ] = 0.005,
    max_megabytes: Annotated[
        int, typer.Option(min=1, help="Take requests of at most this size.", rich_help_panel=LIMITS)
    ] = 32,
    max_images: Annotated[
        int, typer.Option(min=1, help="Take at most this many images in a request.", rich_help_panel=LIMITS)
    ] = 64,
    max_pixels: Annotated[
        int, typer.Option(min=1, help="Take images of at most this many pixels.", rich_help_panel=LIMITS)
    ] = 4096 * 4096,
    max_queue: Annotated[
        int,
        typer.Option(
            min=1, help="Let at most this many images wait for a reward; others are refused.", rich_help_panel=LIMITS
        ),
    ] = 1024,
    max_memory: Annotated[
        int,
        typer.Option(
            min=1, metavar="MEGABYTES", help="Hold at most this much of requests in memory.", rich_help_panel=LIMITS
        ),
    ] = 1024,
    timeout: Annotated[
        float,
        typer.Option(
            min=0.001,
            metavar="SECONDS",
            help="Give up on scores that take longer than this.",
            rich_help_panel=LIMITS,
        ),
    ] = 120.0,
    device: Device = None,
) -> None:
    """Serve rewards to other programs over HTTP: they send images and prompts, and get scores.

    Steering asks it by `--reward remote --reward-option url=http://...`. SIGTERM and Ctrl+C end it once what it has
    accepted is finished.
    """
    with one_line_errors():
        from ..ports import check_port
        from ..server import Limits, create_app
        from ..server import serve as run
        from ..server.keys import read_key

        limits = Limits(
            body=max_megabytes * 2**20,
            images=max_images,
            pixels=max_pixels,
            queue=max_queue,
            memory=max_memory * 2**20,
            seconds=timeout,
        )
        key = read_key(api_key_file)
        check_port(host, port)
        names = list(dict.fromkeys(name.strip() for name in reward.split(",")))
        options = {name: options_of(reward_option or [], name, names) for name in names}
        start()
        from ..loading import check_names, load_guide
        from ..rewards.loading import default_device
        from ..server.scoring import model_of

        for name in names:
            check_names(name)
        loaded = {name: load_guide(name, default_device(device), **options[name]) for name in names}
        app = create_app(
            loaded,
            limits=limits,
            api_key=key,
            hosts=allow_host or [],
            private_hosts=allow_private,
            max_batch=batch_size,
            max_wait=batch_wait,
            models={name: model for name in names if (model := model_of(loaded[name], options[name])) is not None},
        )
        if key is None and host not in ("127.0.0.1", "localhost", "::1"):
            console.print(
                "Whoever reaches the server can have images scored; a key in FK_STEER_API_KEY or --api-key-file keeps "
                "others out.",
                soft_wrap=True,
            )
        where = f"[{host}]" if ":" in host else host
        console.print(
            f"{', '.join(names)} at http://{where}:{port} until you press Ctrl+C.",
            highlight=False,
            markup=False,
            soft_wrap=True,
        )
        run(app, host, port)
