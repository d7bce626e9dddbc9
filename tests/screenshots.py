"""Makes the screenshots in docs: `python tests/screenshots.py`, from the root of the repository, with Chromium."""

from __future__ import annotations

import base64
import tempfile
from pathlib import Path

import torch
from browser import Browser

from fk_steer import load_reward, steer
from fk_steer.bundled import bundled_options
from fk_steer.loading import load_pipeline
from fk_steer.search import preset


DOCS = Path(__file__).parent.parent / "docs"


def screenshot(page: Path, selector: str, to: Path, width: int, scheme: str = "light", scale: float = 1.0) -> None:
    """A picture of what a CSS selector finds first."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder, Browser(page, Path(folder)) as browser:
        size = {"width": width, "height": 900, "deviceScaleFactor": scale, "mobile": width < 500}
        browser.call("Emulation.setDeviceMetricsOverride", **size)
        browser.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        x, y, wide, high = browser.evaluate(
            "(b => [b.x, b.y + scrollY, b.width, b.height])"
            f"(document.querySelector({selector!r}).getBoundingClientRect())"
        )
        clip = {"x": x - 8, "y": y - 8, "width": wide + 16, "height": high + 16, "scale": 1}
        shot = browser.call("Page.captureScreenshot", format="png", captureBeyondViewport=True, clip=clip)
        to.write_bytes(base64.b64decode(shot["data"]))


def family_tree(page: Path) -> None:
    """The page of a run on the bundled model."""
    reward = load_reward("clip-score", **bundled_options("shapes", "clip-score"))
    steered = steer(load_pipeline("shapes"), reward, preset("adaptive", seed=0))
    output = steered(
        "a yellow triangle above a green circle",
        num_inference_steps=25,
        guidance_scale=3.0,
        generator=torch.Generator().manual_seed(1),
        keep_predictions=True,
    )
    output.trace.save_html(page)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        page = Path(folder) / "tree.html"
        family_tree(page)
        screenshot(page, ".fk-tree", DOCS / "family-tree.png", 1180)
