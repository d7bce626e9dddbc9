"""Particle-parallel steering: what one process gets, with each rank doing its share.

All of it runs in three processes that are started once: two of them form a group of two while the third works alone,
then the three work together. What they find is looked at in the tests.
"""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable
from datetime import timedelta
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
import torch.distributed as dist
from diffusers import AutoencoderTiny, DPMSolverMultistepScheduler, HeunDiscreteScheduler
from PIL import Image
from typer.testing import CliRunner

from fk_steer import Execution, FKSteering, Noise, Preview, Resampling, Schedule, Stop, steer
from fk_steer.cli import app
from fk_steer.diffusion.ranks import _carrier
from fk_steer.pipelines import FKStableDiffusionPipeline
from fk_steer.rewards.composite import Cascade, Finalists, WeightedSum, ZScoreSum
from fk_steer.rewards.pairwise import PairwiseReward
from fk_steer.testing import CALLS, PROMPTS, SIZE, redness, save_clip, sd, sd_scheduler, sdxl


STEPS = 6
OUTS = ("alone", "parallel")


def brightness(images: torch.Tensor, prompts: list[str]) -> torch.Tensor:
    return 20 * images.mean((1, 2, 3))


def redder(first: torch.Tensor, second: torch.Tensor, prompts: list[str]) -> torch.Tensor:
    return torch.sigmoid(redness(first, prompts) - redness(second, prompts))


@cache
def pipeline(name: str) -> Any:
    if name == "sd multistep":
        return sd(sd_scheduler(kind=DPMSolverMultistepScheduler))
    if name == "sd two-stage":
        return sd(sd_scheduler(kind=HeunDiscreteScheduler))
    return {"sdxl euler": sdxl, **{key: make for key, (make, _) in CALLS.items()}}[name]()


class Case(NamedTuple):
    pipe: str
    steering: Callable[[], FKSteering]
    reward: Any = redness
    call: dict[str, Any] = {}
    execution: Execution | None = None

    def run(self, particle_parallel: Any = False) -> dict[str, Any]:
        """The output as plain values, and the rows and images that this process's models saw."""
        pipe, scored, rows = pipeline(self.pipe), [0], [0]
        call = {**CALLS[self.pipe.split()[0]][1], "num_inference_steps": STEPS, "output_type": "pt"}
        call |= {"prompt": PROMPTS[0], "generator": torch.Generator().manual_seed(7), **self.call}

        def count(module: Any, args: Any) -> None:
            rows[0] += len(args[0])

        first_layer = pipe.unet.conv_in if hasattr(pipe, "unet") else pipe.transformer.norm_out
        with first_layer.register_forward_pre_hook(count):
            steered = steer(pipe, counting(self.reward, scored), self.steering(), self.execution)
            output = steered(particle_parallel=particle_parallel, **call)
        return {
            "images": output.particles,
            "rewards": output.rewards,
            "log_weights": output.log_weights,
            "trace": output.trace.to_dict(),
            "rows": rows[0],
            "scored": scored[0],
        }


def counting(reward: Any, scored: list[int]) -> Any:
    """A plain reward that also counts the images; others as they are."""
    if reward is not redness:
        return reward

    def redness_counted(images: torch.Tensor, prompts: list[str]) -> torch.Tensor:
        scored[0] += len(images)
        return redness(images, prompts)

    return redness_counted


def preset(name: str, **overrides: Any) -> Callable[[], FKSteering]:
    if name != "adaptive":
        overrides = {"lmbda": 8.0, **overrides}
    return lambda: FKSteering.preset(name, **overrides)


@cache
def tiny() -> AutoencoderTiny:
    torch.manual_seed(2)
    return AutoencoderTiny(
        encoder_block_out_channels=(8, 8),
        decoder_block_out_channels=(8, 8),
        num_encoder_blocks=(1, 1),
        num_decoder_blocks=(1, 1),
    ).eval()


