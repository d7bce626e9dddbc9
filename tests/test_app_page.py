"""The page of `fk-steer app` in a browser."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time

import pytest
import torch
from browser import CHROMIUM, Browser
from PIL import Image


gradio = pytest.importorskip("gradio")

from fk_steer.app import Limits, launch  # noqa: E402


pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium")

SAID = "document.querySelector('#said').innerText"
READY = "document.readyState === 'complete' && !!document.querySelector('#said [role]')"


GRADIOS_OWN = ("Method not implemented.", "AbortError: signal is aborted")
"""What Gradio's own scripts put on the console when a file is uploaded, and when a request of theirs is given up."""


@pytest.fixture(scope="module")
def page():
    torch.set_num_threads(1)
    served = launch(device="cpu", block=False, limits=Limits(megabytes=1))
    yield served
    served.close()


@pytest.fixture(scope="module")
def shared(page, tmp_path_factory):
    with Browser(page.local_url, tmp_path_factory.mktemp("profile")) as opened:
        yield opened


@pytest.fixture
def browser(shared, page):
    """The page as new, in which nothing may go wrong and which may ask nobody else."""
    shared.look(1280)
    # What the page before has under way is given up with it, and is none of the new one's problems.
    shared.call("Page.navigate", url="about:blank")
    time.sleep(0.3)
    shared.problems.clear()
    shared.requests.clear()
    shared.call("Page.navigate", url=page.local_url)
    time.sleep(0.3)
    shared.wait(READY)
    yield shared
    assert not [problem for problem in shared.problems if not any(own in problem for own in GRADIOS_OWN)]
    assert not [url for url in shared.requests if not url.startswith((page.local_url, "blob:"))]


def fill(browser, field, text):
    """Replace what is in a field."""
    selector = f"#{field} textarea, #{field} input"
    found = f"document.querySelector({json.dumps(selector)})"
    browser.wait(f"!!{found}", 10)
    browser.evaluate(f"{found}.focus(), {found}.select()")
    browser.call("Input.insertText", text=text) if text else browser.call(
        "Input.dispatchKeyEvent", type="keyDown", key="Delete", code="Delete", windowsVirtualKeyCode=46
    )
    browser.wait(f"document.querySelector({json.dumps(selector)}).value === {json.dumps(text)}", 5)


def tab(browser, name):
    browser.evaluate(f"[...document.querySelectorAll('[role=tab]')].find(e => e.innerText.trim() === '{name}').click()")


def make(browser):
    browser.click("#make")
    browser.wait("document.querySelector('#make').disabled || !!document.querySelector('#said .fk-error')", 20)


def ended(browser, seconds=90):
    browser.wait("!document.querySelector('#make').disabled", seconds)
    return browser.evaluate(SAID)


def downloaded(browser, button):
    """The name and the beginning of the content of the file that a button gives."""
    browser.evaluate(
        "window.links = []; HTMLAnchorElement.prototype.click = function () { links.push([this.href, this.download]); }"
    )
    browser.wait(f"!!document.querySelector('#{button}')", 10)
    browser.click(f"#{button}")
    (url, name), *_ = browser.wait("links.length && links", 10)
    content = browser.call(
        "Runtime.evaluate",
        expression=f"fetch({json.dumps(url)}).then(r => r.text())",
        awaitPromise=True,
        returnByValue=True,
    )["result"]["value"]
    return name, content


def open_settings(browser):
    browser.evaluate(
        "[...document.querySelectorAll('button')].find(e => e.innerText.includes('More settings')).click()"
    )
    browser.wait("!!document.querySelector('#lmbda textarea, #lmbda input')", 10)


def test_a_picture_is_made_and_its_tree_grows(browser, page):
    fill(browser, "steps", "8")
    fill(browser, "particles", "3")
    browser.evaluate(
        "window.grown = []; new MutationObserver(() => {"
        "const n = document.querySelectorAll('#tree .fk-col').length; if (n !== grown.at(-1)) grown.push(n);"
        "}).observe(document.body, {childList: true, subtree: true})"
    )
    make(browser)
    said = ended(browser)
    assert said.startswith("Done in ") and "the best without steering" in said
    grown = [number for number in browser.evaluate("grown") if number]
    assert len(grown) > 1 and grown == sorted(grown)
    assert browser.texts("#pictures figcaption b") == ["Without steering", "Best of 3 without", "Steered"]
    assert browser.evaluate(
        "[...document.querySelectorAll('#pictures img')].every(e => e.naturalWidth === 64 && e.alt)"
    )
    # The slider goes back to the first event.
    assert browser.evaluate("document.querySelectorAll('#tree .fk-later').length") == 0
    browser.evaluate(
        "(e => { e.value = 0; e.dispatchEvent(new Event('input', {bubbles: true})); })"
        "(document.querySelector('#tree .fk-slider'))"
    )
    assert browser.evaluate("document.querySelectorAll('#tree .fk-node.fk-later').length") > 0
    browser.wait("document.querySelectorAll('#candidates img').length === 6", 10)
    found = {name: downloaded(browser, f"get-{name}") for name in ("picture", "all", "tree", "trace")}
    assert [name for name, _ in found.values()] == ["00.png", "fk-steer.zip", "tree.html", "trace.json"]
    assert found["all"][1].startswith("PK") and "fk-tree" in found["tree"][1]
    trace = json.loads(found["trace"][1])
    assert trace["prompts"] == ["a photo of three hearts"] and trace["returned"]


