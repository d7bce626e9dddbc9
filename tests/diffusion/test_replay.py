"""A pipeline's call run again: what it makes of x0, where it has the rows, and what it leaves as it was."""

from __future__ import annotations

import functools
import io
import logging

import pytest
import torch
from diffusers import (
    DPMSolverMultistepScheduler,
    FluxControlNetModel,
    FluxControlNetPipeline,
    StableDiffusion3Img2ImgPipeline,
)

from benchmarks.pipelines.cases import modular_case, plain_case, recorded_steps
from benchmarks.pipelines.checks import TOLERANCE, Copying, Watching, generators, in_slots, reward, steered
from fk_steer import Execution, Noise, steer
from fk_steer.diffusion.blocks import loops_of
from fk_steer.diffusion.components import is_modular, makes_videos
from fk_steer.diffusion.inputs import Way
from fk_steer.diffusion.layout import Block, Entries
from fk_steer.diffusion.outputs import as_tensor
from fk_steer.diffusion.replay import Replay, step_output
from fk_steer.testing import PROMPTS, flux, quiet, sd3
from fk_steer.testing.tiny import FAMILIES, picture
from fk_steer.testing.tiny.videos import wan_vae


STEPS = 3
WATCHING = Watching(3, noise=Noise(0.0))


def flux_controlnet():
    """Its images have the size of the control image, whatever size is asked for."""
    pipe = flux()
    config = {name: value for name, value in pipe.transformer.config.items() if not name.startswith("_")}
    controlnet = FluxControlNetModel(**{name: config[name] for name in config if name not in ("out_channels",)})
    return quiet(FluxControlNetPipeline(**pipe.components, controlnet=controlnet))


PLAIN = (
    "sd", "sdxl", "sd3", "flux", "modular-sdxl", "sd3-img2img", "pixart", "z-image", "hidream", "omnigen",
    "hunyuan-video",
)  # fmt: skip
"""Families that do nothing with their last latents but what others do, too."""
CASES = {
    **{name: FAMILIES[name] for name in FAMILIES if name not in PLAIN},
    "size of the call": (
        lambda: quiet(StableDiffusion3Img2ImgPipeline(**sd3().components)),
        {"image": picture(24), "strength": 1.0, "height": 16, "width": 24, "guidance_scale": 5.0},
    ),
    "size of the control image": (
        flux_controlnet,
        {"control_image": picture(32), "height": 16, "width": 16, "max_sequence_length": 16},
    ),
}


def case_of(family, prompts=PROMPTS, **more):
    make, call = CASES.get(family) or FAMILIES[family]
    pipe = make()
    reward.takes_videos = makes_videos(pipe)
    arguments = {"prompt": list(prompts), "num_inference_steps": STEPS, **call, **more}
    if "negative_prompt" in arguments:
        arguments["negative_prompt"] = [arguments["negative_prompt"]] * len(prompts)
    return (modular_case if is_modular(pipe) else plain_case)(pipe, arguments)


@pytest.fixture
def replays(monkeypatch):
    """All replays that are made."""
    made = []
    inner = Replay.__init__

    @functools.wraps(inner)
    def init(self, *args, **kwargs):
        inner(self, *args, **kwargs)
        made.append(self)

    monkeypatch.setattr(Replay, "__init__", init)
    return made


def first_event(replays, look, found):
    def on_event(event):
        if not found and not event.final:
            found.append(look(replays[-1]))

    return on_event


@pytest.mark.parametrize("family", CASES)
def test_images_are_what_the_pipeline_makes_of_its_last_latents(family, replays):
    case, rows = case_of(family), generators(0, 1)
    with recorded_steps(case) as steps:
        images = in_slots(steered(case, WATCHING, rows)).flatten(0, 1)
    last, which, found = steps[-1].previous, torch.tensor([4, 0, 5]), []
    assert len(last) == 6
    on_event = first_event(replays, lambda replay: replay.images(last[which], which), found)
    again = in_slots(steered(case, WATCHING, generators(0, 1), on_event=on_event)).flatten(0, 1)
    torch.testing.assert_close(found[0], images[which], atol=2e-3, rtol=0.0)
    assert torch.equal(again, images)
    assert (images[4] - images[0]).abs().max() > 0.05


