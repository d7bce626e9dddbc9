"""Preferences about the world's images, as people's would be: pairs with noisy labels in the published JSON format.

    python -m fk_steer.shapes.preferences --out runs/preferences

Of two images with scores a and b the first is preferred with probability sigmoid((a - b) / T), the Bradley-Terry model
that rewards are trained on. With T = `TEMPERATURE` two labellers agree on 65% of the alignment pairs, as many as
people do about generated images (65.3% in ImageReward, Xu et al., arXiv 2304.05977), and each with the scores on 75%.

| perspective | pairs | score |
|---|---|---|
| alignment | two samples, or two x0 predictions of one moment, of the same group | half the mean degree to which GenEval's conditions are met, and a half if all are |
| fidelity | a render or sample and itself with an artefact, or with it at two strengths | 1 - strength |
| overall | two samples, x0 predictions or members of the artefact series of the same group | alignment + 0.2 fidelity |

Pairs with the same score, and for `overall` those that differ by no more than 0.05, are ties and left out.
"""  # noqa: E501

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from tqdm.auto import tqdm

from ..console import console
from ..files import check_settings, record_settings, write_json
from . import NUM_INFERENCE_STEPS, WEIGHTS
from .captions import TASKS, parse
from .oracle import judge
from .preference_images import SPLITS, Picture, make_images, meaning


TEMPERATURE = 0.4
FIDELITY_WEIGHT = 0.2
OVERALL_TIE = 0.05
PERSPECTIVES = ("alignment", "fidelity", "overall")


def score(picture: Picture, perspective: str) -> float:
    """What a perspective compares by, see the table above."""
    if perspective == "fidelity":
        return 1.0 - picture.strength
    # Right or not counts as much as how nearly: one star too many among four is a failure, though most is as asked.
    alignment = 0.5 * picture.alignment + 0.5 * (picture.alignment == 1.0)
    return alignment if perspective == "alignment" else alignment + FIDELITY_WEIGHT * picture.fidelity


def comparable(group: Sequence[Picture], perspective: str) -> Iterable[tuple[Picture, Picture]]:
    """Pairs of pictures of one group that are compared, ties included."""
    kinds = {
        "alignment": [["sample"], ["x0"]],
        "fidelity": [["artefact"]],
        "overall": [["sample", "artefact"], ["x0"]],
    }[perspective]
    for together in kinds:
        pictures = [picture for picture in group if picture.kind in together]
        if "sample" in together:
            # The original of a series may be a sample, which is there already.
            pictures = [p for p in pictures if p.kind == "sample" or p.rendered or p.strength > 0]
        yield from itertools.combinations(pictures, 2)


def agreement(gap: float, temperature: float = TEMPERATURE) -> float:
    """Probability that a label agrees with the scores, for scores that differ by `gap`."""
    return 1 / (1 + math.exp(-abs(gap) / temperature))


def pairs(
    groups: Iterable[Sequence[Picture]], perspective: str, seed: int, temperature: float = TEMPERATURE
) -> tuple[list[dict[str, Any]], int]:
    """Labelled pairs, and how many ties were left out.

    Each has, beyond the published fields, `tag`; the scores `c_rate` and `r_rate`; `clean_chosen_path`, the image with
    the higher score; and `progress` of both images, `artefact` and `group`.
    """
    items, ties = [], 0
    for group in groups:
        rng = np.random.default_rng([seed, PERSPECTIVES.index(perspective), group[0].group, 2])
        for pair in comparable(group, perspective):
            better, worse = sorted(pair, key=lambda picture: -score(picture, perspective))
            gap = score(better, perspective) - score(worse, perspective)
            if gap <= (OVERALL_TIE if perspective == "overall" else 1e-9):
                ties += 1
                continue
            agrees = rng.random() < agreement(gap, temperature)
            chosen, rejected = (better, worse) if agrees else (worse, better)
            items.append(_item(chosen, rejected, better, perspective))
    return items, ties


def _item(chosen: Picture, rejected: Picture, better: Picture, perspective: str) -> dict[str, Any]:
    return {
        "prompt": chosen.prompt,
        "chosen_path": chosen.path,
        "reject_path": rejected.path,
        "c_rate": round(score(chosen, perspective), 6),
        "r_rate": round(score(rejected, perspective), 6),
        "clean_chosen_path": better.path,
        "tag": chosen.tag,
        "progress": chosen.progress,
        "artefact": chosen.artefact or rejected.artefact,
        "group": chosen.group,
    }


