"""Steering as blocks of Modular Diffusers: the folders that are made for the Hub, and what they do."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from functools import cache

import pytest
import torch
from conftest import REPOSITORY
from diffusers import ComponentsManager, ModularPipeline, ModularPipelineBlocks
from diffusers.modular_pipelines import ComponentSpec, StableDiffusionXLAutoBlocks

from fk_steer import Execution, FKSteering, steer
from fk_steer.modular import FKSteeringStep, RewardModel, with_steering
from fk_steer.search import DEFAULT_PRESET
from fk_steer.testing import CALLS, PROMPTS, redness
from fk_steer.testing.tiny import modular_of


STEPS = 5
FOLDERS = {"sdxl": "fk_steering_sdxl", "flux": "fk_steering_flux"}
SETTINGS = FKSteering(3, 10.0, schedule=(1, 3))
IMAGE = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(5))


@cache
def plain(name):
    return CALLS[name][0]()


def folder(name):
    return str(REPOSITORY / "modular_blocks" / FOLDERS[name])


def blocks(name):
    return ModularPipelineBlocks.from_pretrained(folder(name), trust_remote_code=True)


def steering_pipe(name, reward=redness, **options):
    pipe = modular_of(plain(name), blocks(name), **options)
    if reward is not None:
        pipe.update_components(reward=RewardModel(reward))
    return pipe


def call_of(name, **more):
    known = modular_of(plain(name)).blocks.input_names
    call = {**CALLS[name][1], "num_inference_steps": STEPS, "output_type": "pt"}
    return {key: value for key, value in call.items() if key in known} | more


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("name", FOLDERS)
class TestFolders:
    def test_give_what_steer_gives(self, name):
        call = call_of(name)
        reference = steer(modular_of(plain(name)), redness, SETTINGS)(prompt=PROMPTS, **call, generator=seeded())
        output = steering_pipe(name)(
            prompt=PROMPTS,
            **call,
            steering=SETTINGS,
            generator=seeded(),
            output=["images", "rewards", "log_weights", "trace"],
        )
        assert torch.equal(output["images"], reference.particles.flatten(0, 1))
        assert torch.equal(output["rewards"], reference.rewards)
        assert torch.equal(output["log_weights"], reference.log_weights)
        events, expected = output["trace"].events, reference.trace.events
        assert [event.parents for event in events] == [event.parents for event in expected]
        assert (output["trace"].nfe, output["trace"].prompts) == (reference.trace.nfe, PROMPTS)

    def test_images_are_the_best_first(self, name):
        output = steering_pipe(name)(
            prompt=PROMPTS[0], **call_of(name), steering=SETTINGS, generator=seeded(), output=["images", "rewards"]
        )
        torch.testing.assert_close(output["rewards"][0], redness(output["images"], []), atol=1e-4, rtol=0)
        assert output["rewards"][0].diff().le(0).all()

    def test_from_an_image(self, name):
        """Which is encoded once, by the block for that, with the call's own generator."""
        pipe, seen = steering_pipe(name), []
        handle = pipe.vae.encoder.register_forward_hook(lambda module, args, output: seen.append(len(args[0])))
        output = pipe(
            prompt=PROMPTS[0],
            **call_of(name, image=IMAGE, strength=0.8),
            steering=SETTINGS,
            generator=seeded(),
            output=["images", "rewards", "trace"],
        )
        handle.remove()
        assert seen == [1]
        assert output["images"].shape == (3, 3, 16, 16)
        assert [event.step for event in output["trace"].events] == [1, output["trace"].num_steps]
        torch.testing.assert_close(output["rewards"][0], redness(output["images"], []), atol=1e-4, rtol=0)

    def test_prompts_are_encoded_once(self, name):
        pipe, rows = steering_pipe(name), []
        handle = pipe.text_encoder.register_forward_hook(lambda module, args, output: rows.append(len(args[0])))
        pipe(prompt=PROMPTS, **call_of(name), steering=SETTINGS)
        handle.remove()
        assert rows == [2]

    def test_hold_what_saving_writes(self, name, tmp_path):
        blocks(name).save_pretrained(tmp_path)
        written, kept = (
            json.loads((path / "modular_config.json").read_text()) for path in (tmp_path, REPOSITORY / folder(name))
        )
        for config in (written, kept):
            config.pop("_diffusers_version")
        assert written == kept
        assert kept["requirements"] == {"fk-steer": ">=0.1.0"}

    def test_are_packaged_by_the_command_of_diffusers(self, name, tmp_path):
        from diffusers.commands.custom_blocks import CustomBlocksCommand

        (tmp_path / "block.py").write_text((REPOSITORY / folder(name) / "block.py").read_text())
        before = os.getcwd()
        os.chdir(tmp_path)
        try:
            CustomBlocksCommand().run()
        finally:
            os.chdir(before)
        written = json.loads((tmp_path / "modular_config.json").read_text())
        assert (
            written["auto_map"]
            == json.loads((REPOSITORY / folder(name) / "modular_config.json").read_text())["auto_map"]
        )

    def test_load_as_pipelines_that_know_where_their_components_are(self, name):
        pipe = ModularPipeline.from_pretrained(folder(name), trust_remote_code=True)
        places = {part: pipe.get_component_spec(part).pretrained_model_name_or_path for part in pipe.component_names}
        base = {"sdxl": "stabilityai/stable-diffusion-xl-base-1.0", "flux": "black-forest-labs/FLUX.1-dev"}[name]
        assert {places[part] for part in ("vae", "scheduler", "text_encoder", "text_encoder_2")} == {base}
        assert places["reward"] == "image-reward"
        assert pipe.get_component_spec("reward").type_hint is RewardModel
        assert type(pipe) is type(modular_of(plain(name)))

    def test_say_what_they_take_and_give(self, name):
        found = blocks(name)
        inputs = {entry.name: entry for entry in found.inputs if entry.name}
        assert inputs["steering"].default == DEFAULT_PRESET
        assert {"prompt", "num_particles", "lmbda", "reward_prompt", "execution", "on_event"} <= set(inputs)
        assert {"images", "rewards", "log_weights", "trace"} <= {entry.name for entry in found.outputs}
        reward = next(spec for spec in found.expected_components if spec.name == "reward")
        assert isinstance(reward, ComponentSpec)
        assert "rewards" in found.doc
        assert "num_particles" in found.doc

    def test_need_trust(self, name):
        with pytest.raises(ValueError, match="trust_remote_code=True"):
            ModularPipelineBlocks.from_pretrained(folder(name))


