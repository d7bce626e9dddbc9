"""The tabs of the page that judge pictures which are brought."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import gradio as gr

from . import parts
from .form import PROMPTS, offered_rewards, options_of, prompt_of
from .judging import judge_pair, score_images, table
from .limits import Limits
from .models import Models


TWO_AT_ONCE = {
    "llava-reward, trained to compare": ("llava-reward", "objective=general-preference"),
    "unified-reward, which of two in words": ("unified-reward", "variant=pair\nboth_orders=true"),
    "unified-reward, with its reasoning": ("unified-reward", "variant=think\nboth_orders=true"),
}
"""Ways to compare two pictures that are not a reward's usual one: the reward and its options."""

WORLD, HUB = "by the bundled model", "any others"
"""Who made the pictures that are judged."""

logger = logging.getLogger(__name__)


def score_tab(models: Models, limits: Limits) -> None:
    """Pictures that are brought, scored by several rewards."""
    rewards = offered_rewards(limits)
    with gr.Row():
        with gr.Column(scale=2, min_width=300):
            files = gr.File(
                label=f"Pictures, {limits.images} at most",
                file_count="multiple",
                file_types=["image"],
                height=200,
                elem_id="score-files",
            )
            prompt, chosen, world, options = _judges(limits, rewards, "score", multiselect=True)
            go = gr.Button("Score them", variant="primary", elem_id="score")
        with gr.Column(scale=3, min_width=300):
            said = gr.HTML(
                parts.status("Bring some pictures and say what they should show: each reward gives its scores."),
                elem_id="score-said",
                padding=False,
            )
            shown = gr.HTML(elem_id="scores", padding=False)
            download = gr.DownloadButton("Scores (.csv)", size="sm", visible=False, elem_id="get-scores")

    def score(paths: list[str] | None, text: str, names: list[str], of: str, typed: str) -> Iterator[dict[Any, Any]]:
        asked = prompt_of(text, limits)
        if not names:
            raise ValueError("Rewards: choose at least one.")
        given = options_of(names, typed, None if of == HUB else "shapes", limits)
        yield {said: parts.status("Scoring; the first time the rewards are loaded.")}
        scored = score_images(models, paths or [], asked, given, limits)
        with tempfile.TemporaryDirectory(prefix="fk-steer-") as place:
            path = Path(place) / "scores.csv"
            path.write_text(table(scored))
            failed = sum(one.image is None for one in scored)
            text = f"{len(scored) - failed} scored" + (f", {failed} cannot be read" if failed else "")
            yield {
                said: parts.status(f"{text}, best first."),
                shown: parts.score_table(scored),
                download: gr.DownloadButton(value=str(path), visible=True),
            }

    _serve(
        go,
        score,
        [files, prompt, chosen, world, options],
        said,
        {shown: "", download: gr.DownloadButton(visible=False)},
    )


def pair_tab(models: Models, limits: Limits) -> None:
    """Two pictures that are brought, and which of them is better."""
    rewards = offered_rewards(limits)
    ways = [label for label, (name, _) in TWO_AT_ONCE.items() if name in rewards]
    with gr.Row():
        with gr.Column(scale=2, min_width=300):
            with gr.Row():
                first, second = (
                    gr.Image(
                        label=label,
                        type="filepath",
                        sources=["upload", "clipboard"],
                        height=220,
                        min_width=140,
                        elem_id=f"pair-{label.lower()}",
                    )
                    for label in "AB"
                )
            prompt, chosen, world, options = _judges(limits, [*ways, *rewards], "pair", multiselect=False)
            go = gr.Button("Which is better?", variant="primary", elem_id="pair")
        with gr.Column(scale=3, min_width=300):
            said = gr.HTML(
                parts.status("Bring two pictures. A chat judge says why; other rewards give numbers alone."),
                elem_id="pair-said",
                padding=False,
            )
            shown = gr.HTML(elem_id="verdict", padding=False)

    def compare(a: str | None, b: str | None, text: str, way: str, of: str, typed: str) -> Iterator[dict[Any, Any]]:
        asked = prompt_of(text, limits)
        if not a or not b:
            raise ValueError("Pictures: two are needed, A and B.")
        name, own = TWO_AT_ONCE.get(way, (way, ""))
        bundled = None if of == HUB else "shapes"
        given = options_of([name], typed, bundled, limits)[name]
        fixed = options_of([name], own, bundled, Limits())[name] if own else {}
        yield {said: parts.status("Comparing; the first time the reward is loaded.")}
        found = judge_pair(models, a, b, asked, name, {**fixed, **given})
        yield {said: "", shown: parts.verdict(found)}

    _serve(go, compare, [first, second, prompt, chosen, world, options], said, {shown: ""})


def _judges(limits: Limits, rewards: list[str], where: str, multiselect: bool) -> tuple[Any, Any, Any, Any]:
    """What pictures are judged by: a prompt, rewards, whose weights, and options."""
    prompt = gr.Textbox(
        label="Prompt",
        info="What the pictures should show.",
        placeholder=PROMPTS[0],
        max_length=limits.letters,
        elem_id=f"{where}-prompt",
    )
    first = [name for name in ("llava-reward", "image-reward") if name in rewards] if multiselect else rewards[0]
    chosen = gr.Dropdown(
        rewards,
        value=first,
        multiselect=multiselect,
        label="Rewards" if multiselect else "Reward",
        info="What judges them; `fk-steer rewards` says what each is.",
        elem_id=f"{where}-rewards",
    )
    world = gr.Radio(
        [WORLD] if limits.fixed else [WORLD, HUB],
        value=WORLD,
        label="The pictures were made",
        info="Pictures of the bundled shapes are judged by small rewards that come along; for any others the published "
        "ones are downloaded.",
        elem_id=f"{where}-world",
    )
    options = gr.Textbox(
        label="Options of rewards",
        info="KEY=VALUE or REWARD:KEY=VALUE, one a line. A chat judge needs model=NAME, and base_url=ADDRESS unless "
        "its server is on this machine.",
        lines=2,
        visible=not limits.fixed,
        elem_id=f"{where}-options",
    )
    return prompt, chosen, world, options


def _serve(
    button: Any, work: Callable[..., Iterator[Mapping[Any, Any]]], inputs: list[Any], said: Any, cleared: dict[Any, Any]
) -> None:
    """Have a button do some work, whose errors become a line on the page."""

    def run(*values: Any) -> Iterator[dict[Any, Any]]:
        yield {**cleared, button: gr.Button(interactive=False)}
        idle = {button: gr.Button(interactive=True)}
        try:
            for changes in work(*values):
                yield {**changes}
        except Exception as error:
            if not isinstance(error, (ValueError, OSError, ImportError)):
                logger.exception("Judging failed.")
            yield {said: parts.status(parts.line_of(error), error=True), **idle}
            return
        yield idle

    button.click(
        run,
        inputs,
        [said, button, *cleared],
        concurrency_id="models",
        concurrency_limit=1,
        show_progress="hidden",
        api_visibility="private",
    )
