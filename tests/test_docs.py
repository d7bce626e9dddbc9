"""Code in the documentation runs, and tables in it are what is printed."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from pages import DOCS
from sentences import fragment

from fk_steer.evaluation.statistics import plus_minus
from fk_steer.rewards import markdown_table
from fk_steer.search import PRESETS, STRATEGIES
from fk_steer.search.presets import markdown_table as presets_table
from fk_steer.testing import CALLS, SIZE, flux, redness, sd, sd_scheduler, sdxl
from fk_steer.testing.tiny import modular_of, wan


REPOSITORY = Path(__file__).parent.parent


def blocks(page: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", (REPOSITORY / page).read_text(), re.S)


@pytest.mark.parametrize("model", CALLS)
def test_the_page_about_searches_runs(model):
    make, call = CALLS[model]
    names = {
        "pipe": make(),
        "reward": redness,
        "prompt": "a red circle",
        "call": {**call, "num_inference_steps": 8, "generator": torch.Generator().manual_seed(0)},
    }
    follow, twice, again = blocks("docs/search.md")
    exec(follow, names)
    events = names["output"].trace.events
    assert [event.step for event in events] == [3, 6, 8]
    for event in events[:-1]:
        best = max(zip(event.rewards[0], event.slots_before[0]))[1]
        assert event.parents[0] == [best] * 4
    exec(twice, names)
    events = names["output"].trace.events
    assert [(event.step, event.resume) for event in events] == [(4, 2), (4, None), (8, None)]
    first, second = (event.rewards[0] for event in events[:2])
    assert events[1].parent_events[0] == [int(later > earlier) for earlier, later in zip(first, second)]
    exec(again, names)
    trace = names["output"].trace
    best = [max(one.events[-1].rewards[0]) for one in (trace, *(retry for _, retry in trace.retries))]
    assert all(later > earlier for earlier, later in zip(best, best[1:-1])) and best[-1] <= max(best[:-1])
    assert names["output"].rewards[0, 0].item() == pytest.approx(max(best), abs=1e-5)


def test_the_page_about_modular_pipelines_runs(tmp_path, monkeypatch):
    base = str(tmp_path / "base")
    sdxl(sd_scheduler("epsilon")).save_pretrained(base)
    monkeypatch.chdir(REPOSITORY)
    monkeypatch.setattr("diffusers.utils.torch_utils.TorchDeviceBackend.mem_get_info", lambda self: (2**40, 2**40))
    names = {
        "pipe": modular_of(flux()),
        "reward": redness,
        "prompt": "a red circle",
        "call": {**SIZE, "num_inference_steps": 8, "output_type": "pt"},
    }
    own, block, offload, others = blocks("docs/modular.md")
    exec(own, names)
    assert names["out"].rewards.shape == (1, 4)
    exec(block.replace("stabilityai/stable-diffusion-xl-base-1.0", base), names)
    first = names["state"]
    assert first.images.shape == (4, 3, 16, 16)
    assert first.rewards[0].diff().le(0).all()
    assert first.trace.nfe <= 2 * 4 * 8
    exec(offload.replace('"cuda"', '"cpu"'), names)
    assert names["state"].rewards.shape == (1, 4)
    assert hasattr(names["pipe"].reward, "_hf_hook")
    exec(others, names)
    assert list(names["blocks"].sub_blocks["fk_steering"].part.sub_blocks) == ["denoise", "decode"]


def test_the_page_about_searches_lists_those_that_ship():
    page = (REPOSITORY / "docs" / "search.md").read_text()
    assert set(re.findall(r"^\| `(\w+)\.py`", page, re.M)) == {
        place.partition(":")[0].rpartition(".")[2] for place in STRATEGIES.values()
    }


def test_the_page_about_compute_runs(capsys):
    names = {"pipe": sd(), "reward": redness, "prompt": "a red circle"}
    budget, by_name, unguided = blocks("docs/compute.md")
    exec(budget, names)
    chosen = names["output"].trace.chosen
    assert (chosen["sampler"], chosen["budget"]) == ("dpmsolver++", 400)
    assert chosen["num_particles"] == 400 // chosen["steps"]
    capsys.readouterr()
    exec(by_name, names)
    assert capsys.readouterr().out.strip() in by_name
    assert names["again"].num_particles == chosen["num_particles"]
    assert names["again"].calls is None
    exec(unguided, names)
    assert names["out"].trace.nfe == 5 * (5 * 2 + 5)


def test_the_page_about_videos_runs():
    names = {
        "pipe": wan(),
        "of_images": redness,
        "call": {"num_inference_steps": 2, "height": 16, "width": 16, "num_frames": 5, "max_sequence_length": 16},
    }
    by_frames, of_videos = blocks("docs/video.md")
    exec(by_frames, names)
    output = names["output"]
    assert [len(video) for video in output.particles[0]] == [5] * 4
    assert output.images[0] == output.particles[0][0]
    shown = np.stack([[np.asarray(frame) for frame in video] for video in output.particles[0]]) / 255
    shown = torch.from_numpy(shown[:, [0, 1, 3, 4]]).movedim(-1, 2).float()  # four of five, evenly
    worst = torch.stack([redness(shown[:, place], []) for place in range(4)]).amin(0)
    assert torch.allclose(output.rewards[0], worst, atol=0.2)  # of pixels before they were rounded
    exec(of_videos, names)
    videos = torch.as_tensor(names["output"].particles[0]).movedim(-1, 2)
    assert torch.allclose(names["output"].rewards[0], names["stillness"](videos, []), atol=1e-4)


def test_the_table_of_memory_is_flat():
    page = (REPOSITORY / "docs" / "video.md").read_text()
    rows = re.findall(r"^\| '(\w+)' \| (\d+) \| ([\d.]+) \| ([\d.]+) \|$", page, re.M)
    assert [(kind, int(number)) for kind, number, *_ in rows] == [
        (kind, number) for kind in ("pil", "pt", "latent") for number in (4, 8, 16)
    ]
    for first in (0, 3, 6):
        assert float(rows[first + 2][3]) - float(rows[first][3]) < 12 * 0.05, "a tenth of a video"


def test_the_table_of_presets_is_what_the_command_prints(capsys):
    from fk_steer.cli import app

    app(["presets", "--markdown"], standalone_mode=False)
    table = capsys.readouterr().out
    assert table == presets_table()
    assert table in (REPOSITORY / "docs" / "presets.md").read_text()
    assert len(table.splitlines()) == 2 + len(PRESETS)


@pytest.mark.parametrize("name", PRESETS)
def test_presets_say_what_they_are_and_when_to_take_them(name):
    one = PRESETS[name]
    assert fragment(one.summary) is None
    assert fragment(one.use_when) is None
    assert one.use_when.startswith("Use it when ")
    assert "|" not in one.summary + one.use_when


def test_the_table_of_rewards_is_what_the_command_prints(capsys):
    from fk_steer.cli import app

    app(["rewards", "--markdown"], standalone_mode=False)
    assert capsys.readouterr().out == markdown_table()


def test_the_table_of_pipelines_adds_up():
    """It is printed by `benchmarks.pipelines.run`, whose tests of Diffusers are no part of this repository."""
    text = (REPOSITORY / "docs" / "pipelines.md").read_text()
    listed, left_out = text.split("## Left out")
    rows = re.findall(r"^\| (\S[^|]*?) \| [^|]* \| (yes|no|not tried)\b", listed, re.M)
    said = re.search(r"(\d+) tests of (\d+) classes, (\d+) of which steer", listed)
    assert (int(said[2]), len({name for name, _ in rows})) == (len(rows), len(rows))
    assert len(rows) - len(re.findall(r"\| (no|not tried):", listed)) >= int(said[3])
    left = re.findall(r"^\| (\w+Pipeline\w*) \|", left_out, re.M)
    assert left
    assert not {name for name, _ in rows} & set(left)


@pytest.mark.parametrize("page", sorted({*DOCS} - {"docs/concepts.md", "docs/compute.md"}))
def test_words_of_the_field_lead_to_where_they_are_explained(page):
    text = re.sub(r"^```.*?^```", "", (REPOSITORY / page).read_text(), flags=re.S | re.M)
    if re.search(r"\b(lambda|NFE|nfe|ESS|SSP)\b", text):
        assert "concepts.md" in text


def test_the_table_of_rewards_is_printed_from_the_cards():
    assert markdown_table() in (REPOSITORY / "docs" / "rewards.md").read_text()


README = (REPOSITORY / "README.md").read_text()


def rows_of(text: str, header: str) -> list[list[str]]:
    """The cells of the table whose first line begins so."""
    lines = text[text.index(header) :].split("\n\n")[0].splitlines()
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def test_readme_is_short():
    assert len(README.split()) <= 1000


def test_rewards_of_readme():
    """The usual ones of all but the bundled world's oracle, with the licences of their cards and the weights that were
    measured."""
    rows = {row[0].strip("`"): row for row in rows_of(README, "| reward | what it scores")}
    printed = {row[0].strip("`"): row for row in rows_of(markdown_table(), "| name |")}
    others = printed.keys() - {"shapes-oracle"}
    assert rows.keys() <= others
    assert f"These are {len(rows)} of [{len(others)} rewards](docs/rewards.md)" in README
    assert {name: row[3] for name, row in rows.items()} == {name: printed[name][-1] for name in rows}
    measured = json.loads((REPOSITORY / "benchmarks" / "rewards" / "results" / "rewards.json").read_text())["rewards"]
    for name in rows.keys() & measured.keys():
        assert float(rows[name][2]) == round(measured[name]["parameters"] / 1e9, 2)


def test_weights_of_readme():
    counts = json.loads((REPOSITORY / "benchmarks" / "memory" / "results" / "weights.json").read_text())
    named = {"SD v2.1": "Stable Diffusion 2.1"}
    rows = rows_of(README, "| model | steering")
    assert len(rows) == 4
    for model, _, _, weights, _ in rows:
        assert weights == f"{2 * sum(counts[named.get(model, model)].values()) / 1e9:.1f} GB"


def test_accuracies_of_readme():
    table = json.loads((REPOSITORY / "benchmarks" / "compute" / "results" / "held-out-table.json").read_text())
    of_three = json.loads((REPOSITORY / "benchmarks" / "compute" / "results" / "ensemble-table.json").read_text())
    runs = [
        table["best-of-n@200/25/ddim"], table["best-of-n@200/7/ddim"], table["fk-paper@200/7/dpmsolver++"],
        table["svdd@200/10/ddim"], table["finish@200"], of_three["finish@200"],
    ]  # fmt: skip
    rows = rows_of(README, "| | accuracy, %")
    assert [row[1].strip("*") for row in rows] == [plus_minus(run["overall"], ".1f") for run in runs]
    assert [row[2] for row in rows[:-1]] == [f"{run['reward'][0]:.3f}" for run in runs[:-1]]


def test_guides_of_the_study_of_ensembles():
    folder = REPOSITORY / "benchmarks" / "ensembles"
    table, differences = (
        json.loads((folder / "results" / f"{name}.json").read_text()) for name in ("table", "differences")
    )
    rows = rows_of((folder / "README.md").read_text(), "| guide, 240")
    page = rows_of((REPOSITORY / "docs" / "compute.md").read_text(), "| at 200 rows | accuracy, % | judge")
    assert len(rows) == len(table) == 5
    for place, (row, label) in enumerate(zip(rows, table)):
        figures = [
            plus_minus(table[label][name], digits)
            for name, digits in (("overall", ".1f"), ("held out", ".3f"), ("oracle", ".3f"))
        ]
        assert [row[1], row[3], row[4]] == page[place][1:4] == figures
        gain = differences[f"{label} less clip"]["overall"] if label != "clip" else None
        assert row[2] == ("" if gain is None else f"+{plus_minus(gain, '.1f')}")
        assert row[5:] == [f"{table[label]['reward calls'][0]:.0f}", f"{table[label]['seconds'][0]:.2f}"]