def test_an_image_that_every_row_draws_is_the_same_for_copies():
    """And for what is seen of them before the end."""
    make, _ = FAMILIES["sd-inpaint"]
    mask = torch.zeros(1, 1, 16, 16)
    mask[..., 4:12] = 1
    call = {"image": picture(16), "mask_image": mask, "height": 16, "width": 16, "num_inference_steps": STEPS}
    case, seen = plain_case(make(), {"prompt": list(PROMPTS), "strength": 1.0, **call}), []
    reward.takes_videos = False

    def on_event(event):
        if not event.final:
            seen.append(event.predictions())

    watched = in_slots(steered(case, WATCHING, generators(0, 1), on_event=on_event))
    torch.testing.assert_close(seen[-1], watched, atol=TOLERANCE, rtol=0.0)
    copied = in_slots(steered(case, Copying(3, noise=Noise(0.0)), generators(0, 1)))
    torch.testing.assert_close(copied, copied[:, :1].expand_as(copied), atol=1e-4, rtol=0.0)
    assert (watched - watched[:, :1]).abs().max() > 0.05


class TestAnotherAutoencoder:
    def other(self):
        torch.manual_seed(7)
        return wan_vae().eval()

    def at_first_event(self, case, replays, look):
        found = []
        steered(case, WATCHING, generators(0, 1), on_event=first_event(replays, look, found))
        return found[0]

    def test_decodes_in_place_of_the_pipelines_own(self, replays):
        case, other = case_of("wan"), self.other()
        own = case.pipe.vae

        def look(replay):
            x0, rows = torch.randn(2, 4, 2, 2, 2), torch.tensor([1, 3])
            images = replay.images(x0, rows, vae=other)
            assert case.pipe.vae is own
            case.pipe.vae = other
            try:
                return images, replay.images(x0, rows)
            finally:
                case.pipe.vae = own

        images, expected = self.at_first_event(case, replays, look)
        assert torch.equal(images, expected)

    def test_is_taken_away_after_an_error(self, replays, monkeypatch):
        case, other = case_of("wan"), self.other()
        own, scheduler = case.pipe.vae, case.pipe.scheduler

        def fails(*args, **kwargs):
            raise RuntimeError("out of memory")

        monkeypatch.setattr(other, "decode", fails)

        def look(replay):
            before = scheduler.step_index
            with pytest.raises(RuntimeError, match="out of memory"):
                replay.images(torch.randn(1, 4, 2, 2, 2), torch.tensor([0]), vae=other)
            assert case.pipe.vae is own
            assert not replay.active
            return before, scheduler.step_index

        before, after = self.at_first_event(case, replays, look)
        assert before == after == 0


def test_particles_of_a_pipeline_that_repeats_prompts_itself_are_decoded_prompt_by_prompt(replays, monkeypatch):
    """What a pipeline is asked for one prompt after another comes back in the order of the rows."""
    case = case_of("qwen-image")
    found, num_images = [], []

    def look(replay):
        which = torch.tensor([4, 0, 5, 1])
        x0 = torch.randn(4, 16, 16)
        expected = replay.images(x0, which)
        replay.way = Way("nothing")
        with monkeypatch.context() as patch:
            stock = type(case.pipe).__call__

            @functools.wraps(stock)
            def call(self, *args, **kwargs):
                num_images.append((kwargs["prompt"], kwargs["num_images_per_prompt"]))
                return stock(self, *args, **kwargs)

            patch.setattr(type(case.pipe), "__call__", call)
            images = replay.images(x0, which)
        replay.way = Way("texts")
        return images, expected

    steered(case, WATCHING, generators(0, 1), on_event=first_event(replays, look, found))
    torch.testing.assert_close(*found[0], atol=1e-5, rtol=0.0)
    assert num_images == [([PROMPTS[1]], 2), ([PROMPTS[0]], 2)]


class TestLayouts:
    """Of the arguments of denoisers, one row at a time."""

    @pytest.fixture
    def layouts(self, monkeypatch):
        found = []
        inner = Replay.layout

        def layout(self, name, arguments, copies):
            found.append((name, copies, inner(self, name, arguments, copies)))
            return found[-1][-1]

        monkeypatch.setattr(Replay, "layout", layout)
        return found

    def of(self, family, layouts, prompts=PROMPTS, **more):
        case = case_of(family, prompts, **more)
        steered(case, WATCHING, generators(*range(len(prompts))), execution=Execution(1))
        return layouts

    @pytest.mark.parametrize("prompts", [PROMPTS, PROMPTS[:1]], ids=["two", "one"])
    def test_rows_in_another_dimension(self, layouts, prompts):
        ((name, copies, layout),) = self.of("hidream", layouts, prompts)
        assert (name, copies) == ("transformer", 2)
        assert layout["encoder_hidden_states_llama3"] == Block(1)
        assert layout["encoder_hidden_states_t5"] == layout["pooled_embeds"] == layout["timesteps"] == Block()

    def test_lists_with_an_entry_for_each_row(self, layouts):
        ((_, copies, layout),) = self.of("z-image", layouts)
        assert copies == 2
        assert layout["x"] == layout["cap_feats"] == Entries()
        assert layout["t"] == Block()

    def test_several_entries_for_each_row(self, layouts):
        (*_, (name, copies, layout)) = self.of("animatediff", layouts)
        assert (name, copies) == ("unet", 2)
        assert layout["sample"] == Block()
        assert layout["encoder_hidden_states"] == Block(0, 2)
        assert layout["timestep"] is None

    def test_what_has_no_rows_though_it_has_their_number(self, layouts):
        """As many rows as the text has tokens, and position ids for each token."""
        (*_, (_, _, layout)) = self.of("kandinsky5", layouts, PROMPTS[:1] * 6)
        assert layout["hidden_states"] == layout["encoder_hidden_states"] == Block()
        assert layout["text_rope_pos"] is None
        assert layout["visual_rope_pos"] == {0: None, 1: None, 2: None}


