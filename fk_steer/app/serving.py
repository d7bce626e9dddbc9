"""Serving the page."""

from __future__ import annotations

import os
from importlib.resources import files

import gradio as gr

from ..loading import find_model, quiet_libraries
from ..ports import check_port
from ..report.drawing import tree_script, tree_style
from .limits import Limits
from .models import Models
from .page import build


PORTS = range(7860, 7960)
"""Of which the first free one is taken where none is asked for."""

FONT = ("system-ui", "-apple-system", "Segoe UI", "Roboto", "sans-serif")
MONO = ("ui-monospace", "SFMono-Regular", "Consolas", "monospace")


def launch(
    *,
    host: str = "127.0.0.1",
    port: int | None = None,
    share: bool = False,
    model: str = "shapes",
    device: str | None = None,
    limits: Limits | None = None,
    inbrowser: bool = False,
    block: bool = True,
) -> gr.Blocks:
    """Serve the page of `fk-steer app`.

    Args:
        host: the address to listen at; '0.0.0.0' lets other machines in.
        port: None for the first free one from 7860 on.
        share: whether Gradio's servers make it public for a week.
        model: chosen at the start: hub id or folder of a pipeline, or the name of a bundled one.
        device: None for CUDA if there is a device, else the CPU.
        limits: what can be asked for.
        inbrowser: whether a browser is opened.
        block: whether to return only when the server is stopped.

    Returns:
        The page, which `close()` stops serving.

    Raises:
        OSError: for a port that is taken, an address that is not of this machine, or a model that is not there.
    """
    limits = limits or Limits()
    # Gradio asks for the newest version of itself, and counts starts, unless it is told not to.
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    quiet_libraries()
    find_model(model)
    port = _free_port(host) if port is None else port
    check_port(host, port)
    page = build(Models(device), limits, model)
    page.launch(
        server_name=host,
        server_port=port,
        share=share,
        inbrowser=inbrowser,
        prevent_thread_lock=True,
        quiet=True,
        footer_links=["settings"],
        max_file_size=f"{limits.megabytes}mb",
        enable_monitoring=False,
        run_history=False,
        ssr_mode=False,
        mcp_server=False,
        pwa=False,
        theme=_theme(),
        css=files(__package__).joinpath("page.css").read_text(encoding="utf-8"),
        head=f"<style>{tree_style()}</style><script>{tree_script()}{_GROWING}</script>",
    )
    if block:
        page.block_thread()
    return page


def _theme() -> gr.themes.Base:
    """Fonts of the system, so that no other host is asked for any; texts that can be read in light and dark."""
    theme = gr.themes.Soft(primary_hue="orange", secondary_hue="orange", neutral_hue="slate", font=FONT, font_mono=MONO)
    return theme.set(
        body_text_color_subdued="*neutral_600",
        body_text_color_subdued_dark="*neutral_300",
        block_info_text_color="*neutral_600",
        block_info_text_color_dark="*neutral_300",
        block_title_background_fill="none",
        block_title_background_fill_dark="none",
        block_title_padding="0",
        block_title_text_color="*body_text_color",
        block_title_text_color_dark="*body_text_color",
        block_title_text_weight="600",
        input_placeholder_color="*neutral_500",
        input_placeholder_color_dark="*neutral_400",
        button_primary_background_fill="*primary_700",
        button_primary_background_fill_hover="*primary_800",
        button_primary_background_fill_dark="*primary_700",
        button_primary_background_fill_hover_dark="*primary_800",
    )


_GROWING = """
let fkWidth = 0;
new MutationObserver(() => {
  const body = document.querySelector("#tree .fk-scroll");
  const width = body ? body.scrollWidth : 0;
  if (width !== fkWidth && body) body.scrollLeft = width;
  fkWidth = width;
}).observe(document.documentElement, { childList: true, subtree: true, attributes: true, attributeFilter: ["width"] });
"""
"""Keeps the newest event of a tree in sight when one comes."""


def _free_port(host: str) -> int:
    for port in PORTS:
        try:
            check_port(host, port)
        except OSError:
            continue
        return port
    raise OSError(f"No port from {PORTS[0]} to {PORTS[-1]} is free at {host}. Choose another with --port.")