def test_a_run_is_stopped(browser):
    fill(browser, "steps", "200")
    make(browser)
    browser.wait(f"{SAID}.includes('step ')", 60)
    browser.click("#stop")
    assert "Stopped after" in ended(browser, 30)
    assert browser.texts("#stop") == ["Stop"]
    # The next one runs.
    fill(browser, "steps", "3")
    fill(browser, "particles", "1")
    make(browser)
    assert ended(browser).startswith("Done in ")


def test_who_leaves_the_page_frees_it_for_others(browser):
    fill(browser, "steps", "200")
    make(browser)
    browser.wait(f"{SAID}.includes('step ')", 60)
    browser.call("Page.reload")
    time.sleep(0.3)
    browser.wait(READY)
    browser.problems.clear()  # the page that was left says that its connection is gone
    fill(browser, "steps", "3")
    fill(browser, "particles", "1")
    make(browser)
    assert ended(browser, 60).startswith("Done in ")


@pytest.mark.parametrize(
    "field, typed, said",
    [
        ("prompt", "", "Prompt: say what the picture should show"),
        ("particles", "5000", "Candidates: expected a whole number from 1 to 32"),
        ("steps", "a few", "Steps: expected a whole number"),
        ("lmbda", "much", "Lambda: expected a number such as 12 or 0.5"),
        ("scheduler", "fastest", "fastest"),
    ],
)
def test_what_is_wrong_is_a_line_on_the_page(browser, field, typed, said):
    if field in ("lmbda", "scheduler"):
        open_settings(browser)
    fill(browser, field, typed)
    browser.click("#make")
    error = browser.wait("document.querySelector('#said .fk-error')?.innerText", 30)
    assert said in error and "\n" not in error
    browser.wait("!document.querySelector('#make').disabled", 10)


def test_an_unknown_model_is_a_line_on_the_page(browser):
    fill(browser, "model", "no-such-folder")
    browser.call("Input.dispatchKeyEvent", type="keyDown", key="Enter", code="Enter", windowsVirtualKeyCode=13)
    browser.click("#make")
    assert "no-such-folder" in browser.wait("document.querySelector('#said .fk-error')?.innerText", 60)


def test_several_rewards_get_weights(browser):
    browser.click("#rewards input")
    browser.wait("!!document.querySelector('#rewards [role=option], [role=listbox] [role=option]')", 10)
    browser.evaluate(
        "[...document.querySelectorAll('[role=option]')].find(e => e.innerText.includes('clip-score'))"
        ".dispatchEvent(new MouseEvent('mousedown', {bubbles: true}))"
    )
    browser.wait(
        "[...document.querySelectorAll('label')].filter(e => e.innerText.includes('Weight of')).length === 2", 20
    )


@pytest.fixture
def pictures(tmp_path):
    made = []
    for name, colour in (("red", "#d62026"), ("blue", "#2e4cd6")):
        image = Image.new("RGB", (64, 64), "#eee")
        image.paste(colour, (20, 20, 44, 44))
        image.save(tmp_path / f"{name}.png")
        made.append(tmp_path / f"{name}.png")
    (tmp_path / "broken.png").write_bytes(b"nothing")
    return [*made, tmp_path / "broken.png"]


def test_pictures_are_scored(browser, pictures):
    tab(browser, "Score")
    browser.wait("document.querySelector('#score').checkVisibility()", 10)
    browser.click("#score")
    assert "Prompt: say" in browser.wait("document.querySelector('#score-said .fk-error')?.innerText", 20)
    fill(browser, "score-prompt", "a photo of a red square")
    browser.upload("#score-files input[type=file]", *pictures)
    browser.wait("document.querySelector('#score-files').innerText.includes('blue')", 20)
    browser.click("#score")
    browser.wait("!!document.querySelector('#scores tbody tr')", 60)
    rows = browser.evaluate("[...document.querySelectorAll('#scores tbody tr')].map(e => e.cells[2].innerText)")
    assert sorted(rows[:2]) == ["blue.png", "red.png"] and rows[2] == "broken.png"
    assert browser.texts("#scores th.fk-number") == ["llava-reward", "image-reward", "overall"]
    assert "2 scored, 1 cannot be read" in browser.evaluate("document.querySelector('#score-said').innerText")
    name, content = downloaded(browser, "get-scores")
    assert name == "scores.csv" and content.startswith("image,llava-reward,image-reward,mean z-score")


