"""Family trees: what they say of hand-made traces, and how pages with them behave in a browser."""

from __future__ import annotations

import base64
import dataclasses
import io
import json
import math
import re
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from browser import CHROMIUM, Browser
from PIL import Image

from fk_steer import FKSteering, Trace, preset, steer
from fk_steer.diffusion.recorder import thumbnails
from fk_steer.report.drawing import tree_html, tree_script, tree_style
from fk_steer.report.layout import lay_out
from fk_steer.report.page import html_report, preset_of
from fk_steer.report.results import Picture, Result
from fk_steer.report.table import rows_of
from fk_steer.report.thumbnails import BYTES
from fk_steer.report.trace import TraceEvent
from fk_steer.report.tree import Fate, family_tree
from fk_steer.search import PRESETS, Stop
from fk_steer.testing import PROMPTS, SIZE, redness, sd


def event(step, rewards, before=None, slots=None, parents=None, parent_events=None, **options):
    """An event of one population, at which everyone goes on as they are unless said otherwise."""
    before = list(range(len(rewards))) if before is None else before
    slots = before if slots is None else slots
    parents = slots if parents is None else parents
    values = {
        "step": step,
        "progress": 0.5,
        "timestep": float(100 - step),
        "lmbda": [2.0],
        "rewards": [rewards],
        "scores": {"reward": [rewards]},
        "log_weights": [[-math.log(len(rewards))] * len(rewards)],
        "ess": [float(len(rewards))],
        "resampled": [parents != before],
        "slots_before": [before],
        "slots": [slots],
        "parents": [parents],
        "parent_events": [parent_events],
        "distinct_roots": [1],
        "resume": None,
        "stopped": [False],
        "nfe": 10,
        "reward_calls": 4,
    }
    return TraceEvent(**{**values, **options})


def trace_of(*events, num_steps=10, **options):
    """A trace in which particles come from the event itself unless an event says otherwise."""
    events = [
        dataclasses.replace(one, parent_events=[one.parent_events[0] or [number] * len(one.slots[0])])
        for number, one in enumerate(events)
    ]
    return Trace(["a <b>prompt</b>"], "redness", {"num_particles": 2}, num_steps=num_steps, events=events, **options)


def final(step, rewards, **options):
    return event(step, rewards, timestep=None, progress=1.0, **options)


def resampled():
    """Slot 1 dies at once and slot 0 goes on in both; then slot 1 wins."""
    return trace_of(
        event(3, [0.5, 0.1], parents=[0, 0], slots=[0, 1]), final(10, [0.6, 0.9]), returned=[[[0, 1], [0, 0]]]
    )


def fates(tree):
    return [node.fate.value for node in tree.nodes]