def clean(items: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """The same pairs without label noise."""
    found = []
    for item in items:
        if item["clean_chosen_path"] != item["chosen_path"]:
            sides = ("chosen_path", "reject_path", "c_rate", "r_rate")
            values = (item["reject_path"], item["chosen_path"], item["r_rate"], item["c_rate"])
            item = {**item, **dict(zip(sides, values))}
        found.append(item)
    return found


def negatives(groups: Sequence[Sequence[Picture]], out: Path) -> tuple[list[dict[str, Any]], dict[str, int]]:
    """Hard negatives by `llava_reward_guide.data.negatives` for the samples that are right, as the guide sees them.

    The most similar prompt often says the same in other words, and the most similar image often does what the prompt
    says: of prompts with one meaning one is taken, and negatives that the detector finds true are dropped.
    """
    from llava_reward_guide.data.negatives import CLIPEmbedding, hard_negative_images, hard_negative_prompts
    from llava_reward_guide.images import load_image

    from ..rewards.images import to_uint8

    wordings: dict[Any, str] = {}
    best: dict[str, list[str]] = {}
    images: list[tuple[str, str]] = []
    for group in groups:
        own = meaning(parse(group[0].prompt))
        text = wordings.setdefault(own, group[0].prompt)
        for picture in group:
            if picture.kind != "sample":
                continue
            images.append((picture.path, text))
            if picture.alignment == 1 and len(best.setdefault(text, [])) < 8:
                best[text].append(picture.path)
    best = {text: paths for text, paths in best.items() if paths}
    embedding = CLIPEmbedding(str(WEIGHTS / "guide"), out)
    found = hard_negative_prompts(best, embedding.text) + hard_negative_images(best, images, embedding.image)
    items = []
    for item in found:
        right, wrong = item["prompt"] if isinstance(item["prompt"], list) else [item["prompt"]] * 2
        rejected = load_image(out / item["reject_path"])
        if not judge(to_uint8([rejected], "cpu")[0], wrong).correct:
            items.append({**item, "tag": parse(right)["tag"]})
    return items, {"pairs": len(items), "dropped as true": len(found) - len(items)}


def describe(items: Sequence[dict[str, Any]], ties: int) -> dict[str, Any]:
    """Counts of pairs, prompts and tasks, and how often the labels agree with the scores, as expected and as drawn."""
    gaps = [abs(item["c_rate"] - item["r_rate"]) for item in items]
    number = max(len(items), 1)
    return {
        "pairs": len(items),
        "ties left out": ties,
        "prompts": len({item["prompt"] for item in items}),
        "of x0 predictions": sum(item["progress"] < 1 for item in items),
        "by task": {task: sum(item["tag"] == task for item in items) for task in TASKS},
        "by artefact": dict(sorted(Counter(item["artefact"] for item in items if item["artefact"]).items())),
        "agreement of labels and scores": sum(i["chosen_path"] == i["clean_chosen_path"] for i in items) / number,
        "agreement expected": sum(map(agreement, gaps)) / number,
        "agreement of two labels expected": sum(agreement(g) ** 2 + (1 - agreement(g)) ** 2 for g in gaps) / number,
    }


def describe_images(groups: Sequence[Sequence[Picture]]) -> dict[str, Any]:
    """Counts of pictures, and the share of samples that are right, by task."""
    samples = [picture for group in groups for picture in group if picture.kind == "sample"]
    right: dict[str, float] = {}
    for task in TASKS:
        own = [picture.alignment == 1 for picture in samples if picture.tag == task]
        right[task] = sum(own) / max(len(own), 1)
    return {
        "groups": len(groups),
        "prompts": len({group[0].prompt for group in groups}),
        "images": dict(Counter(picture.kind for group in groups for picture in group)),
        "samples that are right": right,
    }


def main(
    out: Annotated[
        Path, typer.Option(help="Write the data to this folder. A run that was stopped goes on where it was.")
    ],
    prompts: Annotated[int, typer.Option(min=1, help="Make this many groups of images to train on.")] = 4200,
    held_out: Annotated[int, typer.Option(min=1, help="Make this many groups of images of other prompts.")] = 300,
    steps: Annotated[int, typer.Option(min=5, help="Take this many denoising steps.")] = NUM_INFERENCE_STEPS,
    seed: Annotated[int, typer.Option(help="Draw everything from this seed.")] = 0,
) -> None:
    """Make preference data about the bundled world: images, and pairs with labels as noisy as people's."""
    from . import load_pipeline

    settings = {"steps": steps, "seed": seed}
    check_settings(out, settings)
    record_settings(out, settings)
    pipe = load_pipeline()
    pipe.set_progress_bar_config(disable=True)
    statistics: dict[str, Any] = {"temperature": TEMPERATURE, "images": {}, "pairs": {}}
    made = {}
    with tqdm(total=prompts + held_out, unit="prompt", mininterval=1.0) as progress:
        for split, number in zip(reversed(SPLITS), (held_out, prompts)):
            made[split] = make_images(out, split, number, seed, steps, pipe, progress.update)
            statistics["images"][split] = describe_images(made[split])
    for perspective in PERSPECTIVES:
        for split, suffix in zip(SPLITS, ("", "-validation")):
            items, ties = pairs(made[split], perspective, seed + SPLITS.index(split))
            write_json(out / f"{perspective}{suffix}.json", items)
            statistics["pairs"][f"{perspective}{suffix}"] = describe(items, ties)
            if split == "held-out":
                write_json(out / f"{perspective}-heldout-clean.json", clean(items))
    items, statistics["pairs"]["alignment-negatives"] = negatives(made["train"], out)
    write_json(out / "alignment-negatives.json", items)
    write_json(out / "statistics.json", statistics)
    console.print_json(data=statistics)


if __name__ == "__main__":
    typer.run(main)