class TestArguments:
    def test_a_budget(self):
        pipe, call = steering_pipe("sdxl"), call_of("sdxl")
        del call["num_inference_steps"]
        own = pipe.scheduler
        state = pipe(prompt=PROMPTS, **call, steering=FKSteering.within(calls=45), generator=seeded())
        assert state.trace.chosen == {
            "steps": 10, "sampler": "dpmsolver++", "num_particles": 4, "calls": 40, "budget": 45
        }  # fmt: skip
        assert state.rewards.shape == (2, 4)
        assert pipe.scheduler is own

    def test_steps_are_the_pipelines_own_where_nothing_says_them(self):
        pipe, call = steering_pipe("sdxl"), call_of("sdxl")
        del call["num_inference_steps"]
        state = pipe(prompt=PROMPTS[0], **call, steering=FKSteering(2, schedule=()), generator=seeded())
        assert state.trace.num_steps == 50

    def run(self, pipe=None, **given):
        pipe = pipe or steering_pipe("flux")
        return pipe(**{"prompt": PROMPTS[0], **call_of("flux"), **given})

    def test_presets(self):
        state = self.run(steering="best-of-n", num_particles=2)
        assert state.images.shape[0] == 2
        assert [event.step for event in state.trace.events] == [STEPS]
        state = self.run(num_particles=2, lmbda=3.0, steering="fk")
        assert state.trace.steering["lmbda"] == 3.0

    def test_several_images_per_prompt(self):
        state = self.run(num_images_per_prompt=2, steering=SETTINGS, generator=seeded())
        assert state.rewards.shape == (2, 3)
        assert len(state.images) == 6

    def test_pictures(self):
        state = self.run(output_type="pil", steering=SETTINGS)
        assert [picture.size for picture in state.images] == [(16, 16)] * 3

    def test_text_for_the_reward(self):
        read = []

        def reward(images, prompts):
            read.extend(prompts)
            return redness(images, prompts)

        self.run(steering_pipe("flux", reward), reward_prompt="a lemon", steering=SETTINGS)
        assert set(read) == {"a lemon"}

    def test_execution_and_events(self):
        events, sizes, pipe = [], [], steering_pipe("flux")
        handle = pipe.transformer.x_embedder.register_forward_hook(
            lambda module, args, output: sizes.append(len(args[0]))
        )
        self.run(pipe, execution=Execution(denoise_batch_size=1), on_event=events.append, steering=SETTINGS)
        handle.remove()
        assert set(sizes) == {1}
        assert [event.step for event in events] == [1, 3, STEPS]

    def test_a_mask(self):
        pipe = steering_pipe("sdxl")
        mask = torch.zeros(1, 1, 16, 16)
        mask[..., 8:] = 1
        state = pipe(
            prompt=PROMPTS[0],
            **call_of("sdxl", image=IMAGE, mask_image=mask, strength=0.8),
            steering=SETTINGS,
            generator=seeded(),
        )
        kept = state.images[:, :, :, :4]
        torch.testing.assert_close(kept, kept[:1].expand_as(kept), atol=0.15, rtol=0)
        assert (state.images[0, :, :, 12:] - state.images[2, :, :, 12:]).abs().max() > 0.01

    def test_no_reward(self):
        with pytest.raises(ValueError, match=r"has no `reward`. `pipe.update_components\(reward=RewardModel"):
            self.run(steering_pipe("flux", None))

    def test_settings_of_a_preset_beside_settings(self):
        with pytest.raises(ValueError, match="`lmbda` belongs to a preset"):
            self.run(steering=SETTINGS, lmbda=2.0)

    def test_progress_bars_can_be_switched_off(self, capsys):
        pipe = steering_pipe("flux")
        self.run(pipe, steering=SETTINGS)
        assert "it/s" not in capsys.readouterr().err
        pipe.set_progress_bar_config(disable=False)
        self.run(pipe, steering=SETTINGS)
        assert f"{STEPS}/{STEPS}" in capsys.readouterr().err