class TestTrees:
    def test_lines_from_parent_to_child(self):
        tree = family_tree(resampled())
        assert [(node.column, node.slot, node.parent, node.children) for node in tree.nodes] == [
            (0, 0, None, 2), (0, 1, None, 0), (1, 0, 0, 0), (1, 1, 0, 0)
        ]  # fmt: skip
        assert fates(tree) == ["winner", "pruned", "alive", "winner"]
        assert (tree.winner, tree.lineage(tree.winner), tree.finished) == (3, [3, 0], True)
        assert [node.rank for node in tree.nodes] == [1, 2, 2, 1]
        assert [node.weight for node in tree.nodes] == pytest.approx([0.5] * 4)
        first, last = tree.columns
        assert (first.best, first.mean, first.resampled, first.final, last.final) == (0.5, 0.3, True, False, True)

    def test_pruning_leaves_fewer_particles(self):
        trace = trace_of(
            event(2, [0.1, 0.4, 0.2, 0.3], slots=[1, 3]),
            event(5, [0.4, 0.3], before=[1, 3], slots=[1]),
            final(10, [0.5], before=[1], slots=[1]),
            returned=[[[0, 1]]],
        )
        tree = family_tree(trace)
        assert [column.size for column in tree.columns] == [4, 2, 1]
        assert fates(tree) == ["pruned", "winner", "pruned", "pruned", "winner", "pruned", "winner"]
        assert tree.lineage(6) == [6, 4, 1]

    def test_a_search_that_goes_back_continues_what_it_saw_before(self):
        trace = trace_of(
            event(6, [0.5, 0.2], resume=3),
            event(6, [0.1, 0.3], resume=None, parents=[0, 1], parent_events=[0, 1]),
            final(10, [0.6, 0.4]),
        )
        tree = family_tree(trace)
        assert [node.parent for node in tree.nodes] == [None, None, 0, 1, 0, 3]
        assert fates(tree) == ["winner", "alive", "pruned", "alive", "winner", "alive"]
        assert [column.resume for column in tree.columns] == [3, None, None]
        drawn = tree_html(trace)
        assert "↩ to 3" in drawn
        # From the first event to the last, past the second in the lane between the rows.
        layout = lay_out(tree, pictures=False)
        past = layout.places[0].y + layout.lane / 2
        (path,) = re.findall(r'data-n="4" d="([^"]+)"', drawn)
        assert f"{past:.0f}H" in path

    def test_passes_stand_side_by_side_and_the_best_of_all_wins(self):
        first = trace_of(event(3, [0.9, 0.1]), final(10, [0.6, 0.5]), num_steps=10)
        second = trace_of(final(4, [0.2, 0.8, 0.3]), num_steps=4)
        nested = trace_of(final(4, [0.7]), num_steps=4)
        second.retries = [([0], nested)]
        first.retries = [([0], second)]
        first.returned = [[[1, 1], [2, 0]]]
        tree = family_tree(first)
        assert [column.run for column in tree.columns] == [0, 0, 1, 2]
        assert tree.num_runs == 3
        assert tree.nodes[tree.winner].reward == 0.8
        assert first.rewards == [[0.8, 0.7]]
        assert fates(tree) == ["alive", "alive", "alive", "alive", "alive", "winner", "alive", "alive"]
        assert [node.parent for node in tree.nodes] == [None, None, 0, 1, None, None, None, None]
        assert "pass 3" in tree_html(first)

    def test_a_pass_over_some_populations_belongs_to_those(self):
        trace = steer(sd(), redness, preset("adaptive", num_particles=3))(PROMPTS, num_inference_steps=6, **SIZE).trace
        one = trace.of(1)
        trace.retries = [([1], one)]
        assert [len(trace.passes(population)) for population in (0, 1)] == [1, 2]
        assert family_tree(trace, 0).num_runs == 1
        assert family_tree(trace, 1).num_runs == 2
        assert family_tree(trace.of(1)) == family_tree(trace, 1)
        with pytest.raises(IndexError, match="no population 2"):
            family_tree(trace, 2)

    def test_a_population_that_stops_goes_on_as_one(self):
        settings = FKSteering(num_particles=4, stop=Stop(target_reward=-100.0), seed=0)
        output = steer(sd(), redness, settings)(PROMPTS, num_inference_steps=8, **SIZE)
        tree = family_tree(output.trace, 1)
        assert [column.size for column in tree.columns] == [4, *[1] * (len(tree.columns) - 1)]
        assert [node.weight for node in tree.nodes[4:]] == pytest.approx([1.0] * (len(tree.columns) - 1))
        assert all(column.ess == 1.0 for column in tree.columns[1:])
        assert tree.nodes[tree.winner].column == len(tree.columns) - 1
        drawn = tree_html(output.trace, 1)
        assert drawn.count("✓ target") == 1
        rows = [row for row in rows_of(output.trace) if row["population"] == 1]
        assert len(rows) == len(tree.nodes)

    def test_pictures_that_cannot_be_read_are_left_out(self):
        good = thumbnails(16)(torch.rand(1, 3, 16, 16))[0]
        trace = trace_of(final(3, [0.1, 0.2], predictions=[[good, "data:image/png;base64,AAAA"]]))
        drawn = tree_html(trace)
        assert drawn.count("<image") == 1 and drawn.count('class="fk-node') == 2

    def test_a_record_that_names_nobody_is_no_trace(self):
        plain = resampled().to_dict()
        for returned in ([[[0, 5]]], [[[3, 0]]], [[[0]]], [[1]], [[], []], [[["a", "b"]]]):
            with pytest.raises(ValueError, match="`returned`"):
                Trace.from_dict({**plain, "returned": returned})
        for pictures in ([["x", "y"]], [["data:image/png;base64,"]], [[1, 2]], [["javascript:1", "data:image/png,"]]):
            events = [{**plain["events"][0], "predictions": pictures}, plain["events"][1]]
            with pytest.raises(ValueError, match="picture"):
                Trace.from_dict({**plain, "events": events})

    def test_a_run_under_way_has_a_leader(self):
        whole = resampled()
        trace = dataclasses.replace(whole, events=whole.events[:1], returned=[])
        tree = family_tree(trace)
        assert (tree.winner, tree.finished) == (0, False)
        assert "in the lead" in tree_html(trace)
        empty = dataclasses.replace(whole, events=[], returned=[])
        assert family_tree(empty).winner is None
        assert "no scoring events yet" in tree_html(empty)
        with pytest.raises(ValueError, match="no events"):
            empty.save_html("nowhere.html")

    def test_infinite_and_missing_rewards(self):
        trace = trace_of(event(3, [-math.inf, math.nan, 0.5]), final(10, [math.nan, -math.inf, math.nan]))
        tree = family_tree(trace)
        assert tree.nodes[tree.winner].slot == 1
        assert [column.best for column in tree.columns] == [0.5, None]
        assert [node.rank for node in tree.nodes[:3]] == [2, 3, 1]
        drawn = tree_html(trace)
        assert "reward -∞" in drawn and "reward NaN" in drawn

    def test_particles_without_weights_have_no_effective_sample_size(self):
        trace = trace_of(
            event(3, [0.5, 0.1], ess=[1.5]),
            event(5, [0.5, 0.1], ess=[math.nan], lmbda=[math.nan]),
            final(10, [0.6, 0.9]),
        )
        tree = family_tree(trace)
        assert [column.ess for column in tree.columns] == [1.5, None, 2.0]
        assert [column.lmbda for column in tree.columns] == [2.0, None, 2.0]
        assert [node.weight is None for node in tree.nodes] == [False, False, True, True, False, False]
        drawn = tree_html(trace)
        assert drawn.count(">none</text>") == 2
        none = trace_of(event(5, [0.5, 0.1], ess=[math.nan], lmbda=[math.nan]), final(10, [0.6, 0.9], ess=[math.nan]))
        assert "no effective sample size" in tree_html(none)

    @pytest.mark.parametrize("name", PRESETS)
    def test_every_search_has_a_tree_whose_winner_is_the_image_returned(self, name):
        steering = preset(name, seed=0)
        if getattr(steering, "lmbda", 1.0) is None:
            steering = steering.replace(lmbda=5.0)
        pipe = sd()
        call = {"generator": torch.Generator().manual_seed(0), "num_inference_steps": 6, "output_type": "pt", **SIZE}
        output = steer(pipe, redness, steering)(PROMPTS, keep_predictions=True, **call)
        trace = output.trace
        torch.testing.assert_close(torch.tensor(trace.rewards), output.rewards, atol=1e-6, rtol=1e-6, check_dtype=False)
        for population in range(2):
            tree = family_tree(trace, population)
            assert tree.nodes[tree.winner].reward == pytest.approx(output.rewards[population, 0].item(), abs=1e-6)
            picture = Image.open(io.BytesIO(decoded(tree.nodes[tree.winner].picture)))
            shown = torch.from_numpy(np.array(picture.convert("RGB"))).float() / 255
            assert (shown.mean((0, 1)) - output.images[population].mean((1, 2))).abs().max() < 0.03
            assert len(tree.columns) == sum(len(one.events) for one, _ in trace.passes(population))
            lineage = tree.lineage(tree.winner)
            assert all(tree.nodes[index].fate is Fate.WINNER for index in lineage)
            # Parents were seen before, in the same pass.
            for node in tree.nodes:
                if node.parent is not None:
                    parent = tree.nodes[node.parent]
                    assert parent.column < node.column
                    assert tree.columns[parent.column].run == tree.columns[node.column].run
            layout = lay_out(tree, pictures=True)
            for place in layout.places:
                assert place.x - place.width / 2 > 0 and place.x + place.width / 2 < layout.width
                assert layout.body[0] <= place.y - place.height / 2 and place.y + place.height / 2 <= layout.body[1]
            boxes = sorted({(place.x, place.y) for place in layout.places})
            assert len(boxes) == len(layout.places)
            assert tree_html(trace, population).count('class="fk-node') == len(tree.nodes)


