"""Makes the screenshots in docs/app.md: `python tests/app_screenshots.py`, from the root of the repository.

It needs Chromium and the extra `app`."""

from __future__ import annotations

import base64
import io
import sys
import tempfile
import time
from pathlib import Path

import torch
from browser import Browser
from PIL import Image

from fk_steer.app import launch
from fk_steer.loading import load_pipeline


DOCS = Path(__file__).parent.parent / "docs"
PROMPT = "a photo of a heart and a moon"


def screenshot(browser: Browser, to: Path, height: int) -> None:
    """The upper part of the page, in 128 colours."""
    clip = {"x": 0, "y": 0, "width": 1280, "height": height, "scale": 1}
    shot = browser.call("Page.captureScreenshot", format="png", captureBeyondViewport=True, clip=clip)
    image = Image.open(io.BytesIO(base64.b64decode(shot["data"]))).convert("RGB")
    image.quantize(128, dither=Image.Dither.NONE).save(to, optimize=True)


def make(browser: Browser) -> None:
    """A picture, and the tree of its candidates."""
    browser.evaluate("document.querySelector('#prompt textarea').focus(); document.activeElement.select()")
    browser.call("Input.insertText", text=PROMPT)
    browser.click("#make")
    browser.wait("document.querySelector('#said').innerText.startsWith('Done')", 300)
    browser.wait("document.querySelectorAll('#candidates img').length === 8")
    time.sleep(1)
    browser.evaluate("document.activeElement.blur(); scrollTo(0, 0)")
    screenshot(browser, DOCS / "app.png", 1100)


def compare(browser: Browser, folder: Path) -> None:
    """A verdict on two pictures of the bundled model."""
    pipe = load_pipeline("shapes")
    for seed, place in ((4, "a"), (7, "b")):
        image = pipe(
            PROMPT, num_inference_steps=25, guidance_scale=3.0, generator=torch.Generator().manual_seed(seed)
        ).images[0]
        path = folder / f"{place}.png"
        image.save(path)
        browser.evaluate("[...document.querySelectorAll('[role=tab]')].find(e => e.innerText === 'Compare').click()")
        browser.upload(f"#pair-{place} input[type=file]", path)
        browser.wait(f"!!document.querySelector('#pair-{place} img')")
    browser.evaluate("document.querySelector('#pair-prompt textarea, #pair-prompt input').focus()")
    browser.call("Input.insertText", text=PROMPT)
    browser.click("#pair")
    browser.wait("!!document.querySelector('#verdict h3')", 120)
    browser.evaluate("document.activeElement.blur(); scrollTo(0, 0)")
    time.sleep(1)
    screenshot(browser, DOCS / "app-compare.png", 760)


def main() -> None:
    """Both screenshots."""
    page = launch(device="cpu", block=False)
    try:
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as place:
            folder = Path(place)
            with Browser(page.local_url, folder / "profile") as browser:
                browser.look(1280)
                browser.wait("!!document.querySelector('#said [role]')")
                make(browser)
                compare(browser, folder)
    finally:
        page.close()


if __name__ == "__main__":
    sys.path.insert(0, str(DOCS.parent))
    main()