class TestOwnBlocks:
    def test_any_blocks_that_denoise_and_decode(self):
        found = with_steering(StableDiffusionXLAutoBlocks())
        assert list(found.sub_blocks) == ["text_encoder", "ip_adapter", "vae_encoder", "fk_steering"]
        step = found.sub_blocks["fk_steering"]
        assert isinstance(step, FKSteeringStep)
        assert list(step.part.sub_blocks) == ["denoise", "decode"]
        pipe = modular_of(plain("sdxl"), found)
        pipe.update_components(reward=RewardModel(redness))
        output = pipe(prompt=PROMPTS[0], **call_of("sdxl"), steering=SETTINGS, generator=seeded(), output="images")
        reference = steer(modular_of(plain("sdxl")), redness, SETTINGS)(
            prompt=PROMPTS[0], **call_of("sdxl"), generator=seeded()
        )
        assert torch.equal(output, reference.particles[0])

    def test_the_step_of_a_folder_in_other_blocks(self):
        found = StableDiffusionXLAutoBlocks()
        for name in ("denoise", "decode"):
            found.sub_blocks.pop(name)
        found.sub_blocks.insert("fk_steering", blocks("sdxl").sub_blocks["fk_steering"], 3)
        pipe = modular_of(plain("sdxl"), found)
        pipe.update_components(reward=RewardModel(redness))
        assert pipe(prompt=PROMPTS[0], **call_of("sdxl"), steering=SETTINGS).rewards.shape == (1, 3)

    def test_blocks_without(self):
        found = StableDiffusionXLAutoBlocks()
        found.sub_blocks.pop("decode")
        with pytest.raises(ValueError, match="has no block `decode`. It has: text_encoder, ip_adapter"):
            with_steering(found)


class Scorer(torch.nn.Module):
    """A model that scores."""

    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Conv2d(3, 1, 16)
        torch.nn.init.normal_(self.layer.weight, std=0.3, generator=seeded())
        torch.nn.init.zeros_(self.layer.bias)

    def forward(self, images, prompts):
        return self.layer(images.to(self.layer.weight)).flatten()


class TestComponents:
    def test_the_reward_is_one_that_the_manager_knows(self):
        manager = ComponentsManager()
        pipe = steering_pipe("flux", Scorer(), components_manager=manager, collection="steering")
        assert manager.get_one(name="reward") is pipe.reward
        assert set(manager.get_components_by_names(["reward", "transformer"])) == {"reward", "transformer"}
        assert manager.get_one(name="reward").get_memory_footprint() >= 4 * 3 * 16 * 16

    def test_offloading_brings_in_the_reward_like_the_others(self, monkeypatch):
        """On a CPU every module is on "cpu" and wanted on "cpu:0", so each call asks the strategy whom to send away."""
        manager, asked = ComponentsManager(), []
        torch.manual_seed(0)
        pipe = steering_pipe("flux", Scorer(), components_manager=manager)
        call = {"prompt": PROMPTS[0], **call_of("flux"), "steering": SETTINGS, "output": ["images", "rewards"]}
        before = pipe(**call, generator=seeded())

        def strategy(hooks, model_id, model, execution_device):
            asked.append(model_id.rsplit("_", 1)[0])
            return [hook for hook in hooks if hook.model is not model]

        monkeypatch.setattr("diffusers.utils.torch_utils.TorchDeviceBackend.mem_get_info", lambda self: (1, 1))
        manager.enable_auto_cpu_offload(device="cpu", offload_strategy=strategy)
        after = pipe(**call, generator=seeded())
        assert torch.equal(before["images"], after["images"])
        assert torch.equal(before["rewards"], after["rewards"])
        assert asked.count("reward") == 3
        assert set(asked) >= {"reward", "transformer", "text_encoder", "text_encoder_2"}
        manager.disable_auto_cpu_offload()

    def test_the_pipeline_moves_the_reward(self):
        pipe = steering_pipe("flux", Scorer())
        assert pipe.reward.dtype == torch.float32
        pipe.reward.to(torch.float64)
        assert pipe.reward.parts[0].layer.weight.dtype == torch.float64
        assert pipe.reward.device == torch.device("cpu")


def test_the_package_imports_without_diffusers_until_it_is_needed():
    code = "import sys, fk_steer; assert 'diffusers' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