TWO = {"prompt": PROMPTS}
CASES = {
    **{f"sd {name}": Case("sd", preset(name), call=TWO) for name in ("adaptive", "psp", "svdd", "fk-paper", "hybrid")},
    "sdxl": Case("sdxl", preset("hybrid")),
    "budget": Case("sd", preset("adaptive", calls=40, steps=8)),
    "five particles": Case("sdxl euler", preset("adaptive", num_particles=5)),
    "one particle": Case("sd", preset("adaptive", num_particles=1), call={"guidance_scale": 1.0}),
    "a rank with none": Case(
        "sd",
        preset("psp", num_particles=5, schedule=Schedule(at=(0.25, 0.5), alive=(2, 1))),
        call={"guidance_scale": 1.0},
    ),
    "multistep": Case("sd multistep", preset("fk", num_particles=5, resampling="ssp"), call=TWO),
    "two-stage": Case("sd two-stage", preset("psp", num_particles=5)),
    "cascade": Case("sd", preset("fk", num_particles=5), Cascade(brightness, redness)),
    "finalists": Case("sd", preset("adaptive", num_particles=5), Finalists(brightness, redness, 2), TWO),
    "z-scores": Case("sd", preset("fk", num_particles=3), ZScoreSum({redness: 1.0, brightness: 0.5}), TWO),
    "pairwise": Case("sd", preset("adaptive", num_particles=5), PairwiseReward(redder)),
    "sum with pairwise": Case(
        "sd", preset("adaptive", num_particles=3), WeightedSum({PairwiseReward(redder): 1.0, redness: 0.2}), TWO
    ),
    "preview": Case(
        "sd", lambda: FKSteering(num_particles=5, preview=Preview(tiny(), 0.6))
    ),
    "blocks": Case("sd", preset("adaptive", num_particles=7), execution=Execution(3, 2, 2)),
    "early stop": Case(
        "sd", preset("fk", num_particles=3, stop=Stop(0.5, rollover=True)), call={"prompt": [*PROMPTS, *PROMPTS]}
    ),
    "noise window": Case(
        "sd", preset("adaptive", num_particles=3, schedule=(0.2, 0.4), noise=Noise(window=(0.1, 0.7)))
    ),
    "latents": Case("sdxl", preset("adaptive", num_particles=3), call={"output_type": "latent"}),
    "sd3": Case("sd3", preset("adaptive", num_particles=3)),
    "flux": Case("flux", preset("adaptive", num_particles=3)),
}  # fmt: skip
UNEQUAL: dict[str, dict[str, Any]] = {
    "prompt": {"prompt": [PROMPTS[1], PROMPTS[0]]},
    "prompt, more of them": {"prompt": [*PROMPTS, PROMPTS[0]]},
    "generator": {"generator": torch.Generator().manual_seed(8)},
    "latents": {"latents": torch.zeros(4, 4, 8, 8)},
    "num_inference_steps": {"num_inference_steps": 5},
    "callback_on_step_end": {"callback_on_step_end": lambda pipe, step, timestep, tensors: tensors},
}


def message_of(function: Callable[[], Any]) -> str:
    try:
        function()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "no error"


def call_unequal(group: Any, rank: int, name: str) -> None:
    call = {**SIZE, "prompt": PROMPTS, "generator": torch.Generator().manual_seed(7), "num_inference_steps": 3}
    overrides = UNEQUAL[name] if rank == 1 else {}
    steer(pipeline("sd"), redness, FKSteering(num_particles=2))(particle_parallel=group, **{**call, **overrides})


def call_with(group: Any, reward: Any = redness, steering: Any = None, pipe: str = "sd") -> Any:
    steered = steer(pipeline(pipe), reward, steering or FKSteering(num_particles=2))
    return steered(PROMPTS, num_inference_steps=4, output_type="pt", particle_parallel=group, **SIZE)


def nan_on_rank_1(images: torch.Tensor, prompts: list[str]) -> torch.Tensor:
    return redness(images, prompts) * (torch.nan if dist.get_rank() == 1 else 1.0)