def decoded(url):
    return base64.b64decode(url.split(",")[1])


class TestLiveTraces:
    def test_events_show_the_trace_up_to_them(self):
        seen = []
        output = steer(sd(), redness, preset("fk", lmbda=5.0))(
            PROMPTS,
            num_inference_steps=8,
            on_event=lambda event: seen.append(event.trace),
            keep_predictions=True,
            **SIZE,
        )
        whole = output.trace
        assert [len(trace.events) for trace in seen] == list(range(1, len(whole.events) + 1))
        for number, trace in enumerate(seen, 1):
            assert trace.events == whole.events[:number]
            assert trace.returned == []
            drawn = tree_html(trace, 1)
            assert drawn.count('class="fk-col') == number
            assert "<image" in drawn

    @pytest.mark.parametrize("name", ["allocation", "screen"])
    def test_events_of_later_passes_show_those_before(self, name):
        seen = []
        settings = preset(name, num_particles=3, keep=2) if name == "screen" else preset(name, num_particles=3)
        output = steer(sd(), redness, settings)(
            PROMPTS, num_inference_steps=6, on_event=lambda event: seen.append((event.nfe, event.trace)), **SIZE
        )
        sizes = [sum(len(family_tree(trace, p).nodes) for p in range(2)) for _, trace in seen]
        assert sizes == sorted(sizes) and len(set(sizes)) == len(sizes)
        last = seen[-1][1]
        assert [family_tree(last, p).nodes for p in range(2)] != [[], []]
        for p in range(2):
            whole, before = family_tree(output.trace, p), family_tree(last, p)
            assert [(n.column, n.slot, n.reward, n.parent) for n in whole.nodes] == [
                (n.column, n.slot, n.reward, n.parent) for n in before.nodes
            ]
        assert last.nfe == output.trace.nfe
        assert max(nfe for nfe, _ in seen) < output.trace.nfe