class TestStateIsPutBack:
    def test_of_the_scheduler_and_the_pipeline(self, replays):
        """A solver with a memory goes on as if nothing had been."""
        case = case_of("pixart", PROMPTS[:1], num_inference_steps=5)
        config = {"algorithm_type": "dpmsolver++", "solver_order": 2}
        case.pipe.scheduler = DPMSolverMultistepScheduler.from_config(case.pipe.scheduler.config, **config)
        expected = case.stock(generators(0)[0])
        states = []

        def on_event(event):
            if event.final:
                return
            owners = (case.pipe, case.pipe.scheduler)
            before = [dict(vars(owner)) for owner in owners]
            lists = [list(value) for owner in before for value in owner.values() if isinstance(value, list)]
            event.predictions()
            states.append(case.pipe.scheduler.step_index)
            for owner, state in zip(owners, before):
                assert vars(owner).keys() == state.keys()
                for name, value in state.items():
                    assert vars(owner)[name] is value or isinstance(value, list), name
            now = [value for owner in owners for value in vars(owner).values() if isinstance(value, list)]
            assert len(now) == len(lists)
            for found, kept in zip(now, lists):
                assert [id(one) for one in found] == [id(one) for one in kept]

        images = in_slots(steered(case, WATCHING, generators(0), on_event=on_event))
        assert states == [0, 1, 2, 3, 4]
        torch.testing.assert_close(images[0, :1], expected, atol=1e-5, rtol=0.0)

    def test_of_the_guider_of_a_modular_pipeline(self, replays):
        case = case_of("modular-sdxl", PROMPTS[:1])
        guider, states = case.pipe.guider, []

        def on_event(event):
            if not event.final:
                before = {name: value for name, value in vars(guider).items() if not isinstance(value, dict)}
                event.predictions()
                states.append(guider._step)
                assert {name: value for name, value in vars(guider).items() if not isinstance(value, dict)} == before

        steered(case, WATCHING, generators(0), on_event=on_event)
        assert states == [0, 1, 2]
        assert case.pipe.guider is guider

    def test_generators_are_those_of_the_loop(self, replays):
        case, rows = case_of("wan", PROMPTS[:1]), generators(0)

        def on_event(event):
            if not event.final:
                before = [one.get_state() for one in rows]
                event.predictions()
                assert all(torch.equal(one.get_state(), state) for one, state in zip(rows, before))

        steered(case, WATCHING, rows, on_event=on_event)
        states = [one.get_state() for one in rows]
        rows = generators(0)
        steered(case, Copying(3, noise=Noise(0.0)), rows)
        assert all(torch.equal(one.get_state(), state) for one, state in zip(rows, states))