def work(rank: int, folder: Path) -> None:
    torch.set_num_threads(1)
    # As torchrun does, for the command.
    ranks = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "3"}
    os.environ |= {**ranks, "MASTER_ADDR": "localhost", "MASTER_PORT": "29500"}
    dist.init_process_group(
        "gloo", init_method=f"file://{folder / 'store'}", rank=rank, world_size=3, timeout=timedelta(minutes=10)
    )
    pair = dist.new_group([0, 1])
    found: dict[Any, Any] = {}
    alone = rank == 2
    for name, case in CASES.items():
        found[name, 1 if alone else 2] = case.run(False if alone else pair)
    for name, case in CASES.items():
        found[name, 3] = case.run(True)

    # Without a generator, the ranks' own random states must not matter.
    torch.manual_seed(rank)
    found["no generator"] = call_with(True).particles
    if alone:
        found["outsider"] = message_of(lambda: call_with(pair))
    else:
        for name in UNEQUAL:
            found["unequal", name] = message_of(lambda name=name: call_unequal(pair, rank, name))
        other = FKSteering(num_particles=2, resampling=Resampling(ess_threshold=0.5 + 0.1 * rank))
        found["unequal", "steering"] = message_of(lambda: call_with(pair, steering=other))
        found["unequal", "scheduler"] = message_of(
            lambda: call_with(pair, pipe=("sd", "sd multistep")[rank], steering=FKSteering(seed=0))
        )
        found["failure"] = message_of(lambda: call_with(pair, nan_on_rank_1))
        found["after a failure"] = call_with(pair).particles.shape
    dist.barrier()

    result = CliRunner().invoke(app, generate(folder, "parallel", "--particle-parallel"))
    found["command"] = [result.exit_code, result.output, result.stdout]
    torch.save(found, folder / f"{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


def generate(folder: Path, out: str, *options: str) -> list[str]:
    return [
        "generate", *PROMPTS, "--model", str(folder / "sd"), "--reward-option", f"path={folder / 'clip'}",
        "--particles", "3", "--steps", "6", "--device", "cpu", "--out", str(folder / out), *options,
    ]  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    sd().save_pretrained(folder / "sd")
    save_clip(folder / "clip")
    # Forked from a process that has imported everything, once.
    multiprocessing.set_forkserver_preload(
        ["fk_steer.cli", "fk_steer.pipelines", "fk_steer.report", "fk_steer.testing"]
    )
    torch.multiprocessing.start_processes(work, (folder,), nprocs=3, start_method="forkserver")
    return folder


@pytest.fixture(scope="module")
def found(folder) -> list[dict[Any, Any]]:
    """What each of the three processes found."""
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(3)]


