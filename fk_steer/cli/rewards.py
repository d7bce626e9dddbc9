"""`fk-steer rewards` and `fk-steer score`."""

from __future__ import annotations

import inspect
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from ..console import console
from ..console import show as show_table
from ..options import options_of
from .options import Device, RewardsOption, one_line_errors, start


if TYPE_CHECKING:
    from PIL.Image import Image

    from ..rewards import RewardCard

app = typer.Typer(invoke_without_command=True)


@app.callback()
def rewards(
    context: typer.Context,
    markdown: Annotated[bool, typer.Option("--markdown", help="Print the table of the docs, in Markdown.")] = False,
) -> None:
    """List the rewards that can be steered by; `rewards show NAME` tells more about one."""
    if context.invoked_subcommand is not None:
        return
    with one_line_errors():
        start(console.is_terminal and not markdown)
        from ..rewards import available_rewards, markdown_table

        if markdown:
            print(markdown_table(), end="")
            return
        table = Table(box=None, padding=(0, 2, 0, 0))
        for column in ("name", "variants"):
            table.add_column(column, no_wrap=True)
        table.add_column("what it is")
        for name, entry_point in sorted(available_rewards().items()):
            factory = entry_point.load()
            card = getattr(factory, "card", None)
            summary = card.summary if card else (inspect.getdoc(factory) or "").split("\n\n")[0].replace("\n", " ")
            table.add_row(name, "\n".join(card.variants) if card else "", summary)
        console.print(table)
        console.print("`fk-steer rewards show NAME` tells the options of one.", highlight=False)


@app.command()
def show(
    name: Annotated[
        str, typer.Argument(metavar="NAME", help="Tell about this reward, one of those that `fk-steer rewards` lists.")
    ],
) -> None:
    """Tell what a reward is, where its weights are from and under which licence, and which scores to expect."""
    with one_line_errors():
        start(console.is_terminal)
        from ..rewards.registry import reward_factory

        factory = reward_factory(name)
        card = getattr(factory, "card", None)
        if card is None:
            console.print(inspect.getdoc(factory) or "This reward says nothing about itself.", highlight=False)
            return
        console.print(f"[bold]{name}[/bold] {card.summary}", highlight=False, soft_wrap=True)
        cards = {key: card.variant(key) for key in card.variants} or {"": card}
        said: dict[str, str] = {}
        for index, (key, variant) in enumerate(cards.items()):
            title = f"[bold]{key}[/bold]{' (default)' if index == 0 else ''} {variant.summary}" if key else None
            if title:
                console.print(f"\n{title}", highlight=False, soft_wrap=True)
            table = Table("field", "value", box=None, padding=(0, 2), show_header=False)
            for field, value in _facts(variant).items():
                # Of further variants only what is not as with the first.
                if said.get(field) != value:
                    table.add_row(field, value)
            said = said or _facts(variant)
            console.print(table)
        if card.checkpoints:
            console.print("\nwhich checkpoint knows which variant", highlight=False)
            console.print(_checkpoints(card))
        console.print(f"\noptions: {', '.join(inspect.signature(factory).parameters)}", highlight=False, soft_wrap=True)