SMALL = Picture(Image.new("RGB", (8, 8)), 0.5, file="000/00.png")


class TestFragments:
    def test_prompts_and_names_are_escaped(self):
        trace = resampled()
        page = html_report([Result("<script>x</script>", [SMALL], [], trace)], settings())
        assert "<script>x" not in page
        scores = {"<i>part</i>": [[0.5, 0.1]], "b": [[1.0, 2.0]]}
        trace.events[0] = dataclasses.replace(trace.events[0], scores=scores)
        assert "&lt;i&gt;part&lt;/i&gt; 0.500, b 1.000" in tree_html(trace)

    def test_themes_controls_and_style(self):
        trace = resampled()
        plain = tree_html(trace)
        assert plain.startswith("<style>") and 'type="range"' in plain and "light-dark(" in plain
        bare = tree_html(trace, theme="dark", controls=False, style=False)
        assert "<style>" not in bare and 'type="range"' not in bare
        assert bare.lstrip().startswith('<figure class="fk-tree fk-dark"')
        with pytest.raises(ValueError, match="auto, light, dark"):
            tree_html(trace, theme="blue")
        assert "<script" not in plain
        assert "addEventListener" in tree_script()
        assert ".fk-tree" in tree_style()

    def test_text_alternatives(self):
        drawn = tree_html(resampled())
        titles = re.findall(r'class="fk-node[^>]*role="img"><title>([^<]+)</title>', drawn)
        assert titles == [
            "Step 3 of 10, particle 0; reward 0.500 (1 of 2); weight 50%; goes on as 2 particles; "
            "ancestor of the best one",
            "Step 3 of 10, particle 1; reward 0.100 (2 of 2); weight 50%; pruned",
            "Final image, particle 0; reward 0.600 (2 of 2); weight 50%",
            "Final image, particle 1; reward 0.900 (1 of 2); weight 50%; continues particle 0; the best one",
        ]
        summary = (
            "2 particles over 2 events. The best one, with reward 0.900, descends from particle 0 by way of 1. "
            "1 of 4 predictions have no descendants at the end."
        )
        assert f'aria-label="Family tree. {summary}"' in drawn
        assert f">{summary}</span>" in drawn

    @pytest.mark.parametrize(("particles", "events"), [(8, 7), (48, 16), (100, 8)])
    def test_large_trees_stay_small(self, particles, events):
        torch.manual_seed(0)
        # Harder to compress than any real prediction.
        noise = torch.nn.functional.interpolate(torch.rand(particles, 3, 24, 24), size=(128, 128), mode="bilinear")
        pictures = thumbnails(128)(noise)
        every = [event(step, torch.rand(particles).tolist(), predictions=[pictures]) for step in range(events - 1)]
        trace = trace_of(*every, final(events, torch.rand(particles).tolist(), predictions=[pictures]))
        drawn = tree_html(trace)
        assert len(drawn) < BYTES + 20_000 + 500 * particles * events
        found = re.findall(r'"(data:image/webp;base64,[^"]+)"', drawn)
        sizes = [Image.open(io.BytesIO(decoded(url))).size for url in set(found)]
        assert max(sizes) == (128, 128), "the winner's lineage is as sharp as it was kept"
        assert sum(map(len, set(found))) <= BYTES + 128 * 200

    def test_videos_are_still_pictures(self):
        videos = torch.zeros(2, 5, 3, 16, 32)
        videos[:, 2, 0] = 1.0
        trace = trace_of(final(3, [0.1, 0.2], predictions=[thumbnails(32)(videos)]))
        urls = re.findall(r'href="(data:image/webp;base64,[^"]+)"', tree_html(trace))
        assert len(urls) == 2
        for url in urls:
            image = Image.open(io.BytesIO(decoded(url)))
            assert getattr(image, "n_frames", 1) == 1
            red, green, _ = image.convert("RGB").getpixel((16, 8))
            assert red > 230 and green < 40
        place = lay_out(family_tree(trace), True, 2.0).places[0]
        assert place.width == pytest.approx(2 * place.height)