def test_a_file_that_is_too_large_is_refused(browser, tmp_path):
    large = tmp_path / "large.png"
    large.write_bytes(b"x" * 2_000_000)
    tab(browser, "Score")
    browser.upload("#score-files input[type=file]", large)
    browser.wait("/exceed|too large|size/i.test(document.body.innerText)", 20)
    # The browser notes the answer of the server.
    browser.problems.clear()


def test_two_pictures_are_compared(browser, pictures):
    tab(browser, "Compare")
    browser.wait("document.querySelector('#pair').checkVisibility()", 10)
    fill(browser, "pair-prompt", "a photo of a red square")
    browser.click("#pair")
    assert "two are needed" in browser.wait("document.querySelector('#pair-said .fk-error')?.innerText", 20)
    for place, path in zip("ab", pictures):
        browser.upload(f"#pair-{place} input[type=file]", path)
        browser.wait(f"!!document.querySelector('#pair-{place} img')", 20)
    browser.click("#pair")
    said = browser.wait("document.querySelector('#verdict h3')?.innerText", 60)
    assert said in ("A is better.", "B is better.")
    assert "is preferred with probability" in browser.evaluate("document.querySelector('#verdict').innerText")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
def test_it_fits_screens_and_can_be_read(browser, width, scheme):
    browser.look(width, scheme)
    browser.call("Page.reload")
    time.sleep(0.3)
    browser.wait(READY)
    for name in ("Make", "Score", "Compare"):
        tab(browser, name)
        assert browser.evaluate("document.documentElement.scrollWidth") <= width, name
    tab(browser, "Make")
    if width == 390:
        fill(browser, "steps", "3")
        make(browser)
        ended(browser)
        browser.wait("document.querySelectorAll('#candidates img').length === 8", 10)
        assert browser.evaluate("document.documentElement.scrollWidth") <= width
    assert _contrasts(browser) == []


def _contrasts(browser):
    """Texts that cannot be read well on what is behind them: WCAG's 4.5 to 1."""
    return browser.evaluate(
        """(() => {
        const numbers = (text) => text.match(/[\\d.]+/g).map(Number);
        const light = ([r, g, b]) => [r, g, b].map((v) => v / 255)
          .map((v) => (v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4))
          .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
        const behind = (e) => {
          for (; e; e = e.parentElement) {
            const c = getComputedStyle(e).backgroundColor;
            if (!c.startsWith("rgb")) continue;
            const n = numbers(c);
            if (n.length === 3 || n[3] > 0.9) return n;
          }
          return [255, 255, 255];
        };
        const found = [];
        const texts = ".fk-head p, #said [role], #make, label span, .fk-figures span, [role=tab], h3";
        for (const e of document.querySelectorAll(texts)) {
          if (!e.checkVisibility() || !e.innerText.trim()) continue;
          const color = getComputedStyle(e).color;
          if (!color.startsWith("rgb")) continue;
          const [a, b] = [light(numbers(color)), light(behind(e))].sort((x, y) => y - x);
          if ((a + 0.05) / (b + 0.05) < 4.5) found.push(`${e.innerText.slice(0, 30)}: ${color} on ${behind(e)}`);
        }
        return found;
      })()"""
    )


def test_a_port_that_is_taken_is_said(page):
    with pytest.raises(OSError, match="Choose another with --host or --port"):
        launch(port=page.server_port, block=False)
    with pytest.raises(OSError, match="Cannot listen at 203.0.113.1"):
        launch(host="203.0.113.1", port=7999, block=False)


def test_it_listens_to_this_machine_alone(page):
    assert page.local_url.startswith("http://127.0.0.1:") and page.share_url is None
    others = {info[4][0] for info in socket.getaddrinfo(socket.gethostname(), None, socket.AF_INET)} - {"127.0.0.1"}
    for address in others:
        with socket.socket() as tried:
            tried.settimeout(2)
            assert tried.connect_ex((address, page.server_port)) != 0


def test_the_command_says_what_is_wrong():
    done = subprocess.run(
        [sys.executable, "-m", "fk_steer", "app", "--model", "shapse"], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 1 and "shapes" in done.stderr and len(done.stderr.strip().splitlines()) == 1
    # It takes a while until there is a page to open.
    assert done.stdout.splitlines()[0] == "Loading PyTorch and Diffusers ..."