@pytest.mark.parametrize("size", [2, 3])
@pytest.mark.parametrize("name", CASES)
def test_equals_one_process(found, name, size):
    alone, ranks = found[2][name, 1], [found[rank][name, size] for rank in range(size)]
    for output in ranks:
        torch.testing.assert_close(output["images"], alone["images"], atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(output["rewards"], alone["rewards"], atol=1e-3, rtol=1e-4)
        torch.testing.assert_close(output["log_weights"].exp(), alone["log_weights"].exp(), atol=1e-3, rtol=0.0)
        for event, expected in zip(output["trace"]["events"], alone["trace"]["events"], strict=True):
            for exact in ("parents", "slots", "resampled", "stopped", "distinct_roots", "nfe", "reward_calls"):
                assert event[exact] == expected[exact]
        for count in ("nfe", "nfe_saved", "denoiser_calls", "reward_calls", "reward_calls_by_part", "num_steps"):
            assert output["trace"][count] == alone["trace"][count]
        assert [chosen for chosen, _ in output["trace"]["retries"]] == [p for p, _ in alone["trace"]["retries"]]
        # Among ranks nothing differs, not even in the last bit.
        assert torch.equal(output["images"], ranks[0]["images"])
        assert output["trace"] == ranks[0]["trace"]


def test_cases_are_what_they_are_named_after(found):
    """That steering happens in them at all, so that the comparison says something."""
    events = {name: found[2][name, 1]["trace"]["events"] for name in CASES}
    for name in CASES.keys() - {"one particle"}:
        moved = any(event["slots_before"] != event["parents"] for event in events[name])
        assert moved, name
    assert len(events["a rank with none"][-1]["slots"][0]) == 1
    assert found[2]["early stop", 1]["trace"]["nfe_saved"] > 0 or found[2]["early stop", 1]["trace"]["retries"]


@pytest.mark.parametrize("size", [2, 3])
@pytest.mark.parametrize("name", CASES)
def test_ranks_share_the_work(found, name, size):
    alone, ranks = found[2][name, 1], [found[rank][name, size] for rank in range(size)]
    trace = alone["trace"]
    runs = [trace, *(retry for _, retry in trace["retries"])]
    rows, calls = trace["nfe"], trace["denoiser_calls"]
    assert alone["rows"] == rows
    for output in ranks:
        # A rank's share of each call is rounded up.
        assert output["rows"] <= rows / size + calls * (1 - 1 / size)
    if CASES[name].reward is redness:
        assert sum(output["scored"] for output in ranks) == alone["scored"]
        most = max(output["scored"] for output in ranks)
        assert most <= alone["scored"] / size + sum(len(run["events"]) for run in runs)


def test_without_a_generator_all_ranks_use_the_same_noise(found):
    assert all(torch.equal(rank["no generator"], found[0]["no generator"]) for rank in found)


@pytest.mark.parametrize("name", [*UNEQUAL, "steering", "scheduler"])
def test_unequal_arguments_are_refused_on_every_rank(found, name):
    for rank in found[:2]:
        assert rank["unequal", name].startswith("ValueError: Expected all ranks of a particle-parallel call"), rank
        assert f"`{name.split(',')[0]}` on rank 1" in rank["unequal", name]


def test_a_failure_on_one_rank_reaches_all(found):
    assert "returned NaN at step" in found[1]["failure"]
    assert found[1]["failure"].startswith("RewardError")
    assert found[0]["failure"] == "RuntimeError: Rank 1 failed with " + found[1]["failure"]
    assert all(rank["after a failure"] == (2, 2, 3, 16, 16) for rank in found[:2])


def test_a_process_outside_the_group(found):
    assert "a process group that this process belongs to" in found[2]["outsider"]


def test_without_a_process_group():
    with pytest.raises(ValueError, match="none is initialised. Start the script with `torchrun"):
        call_with(True)
    pipe = FKStableDiffusionPipeline.from_pipe(sd())
    with pytest.raises(ValueError, match="none is initialised"):
        pipe(PROMPTS, reward=redness, particle_parallel=True)
    with pytest.raises(ValueError, match="`particle_parallel` needs a `reward`"):
        pipe(PROMPTS, particle_parallel=True)


@pytest.mark.parametrize(
    ("backends", "device", "carrier"),
    [
        ("cpu:gloo,cuda:gloo", "cpu", "cpu"),
        ("cpu:gloo,cuda:gloo", "cuda:1", "cpu"),
        ("cpu:gloo,cuda:nccl", "cpu", "cpu"),
        ("cpu:gloo,cuda:nccl", "cuda:1", "cuda:1"),
        ("cuda:nccl", "cuda:1", "cuda:1"),
        ("cpu:gloo,cuda:gloo", "mps", "cpu"),
    ],
)
def test_where_tensors_travel(backends, device, carrier):
    assert _carrier(backends, torch.device(device)) == torch.device(carrier)


def test_a_backend_that_does_not_fit():
    with pytest.raises(ValueError, match="The pipeline is on 'cpu', but the process group .cuda:nccl."):
        _carrier("cuda:nccl", torch.device("cpu"))


def test_command(folder, found):
    """Rank 0 writes what a single process writes; the others are silent."""
    assert [rank["command"][0] for rank in found] == [0, 0, 0], found[0]["command"][1]
    assert "best reward" in found[0]["command"][1]
    # Not stderr, which has the warnings of libraries.
    assert [rank["command"][2] for rank in found[1:]] == ["", ""]
    result = CliRunner().invoke(app, generate(folder, "alone"))
    assert result.exit_code == 0, result.output
    files = {out: sorted(path.relative_to(folder / out) for path in (folder / out).rglob("*")) for out in OUTS}
    assert files["alone"] == files["parallel"]
    for path in files["alone"]:
        if len(path.stem) == 2 and path.suffix == ".png":
            images = [np.asarray(Image.open(folder / out / path)).astype(int) for out in OUTS]
            assert abs(images[0] - images[1]).max() <= 1
    # A folder that one process has filled is complete for several, and the other way round.
    again = CliRunner().invoke(app, generate(folder, "parallel"))
    assert "best reward" not in again.output


def test_command_needs_several_processes(folder):
    result = CliRunner().invoke(app, generate(folder, "nothing", "--particle-parallel"))
    assert result.exit_code == 1
    assert "torchrun" in result.stderr