def settings(**options):
    return {"model": "m", "reward": "r", "steps": 10, "guidance": 3.0, "seed": 0,
            "steering": FKSteering().to_dict(), "prompts": ["p"], "compare": False, **options}  # fmt: skip


class TestHeadings:
    @pytest.mark.parametrize("name", PRESETS)
    def test_a_preset_is_known_by_its_settings(self, name):
        for own in (preset(name), preset(name, num_particles=16, seed=3)):
            for plain in (own.to_dict(), own.describe(), json.loads(json.dumps(own.to_dict()))):
                assert preset_of(plain) == (name, [])

    def test_what_differs_from_the_preset_is_told(self):
        changed = FKSteering.preset("fk", resampling="multinomial").to_dict()
        name, changes = preset_of(changed)
        assert name == "fk"
        assert any("multinomial" in change for change in changes)
        assert preset_of({"strategy": "MyOwn", "every": 2}) == ("", [])

    def test_facts_of_a_run(self):
        trace = resampled()
        trace.scheduler, trace.seconds = (
            "DDIMScheduler",
            dict(denoiser=60.0, decode=5.0, reward=20.0, rest=5.0, total=90.0),
        )
        page = html_report([Result("p", [SMALL], [], trace)], settings())
        found = dict(re.findall(r"<div><dt>([^<]+)</dt><dd>([^<]+?) ?<", page))
        assert found["preset"] == "adaptive"
        assert found["lambda"] == "2"
        assert found["scheduler"] == "DDIMScheduler"
        assert found["time"] == "1 min 30 s"
        assert "denoiser 67%" in page
        assert "Effective sample size: how many" in page and "Number of function evaluations" in page

    def test_pictures_are_small_and_lead_to_the_whole_ones(self):
        big = Image.effect_noise((1024, 1024), 80).convert("RGB")
        pictures = [Picture(big, 0.5, file="000/00.png")] * 8
        page = html_report([Result("p", pictures, [], resampled())], settings())
        assert page.count('<a href="000/00.png"') == 8
        assert len(page) < 8 * 90_000
        url = re.search(r'<img src="(data:image/webp;base64,[^"]+)"', page)[1]
        assert Image.open(io.BytesIO(decoded(url))).width == 300


