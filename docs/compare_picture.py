"""The picture of the comparison page, docs/compare.png: a small study on the bundled model, and Chromium on its report.

python docs/compare_picture.py            # two minutes on a CPU, then docs/compare.png
python docs/compare_picture.py --all out  # also wide and narrow, light and dark, each section, into a folder
"""

import argparse
import base64
import sys
import tempfile
from pathlib import Path

from PIL import Image

from fk_steer.evaluation.comparison.run import run
from fk_steer.options import Help


sys.path.append(str(Path(__file__).parents[1] / "tests"))
from browser import Browser


STUDY = {
    "models": ["shapes"],
    "rewards": ["none", "clip-score", "image-reward", "llava-reward"],
    "prompts": ["shapes"],
    "generation": {"limit": 12, "steps": 10, "samples_per_prompt": 2, "preset": "finish"},
}
"""Three guides and none, two prompts of each of GenEval's six tasks."""


SHORTENED = """
[...document.querySelectorAll("section")].forEach((one) => {
  one.hidden = !(one.matches(".headlines, #images") || one.querySelector("#table-accuracy"));
});
document.getElementById("differs").click();
document.documentElement.style.overflow = "hidden";
"""
"""Of a page of many screens: the first table, and the images on which guides differ."""


def photograph(page: Path, picture: Path, width: int, height: int | None, dark: bool) -> None:
    """The page as it is on a screen, a PNG.

    Args:
        height: of what is seen of the page `SHORTENED`; None for the whole page.
    """
    with (
        tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile,
        Browser(page.absolute(), Path(profile)) as browser,
    ):
        browser.call(
            "Emulation.setEmulatedMedia",
            features=[{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}],
        )
        mobile = width < 640
        size = {"width": width, "height": height or 900, "deviceScaleFactor": 1, "mobile": mobile}
        browser.call("Emulation.setDeviceMetricsOverride", **size)
        if height is not None:
            browser.evaluate(SHORTENED)
        if height is None:
            size["height"] = browser.evaluate("document.documentElement.scrollHeight")
            browser.call("Emulation.setDeviceMetricsOverride", **size)
        found = browser.call("Page.captureScreenshot", format="png")["data"]
        overflow = browser.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
        if browser.problems or browser.requests or overflow > 0:
            raise RuntimeError(
                f"The page at {width} px: {browser.problems} {browser.requests}, {overflow} px too wide."
            )
    picture.write_bytes(base64.b64decode(found))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=Help)
    parser.add_argument(
        "--study", type=Path, default=Path("out/compare-picture"), help="Keep the study in this folder."
    )
    parser.add_argument("--out", type=Path, default=Path("docs/compare.png"), help="Write the picture to this file.")
    parser.add_argument("--all", type=Path, help="Write pictures of the whole page in four forms to this folder.")
    options = parser.parse_args()
    if run(STUDY, options.study):
        raise SystemExit("Something of the study failed; see above.")
    page = options.study / "report.html"
    if options.all is not None:
        options.all.mkdir(parents=True, exist_ok=True)
        for width in (1280, 390):
            for dark in (False, True):
                name = f"{width}-{'dark' if dark else 'light'}.png"
                photograph(page, options.all / name, width, None, dark)
    photograph(page, options.out, 1280, 1340, False)
    with Image.open(options.out) as picture:
        picture.convert("RGB").save(options.out, optimize=True)
    print(f"{options.out}: {options.out.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