class TestCosts:
    @pytest.fixture
    def counted(self):
        """Counts the rows of a module's calls."""

        def counted(module):
            rows = []
            module.register_forward_pre_hook(
                lambda module, args, kwargs: rows.append(len(next(iter([*args, *kwargs.values()])))), with_kwargs=True
            )
            return rows

        return counted

    @pytest.mark.parametrize("steps", [2, 5])
    def test_prompts_are_encoded_once_and_once_for_one_row(self, counted, steps):
        case = case_of("wan", num_inference_steps=steps)
        rows = counted(case.pipe.text_encoder)
        steered(case, WATCHING, generators(0, 1))
        # Beside each prompt the negative one.
        assert rows == [2, 2, 1, 1]

    def test_denoisers_are_run_in_the_loop_alone(self, counted):
        case = case_of("qwen-image")
        rows = counted(case.pipe.transformer.img_in)
        output = steered(case, WATCHING, generators(0, 1))
        assert rows == [6, 6] * STEPS
        assert output.trace.nfe == sum(rows)

    @pytest.mark.parametrize("family", ["modular-flux", "wan"])
    def test_one_bar_and_no_messages(self, family, caplog, monkeypatch):
        case, shown = case_of(family, PROMPTS[:1]), io.StringIO()
        for owner in loops_of(case.pipe) or [case.pipe]:
            owner.set_progress_bar_config(file=shown)
        logger = logging.getLogger("diffusers")
        monkeypatch.setattr(logger, "propagate", True)
        with caplog.at_level(logging.WARNING, "diffusers"):
            steered(case, WATCHING, generators(0))
        assert shown.getvalue().count(f"0/{STEPS} ") == 1
        assert [record.message for record in caplog.records if record.levelno >= logging.ERROR] == []
        for owner in loops_of(case.pipe) or [case.pipe]:
            assert owner._progress_bar_config == {"file": shown}


class TestTensorsOfPipelinesWithoutAutoencoder:
    """DeepFloyd's are in [-1, 1], in which its next stage takes them."""

    def run(self, pipe, output_type, scored):
        def redness(images, prompts):
            scored.append(images)
            return images[:, 0].mean((1, 2))

        call = {"num_inference_steps": 2, "output_type": output_type, **FAMILIES["deepfloyd-if"][1]}
        steered = steer(pipe, redness, WATCHING)
        return steered(PROMPTS[0], generator=generators(0), **call), call

    def test_are_those_of_the_stock_call(self):
        pipe, scored = FAMILIES["deepfloyd-if"][0](), []
        tensors, call = self.run(pipe, "pt", scored)
        arrays, _ = self.run(pipe, "np", [])
        best = tensors.trace.events[-1].rewards[0].index(tensors.rewards.max().item())
        stock = pipe(PROMPTS[0], generator=generators(0)[best], **call).images
        assert stock.min() < -0.5
        torch.testing.assert_close(tensors.images, stock, atol=1e-5, rtol=0.0)
        torch.testing.assert_close(tensors.rewards, arrays.rewards)
        assert all(images.min() >= 0 and images.max() <= 1 for images in scored)

    def test_of_which_nothing_is_known_are_refused(self):
        pipe = FAMILIES["deepfloyd-if"][0]()
        stock = type(pipe).__call__

        class Eightfold(type(pipe)):
            @functools.wraps(stock)
            def __call__(self, *args, **kwargs):
                images, *others = stock(self, *args, **kwargs)
                return (8 * images if kwargs["output_type"] == "pt" else images, *others)

        pipe.__class__ = Eightfold
        with pytest.raises(ValueError, match="tensors that Eightfold returns.*Ask for `output_type='np'`"):
            self.run(pipe, "pt", [])


def test_pipelines_that_take_one_row_are_told_from_wrong_arguments():
    case = case_of("wan", PROMPTS[:1])
    stock = type(case.pipe).__call__

    class OneRow(type(case.pipe)):
        @functools.wraps(stock)
        def __call__(self, *args, **kwargs):
            if isinstance(kwargs["prompt"], list) and len(kwargs["prompt"]) > 1:
                raise NotImplementedError("one at a time")
            return stock(self, *args, **{**kwargs, "num_videos_per_prompt": 1})

    with pytest.raises(ValueError, match="`height` and `width` have to be divisible by 16"):
        steered(case, WATCHING, generators(0), {**case.arguments, "height": 17})
    case.pipe.__class__ = OneRow
    with pytest.raises(ValueError, match="OneRow cannot be given a row for each of 3 particles.*one at a time"):
        steered(case, WATCHING, generators(0))


def test_what_steps_return_has_the_words_of_all_schedulers():
    sample = torch.zeros(2, 3)
    assert step_output(sample, {"return_dict": False}) == (sample, sample)
    output = step_output(sample, {})
    assert output.prev_sample is output.pred_original_sample is output.denoised is output[0] is sample


def test_videos_have_their_frames_before_their_channels():
    """Whichever of the two the pipeline has first, in tensors, arrays and lists of pictures."""
    frames = torch.rand(2, 5, 3, 4, 4)
    for given in (frames, frames.transpose(1, 2), frames.movedim(2, -1).numpy(), [list(video) for video in frames]):
        assert torch.equal(as_tensor(given, videos=True), frames)
    assert torch.equal(as_tensor(frames[0], videos=True), frames[:1])
    with pytest.raises(ValueError, match=r"Expected the pipeline to give videos \(B, F, 3, H, W\)"):
        as_tensor(frames[0, 0], videos=True)