class TestTheDocs:
    """What the page about family trees shows runs."""

    def blocks(self):
        return re.findall(
            r"```python\n(.*?)```", (Path(__file__).parent.parent / "docs/family-tree.md").read_text(), re.S
        )

    def test_pages_and_fragments(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        save, _, live = self.blocks()
        names = {}
        exec(save, names)
        page = (tmp_path / "tree.html").read_text()
        assert page.count("<image href=") == sum(len(event.rewards[0]) for event in names["out"].trace.events)
        assert len(page) < 100_000
        assert Image.open(tmp_path / "tree.png").width > 500
        assert names["out"].best is names["out"].images[0]
        exec(live, names)
        assert [fragment.count('class="fk-col') for fragment in names["fragments"]] == list(
            range(1, len(names["out"].trace.events) + 1)
        )
        assert names["page"].startswith("<script>")

    def test_tables(self):
        pytest.importorskip("pandas")
        exec(self.blocks()[1], {"out": SimpleNamespace(trace=resampled())})


# In a browser


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    if CHROMIUM is None:
        pytest.skip("needs Chromium")
    folder = tmp_path_factory.mktemp("trees")
    call = {"generator": torch.Generator().manual_seed(0), "num_inference_steps": 10, **SIZE}
    output = steer(sd(), redness, FKSteering(num_particles=6, seed=0))(PROMPTS, keep_predictions=True, **call)
    output.trace.save_html(folder / "tree.html")
    with Browser(folder / "tree.html", tmp_path_factory.mktemp("profile")) as opened:
        yield opened, output.trace


FIRST = "document.querySelector('.fk-tree')"


def slide(browser, to):
    browser.evaluate(
        f"(s => {{ s.value = {to}; s.dispatchEvent(new Event('input', {{bubbles: true}})); }})"
        f"({FIRST}.querySelector('.fk-slider'))"
    )


def nodes_with(browser, name):
    return browser.evaluate(
        f"[...{FIRST}.querySelectorAll('.fk-node')].flatMap((e, i) => e.classList.contains('fk-{name}') ? [i] : [])"
    )


def told(browser):
    return browser.evaluate(f"{FIRST}.querySelector('.fk-told').textContent")


class TestInABrowser:
    def test_opens_without_a_word_or_a_request(self, page):
        browser, trace = page
        assert browser.texts("h1") == ["Steered by redness"]
        assert browser.texts("h2")[:2] == PROMPTS
        shown = browser.evaluate(
            "[...document.querySelectorAll('.fk-tree image')].map(e => e.getBoundingClientRect().width)"
        )
        assert len(shown) == 2 * sum(len(event.rewards[0]) for event in trace.events)
        assert min(shown) > 40
        assert browser.problems == []
        assert browser.requests == []

    @pytest.mark.parametrize("scheme", ["light", "dark"])
    @pytest.mark.parametrize("width", [390, 1280])
    def test_nothing_hangs_over_the_edge(self, page, width, scheme):
        browser, _ = page
        browser.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=844, deviceScaleFactor=1, mobile=width < 500
        )
        browser.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        browser.evaluate("document.querySelectorAll('details').forEach(e => e.open = true)")
        assert browser.evaluate("document.documentElement.scrollWidth") <= width
        assert browser.evaluate(
            "[...document.querySelectorAll('.fk-scroll')].every(e => e.getBoundingClientRect().right <= innerWidth)"
        )
        scrolls = browser.evaluate(f"(e => e.scrollWidth > e.clientWidth)({FIRST}.querySelector('.fk-scroll'))")
        assert scrolls == (width == 390)
        # Text stands out from what is behind it.
        light = browser.evaluate(
            "[document.body, ...document.querySelectorAll('.fk-scroll, .fk-detail')].map(e =>"
            "getComputedStyle(e).backgroundColor.match(/[0-9]+/g).slice(0, 3).reduce((a, b) => a + +b, 0))"
        )
        ink = browser.evaluate(
            "[document.body, ...document.querySelectorAll('.fk-tree, .fk-event, .fk-told')].map(e =>"
            "getComputedStyle(e).color.match(/[0-9]+/g).slice(0, 3).reduce((a, b) => a + +b, 0))"
        )
        assert all(value > 690 for value in light) if scheme == "light" else all(value < 150 for value in light)
        assert all(value < 340 for value in ink) if scheme == "light" else all(value > 440 for value in ink)

    def test_the_slider_shows_the_tree_as_it_was(self, page):
        browser, trace = page
        tree = family_tree(trace)
        last = len(tree.columns) - 1
        for at in (0, 2, last):
            slide(browser, at)
            until = dataclasses.replace(
                trace, events=trace.events[: at + 1], returned=trace.returned if at == last else []
            )
            then = family_tree(until)
            later = [index for index, node in enumerate(tree.nodes) if node.column > at]
            assert nodes_with(browser, "later") == later
            for fate in Fate:
                expected = [index for index, node in enumerate(then.nodes) if node.fate is fate]
                assert [i for i in nodes_with(browser, fate.value) if i not in later] == expected
            (text,) = browser.texts(".fk-tree:first-of-type .fk-event")[:1]
            assert text.startswith(f"event {at + 1} of {last + 1}: ")
            assert f"best reward {tree.columns[at].best:.3f}" in text
            assert browser.evaluate(f"{FIRST}.querySelector('.fk-slider').getAttribute('aria-valuetext')") == text

    def test_hover_shows_the_reward(self, page):
        browser, trace = page
        for number in (1, 8):
            place = browser.evaluate(
                f"(e => {{ e.scrollIntoView({{block: 'center', inline: 'center', behavior: 'instant'}});"
                "const b = e.getBoundingClientRect(); return [b.x + b.width / 2, b.y + b.height / 2]; })"
                f"({FIRST}.querySelectorAll('.fk-node')[{number}].querySelector('rect'))"
            )
            browser.call("Input.dispatchMouseEvent", type="mouseMoved", x=place[0], y=place[1])
            node = family_tree(trace).nodes[number]
            assert f"reward {node.reward:.3f} ({node.rank} of 6)" in told(browser)
            title = browser.evaluate(f"{FIRST}.querySelectorAll('.fk-node title')[{number}].textContent")
            assert f"reward {node.reward:.3f}" in title
            source = browser.evaluate(f"{FIRST}.querySelector('.fk-detail img').src")
            assert source == browser.evaluate(
                f"{FIRST}.querySelectorAll('.fk-node image')[{number}].getAttribute('href')"
            )

    def test_keys_walk_along_the_lineage(self, page):
        browser, trace = page
        tree = family_tree(trace)
        slide(browser, len(tree.columns) - 1)
        browser.evaluate(f"{FIRST}.querySelector('.fk-node[tabindex=\"0\"]').focus()")

        def focused():
            return browser.evaluate(f"[...{FIRST}.querySelectorAll('.fk-node')].indexOf(document.activeElement)")

        def press(key):
            browser.call("Input.dispatchKeyEvent", type="keyDown", key=key, code=key)
            return focused()

        lineage = tree.lineage(tree.winner)
        assert focused() == tree.winner
        assert [press("ArrowLeft") for _ in lineage[1:]] == lineage[1:]
        assert press("ArrowLeft") == lineage[-1], "there is nothing before the first event"
        assert press("ArrowRight") == lineage[-2]
        assert press("End") == tree.winner
        below = press("ArrowDown")
        assert below == (tree.winner + 1 if tree.winner + 1 < len(tree.nodes) else tree.winner)
        assert f"particle {tree.nodes[below].slot}" in told(browser)
        assert browser.evaluate(f"{FIRST}.querySelectorAll('.fk-node[tabindex=\"0\"]').length") == 1

    def test_play_goes_through_all_events(self, page):
        browser, trace = page
        browser.evaluate(f"{FIRST}.querySelector('.fk-play').click()")
        assert browser.evaluate(f"{FIRST}.querySelector('.fk-slider').value") == "0"
        assert browser.evaluate(f"{FIRST}.querySelector('.fk-play').getAttribute('aria-label')") == "Pause"
        deadline = time.monotonic() + 15
        while browser.evaluate(f"{FIRST}.querySelector('.fk-play').getAttribute('aria-label')") == "Pause":
            assert time.monotonic() < deadline
            time.sleep(0.1)
        assert browser.evaluate(f"{FIRST}.querySelector('.fk-slider').value") == str(len(trace.events) - 1)
        assert browser.problems == []

    def test_trees_that_are_put_in_later_work_too(self, page):
        browser, trace = page
        fragment = tree_html(trace, 1, theme="light")
        browser.evaluate(
            "(() => { const e = document.createElement('div'); e.id = 'late';"
            f"e.innerHTML = {json.dumps(fragment)}; document.body.append(e); }})()"
        )
        browser.evaluate(
            "(s => { s.value = 0; s.dispatchEvent(new Event('input', {bubbles: true})); })"
            "(document.querySelector('#late .fk-slider'))"
        )
        assert browser.texts("#late .fk-event")[0].startswith("event 1 of ")
        browser.evaluate("document.querySelector('#late').remove()")
        assert browser.problems == []