def score(
    images: Annotated[list[Path], typer.Argument(metavar="IMAGE...", help="Score these image files.")],
    prompt: Annotated[
        list[str], typer.Option(help="Say what the images are of: once for all of them, or once for each.")
    ],
    reward: Annotated[
        str,
        typer.Option(
            metavar="NAME,...",
            help="Score by these rewards, one after the other; `fk-steer rewards` lists them. 'a+b' scores by the mean "
            "of two, each brought to mean 0 and spread 1 over a prompt's images.",
        ),
    ],
    reward_option: RewardsOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
    batch_size: Annotated[
        int,
        typer.Option(
            min=1, help="Score this many images at a time; a reward that compares images gets all of a prompt."
        ),
    ] = 8,
    device: Device = None,
) -> None:
    """Score images for a prompt.

    Images that cannot be read are reported and left out; the exit status is 1 if none could be scored.
    """
    with one_line_errors():
        if len(prompt) not in (1, len(images)):
            raise ValueError(f"Expected --prompt once or {len(images)} times, but got it {len(prompt)} times.")
        from ..loading import check_images

        names = list(dict.fromkeys(name.strip() for name in reward.split(",")))
        options = {name: options_of(reward_option or [], name, names) for name in names}
        for name in names:
            check_images(name)
        prompts = prompt * len(images) if len(prompt) == 1 else prompt
        opened, errors = _open_all(images)
        scores: dict[int, dict[str, float | None]] = {index: {} for index in opened}
        if opened:
            # What is piped is a table or JSON, and nothing else.
            start(console.is_terminal and not as_json)
        for name in names if opened else []:
            from ..loading import load_guide
            from ..rewards.judge import scores_or_none
            from ..rewards.loading import default_device

            scorer = load_guide(name, default_device(device), **options[name])
            indices = list(opened)
            if getattr(scorer, "relative", False):
                # Their scores depend on what else is in the call.
                texts = dict.fromkeys(prompts[index] for index in indices)
                calls = [[index for index in indices if prompts[index] == text] for text in texts]
            else:
                calls = [indices[start : start + batch_size] for start in range(0, len(indices), batch_size)]
            for some in calls:
                values = scores_or_none(
                    scorer,
                    [opened[index] for index in some],
                    [prompts[index] for index in some],
                    f"for {images[some[0]]}",
                )
                for index, value in zip(some, values):
                    scores[index][name] = value
    if as_json:
        results = [{"image": str(images[index]), "prompt": prompts[index], "scores": scores[index]} for index in scores]
        failed = [{"image": str(images[index]), "error": error} for index, error in errors.items()]
        typer.echo(json.dumps({"results": results, "errors": failed}, indent=2))
    else:
        table = Table("image", *names, box=None, padding=(0, 2))
        for index, path in enumerate(images):
            own = ["none" if value is None else f"{value:.4f}" for value in scores.get(index, {}).values()]
            row = own if index in scores else [f"[red]{errors[index]}"]
            table.add_row(str(path), *row)
        show_table(table)
    if not opened:
        raise typer.Exit(1)


def _open_all(paths: list[Path]) -> tuple[dict[int, Image], dict[int, str]]:
    """The images, the right way up, by their position, and what is wrong with those that cannot be read."""
    from llava_reward_guide.images import ImageError, load_image

    opened: dict[int, Image] = {}
    errors: dict[int, str] = {}
    for index, path in enumerate(paths):
        try:
            opened[index] = load_image(path, keep_mode=True)
        except ImageError as error:
            errors[index] = str(error)
    return opened, errors


def _checkpoints(card: RewardCard) -> Table:
    """A line for checkpoints that know the same variants."""
    alike: dict[tuple[str, ...], list[str]] = {}
    for checkpoint, variants in card.checkpoints.items():
        alike.setdefault(variants, []).append(checkpoint)
    table = Table(box=None, padding=(0, 2))
    table.add_column("checkpoints", no_wrap=True)
    table.add_column("variants")
    for variants, checkpoints in alike.items():
        table.add_row("\n".join(checkpoints), ", ".join(variants))
    return table


def _facts(card: RewardCard) -> dict[str, str]:
    revision = card.revision or ("newest" if card.hub_id else None)
    facts = {
        "paper": card.paper,
        "weights": card.hub_id,
        "files": ", ".join(card.files),
        "revision": revision,
        "licence": card.licence,
        "memory": f"{card.memory:.1f} GB: {card.weights:g} billion weights in {card.dtype}" if card.memory else None,
        "typical range": "{:g} to {:g}".format(*card.typical_range) if card.typical_range else None,
    }
    return {field: value for field, value in facts.items() if value}
