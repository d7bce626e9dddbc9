"""`fk-steer app`."""

from __future__ import annotations

from typing import Annotated

import typer

from ..console import console
from .options import Device, one_line_errors, start


def page(
    model: Annotated[
        str, typer.Option(help="Choose this model at the start: a hub id, a folder, or a bundled one.")
    ] = "shapes",
    host: Annotated[str, typer.Option(help="Listen at this address; 0.0.0.0 lets other machines in.")] = "127.0.0.1",
    port: Annotated[
        int | None,
        typer.Option(min=1, max=65535, help="Listen at this port.", show_default="the first free one from 7860 on"),
    ] = None,
    share: Annotated[
        bool, typer.Option("--share", help="Let Gradio's servers make the page public, for a week.")
    ] = False,
    fixed: Annotated[
        bool,
        typer.Option(
            "--fixed",
            help="Offer nothing but the models and rewards that come along, for a page that strangers reach: without "
            "it they can have any model downloaded, and any folder read, that you could.",
        ),
    ] = False,
    open_browser: Annotated[bool, typer.Option("--open", help="Open the page in a browser.")] = False,
    device: Device = None,
) -> None:
    """Make steered pictures, score pictures and compare two, on a page in your browser.

    It starts with a model that comes along and needs no download.
    """
    with one_line_errors():
        start()
        from ..app import Limits, launch

        launched = launch(
            host=host,
            port=port,
            share=share,
            model=model,
            device=device,
            limits=Limits(fixed=fixed),
            inbrowser=open_browser,
            block=False,
        )
        if not fixed and (share or host not in ("127.0.0.1", "localhost", "::1")):
            console.print(
                "Whoever reaches the page can have any model downloaded, and any folder read, that you could; --fixed "
                "offers what comes along alone.",
                soft_wrap=True,
            )
        where = launched.share_url or launched.local_url
        console.print(f"The page is at {where} until you press Ctrl+C.", highlight=False)
        launched.block_thread()
