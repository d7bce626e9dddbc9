"""Speed and memory of rewards at full size, with random weights: nothing is downloaded."""

from __future__ import annotations

import multiprocessing
import resource
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.table import Table

from fk_steer.cli.options import Device, Repeats, one_line_errors
from fk_steer.console import console
from fk_steer.files import write_json
from fk_steer.rewards.loading import default_device
from fk_steer.testing.full_size import WordTokenizer, clip_score, randomize, vit_l_14


PROMPTS = [
    "a photo of a brown oven and a purple train",
    "a photo of three hearts",
    "an oil painting of a fox that reads a newspaper in a crowded tram at night",
    "two dogs left of a bicycle",
]


def aesthetic(device: torch.device, dtype: torch.dtype) -> Any:
    """ViT-L/14's image model and the predictor."""
    from transformers import CLIPVisionModelWithProjection

    from fk_steer.rewards.aesthetic import Aesthetic, AestheticModel
    from fk_steer.rewards.blip import Score

    vision = vit_l_14().vision_config
    model = randomize(lambda: AestheticModel(CLIPVisionModelWithProjection(vision), Score(768)), device, dtype)
    return Aesthetic.from_modules(model, device=device, dtype=dtype)


def image_reward(device: torch.device, dtype: torch.dtype) -> Any:
    """ViT-L/16 and BERT-base."""
    from fk_steer.rewards.blip import ImageRewardModel, text_config, vision_config
    from fk_steer.rewards.image_reward import ImageReward
    from fk_steer.testing.checkpoints import MED_CONFIG

    vision = vision_config({})
    text = text_config(MED_CONFIG, vision.hidden_size)
    model = randomize(lambda: ImageRewardModel(vision, text), device, dtype)
    return ImageReward.from_modules(model, WordTokenizer(30524), device=device, dtype=dtype)


def pickscore(device: torch.device, dtype: torch.dtype) -> Any:
    """ViT-H/14."""
    from fk_steer.rewards.pickscore import PickScore

    return PickScore.from_modules(_vit_h_14(device, dtype), WordTokenizer(49408), device=device, dtype=dtype)


def hps(device: torch.device, dtype: torch.dtype) -> Any:
    """ViT-H/14."""
    from fk_steer.rewards.hps import HPS

    return HPS.from_modules(_vit_h_14(device, dtype), WordTokenizer(49408), device=device, dtype=dtype)


def clip_flant5_xl(device: torch.device, dtype: torch.dtype) -> Any:
    """VQAScore's 3B."""
    from fk_steer.testing.checkpoints import FLAN_T5_XL

    return _clip_flant5(FLAN_T5_XL, device, dtype)


def clip_flant5_xxl(device: torch.device, dtype: torch.dtype) -> Any:
    """VQAScore's 11B."""
    from fk_steer.testing.checkpoints import FLAN_T5_XXL

    return _clip_flant5(FLAN_T5_XXL, device, dtype)


def qwen_vqa(size: str) -> Callable[[torch.device, torch.dtype], Any]:
    """VQAScore's Qwen2.5-VL, of '3b' or '7b' parameters."""

    def make(device: torch.device, dtype: torch.dtype) -> Any:
        from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

        from fk_steer.rewards.qwen_vqa import QwenVQA
        from fk_steer.rewards.vqa_score import VQAScore

        config = Qwen2_5_VLConfig(**QWEN2_5_VL[size])
        model = randomize(lambda: Qwen2_5_VLForConditionalGeneration(config), device, dtype)
        tokenizer = WordTokenizer(config.image_token_id, end=False)
        return VQAScore.from_modules(
            QwenVQA(model), tokenizer, variant=f"qwen2.5-vl-{size}", device=device, dtype=dtype
        )

    return make


def hpsv3(device: torch.device, dtype: torch.dtype) -> Any:
    """Qwen2-VL-7B."""
    from transformers import Qwen2VLConfig

    from fk_steer.rewards.hpsv3 import HPSv3, HPSv3Model
    from fk_steer.rewards.qwen_vl import QWEN2_VL_7B

    config = Qwen2VLConfig(**QWEN2_VL_7B)
    model = randomize(lambda: HPSv3Model(config), device, dtype)
    return _with_rubric(HPSv3, model, WordTokenizer(config.image_token_id, end=False), 376, device, dtype)


def hpsv3_plus(device: torch.device, dtype: torch.dtype) -> Any:
    """Qwen3-VL-8B."""
    from transformers import Qwen3VLConfig

    from fk_steer.rewards.hpsv3_plus import HPSv3Plus, HPSv3PlusModel
    from fk_steer.rewards.qwen_vl import QWEN3_VL_8B

    config = Qwen3VLConfig(**QWEN3_VL_8B)
    model = randomize(lambda: HPSv3PlusModel(config), device, dtype)
    return _with_rubric(HPSv3Plus, model, WordTokenizer(config.image_token_id, end=False), 207, device, dtype)


def _with_rubric(kind: Any, model: Any, words: Any, length: int, device: torch.device, dtype: torch.dtype) -> Any:
    """A reward that asks with as many words as the published rubric has."""
    from fk_steer.rewards.wording import Template

    reward = kind.from_modules(model, words, device=device, dtype=dtype)
    reward.template = Template("word " * (length - 1) + "{prompt}", "as long as the published one")
    return reward


def mps(device: torch.device, dtype: torch.dtype) -> Any:
    """ViT-H/14 and four layers of attention."""
    from fk_steer.rewards.mps import MPS, MPSModel
    from fk_steer.rewards.open_clip import VIT_H_14, clip_config

    model = randomize(lambda: MPSModel(clip_config(VIT_H_14)), device, dtype)
    return MPS.from_modules(model, WordTokenizer(49408), device=device, dtype=dtype)


def cycle_reward(device: torch.device, dtype: torch.dtype) -> Any:
    """ViT-L/16 and BERT-base."""
    from fk_steer.rewards.blip import ImageRewardModel, text_config, vision_config
    from fk_steer.rewards.cycle_reward import MED, CycleReward, Head

    vision = vision_config({})
    text = text_config(MED, vision.hidden_size)
    model = randomize(lambda: ImageRewardModel(vision, text, Head(text.hidden_size)), device, dtype)
    return CycleReward.from_modules(model, WordTokenizer(30524), device=device, dtype=dtype)


def qwen3_vqa(device: torch.device, dtype: torch.dtype) -> Any:
    """VQAScore's Qwen3-VL-8B."""
    from fk_steer.rewards.qwen_vqa import QwenVQA
    from fk_steer.rewards.vqa_score import VQAScore

    model, tokenizer = _qwen3_vl_8b(device, dtype)
    return VQAScore.from_modules(QwenVQA(model), tokenizer, variant="qwen3-vl-8b", device=device, dtype=dtype)


def quality(device: torch.device, dtype: torch.dtype) -> Any:
    """Qwen3-VL-8B."""
    from fk_steer.rewards.quality import Quality

    return Quality.from_modules(*_qwen3_vl_8b(device, dtype), device=device, dtype=dtype)


def _qwen3_vl_8b(device: torch.device, dtype: torch.dtype) -> tuple[Any, WordTokenizer]:
    from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration

    from fk_steer.rewards.qwen_vl import QWEN3_VL_8B

    config = Qwen3VLConfig(**QWEN3_VL_8B)
    model = randomize(lambda: Qwen3VLForConditionalGeneration(config), device, dtype)
    return model, WordTokenizer(config.image_token_id, end=False)


def bundled_clip(device: torch.device, dtype: torch.dtype) -> Any:
    """The bundled world's CLIP, with its trained weights."""
    from fk_steer.rewards.clip_score import CLIPScore

    return CLIPScore(path="shapes", device=device, dtype=dtype)


def llava_reward(num_crops: int) -> Callable[[torch.device, torch.dtype], Any]:
    """LLaVA-Reward on Phi-3.5-vision, looking at so many crops."""

    def make(device: torch.device, dtype: torch.dtype) -> Any:
        from fk_steer.rewards.llava_reward import LLaVAReward
        from llava_reward_guide import random_reward

        model = random_reward("phi3_v", "full", device=device, dtype=dtype, batch_size=16)
        return LLaVAReward(model, num_crops=num_crops)

    return make


_QWEN_VISION = {"depth": 32, "hidden_size": 1280, "intermediate_size": 3420, "num_heads": 16}
_QWEN_ROPE = {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24]}
QWEN2_5_VL: dict[str, dict[str, Any]] = {
    "3b": {
        "text_config": {
            "hidden_size": 2048,
            "intermediate_size": 11008,
            "num_hidden_layers": 36,
            "num_attention_heads": 16,
            "num_key_value_heads": 2,
            "vocab_size": 151936,
            "rope_parameters": _QWEN_ROPE,
        },
        "vision_config": {**_QWEN_VISION, "out_hidden_size": 2048},
        "tie_word_embeddings": True,
    },
    "7b": {
        "text_config": {
            "hidden_size": 3584,
            "intermediate_size": 18944,
            "num_hidden_layers": 28,
            "num_attention_heads": 28,
            "num_key_value_heads": 4,
            "vocab_size": 152064,
            "rope_parameters": _QWEN_ROPE,
        },
        "vision_config": {**_QWEN_VISION, "out_hidden_size": 3584},
    },
}
"""Sizes in config.json of Qwen/Qwen2.5-VL-3B-Instruct and -7B-Instruct."""

FULL_SIZE: dict[str, Callable[[torch.device, torch.dtype], Any]] = {
    "shapes": bundled_clip,
    "clip-score": clip_score,
    "aesthetic": aesthetic,
    "image-reward": image_reward,
    "pickscore": pickscore,
    "hps": hps,
    "mps": mps,
    "cycle-reward": cycle_reward,
    "hpsv3": hpsv3,
    "hpsv3-plus": hpsv3_plus,
    "quality": quality,
    "vqa-score:qwen3-vl-8b": qwen3_vqa,
    "vqa-score:clip-flant5-xl": clip_flant5_xl,
    "vqa-score:clip-flant5-xxl": clip_flant5_xxl,
    **{f"vqa-score:qwen2.5-vl-{size}": qwen_vqa(size) for size in QWEN2_5_VL},
    **{f"llava-reward:{num_crops}-crops": llava_reward(num_crops) for num_crops in (16, 9, 4, 1)},
}
"""Name -> function of device and dtype that makes the reward. A new reward needs one entry."""

SMALL = ["shapes", "clip-score", "aesthetic", "image-reward"]
"""Those that a laptop takes: less than 2 GB in float32."""


def measure(name: str, device: str, dtype: str, batch_size: int, size: int, repeats: int) -> dict[str, float]:
    """Images per second of one reward, a batch at once and one by one, taken in turn, and memory.

    Prompts have been seen before, as at all steering events but the first. Meant to be the only call in its process:
    a CPU's peak is that of the process.

    Returns:
        'batched' and 'one by one': images per second, the median over repeats; 'ratio' of the two, the median over
        repeats; 'parameters'; 'peak memory' in bytes: allocated on a CUDA device, else of the process beyond what it
        took before the reward was made; for LLaVA-Reward 'TFLOP per image'.
    """
    target = torch.device(device)
    before = _peak(target)
    reward = FULL_SIZE[name](target, getattr(torch, dtype))
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(batch_size, 3, size, size, generator=generator).to(target)
    prompts = (PROMPTS * batch_size)[:batch_size]

    def batched() -> None:
        reward(images, prompts)

    def one_by_one() -> None:
        for index in range(batch_size):
            reward(images[index : index + 1], prompts[index : index + 1])

    seconds: dict[str, list[float]] = {"batched": [], "one by one": []}
    for repeat in range(repeats + 1):
        for way, run in (("batched", batched), ("one by one", one_by_one)):
            _synchronize(target)
            start = time.perf_counter()
            run()
            _synchronize(target)
            # The first round warms up.
            if repeat:
                seconds[way].append(time.perf_counter() - start)
    ratios = [slow / fast for slow, fast in zip(seconds["one by one"], seconds["batched"])]
    counted = {"TFLOP per image": _tflop(reward, size)} if name.startswith("llava-reward") else {}
    return {
        **counted,
        **{way: batch_size / statistics.median(some) for way, some in seconds.items()},
        "ratio": statistics.median(ratios),
        "parameters": sum(parameter.numel() for parameter in reward.model.parameters()),
        "peak memory": _peak(target) - before,
    }


def _tflop(reward: Any, size: int) -> float:
    from llava_reward_guide.cost import flops_per_image

    return flops_per_image(reward.model.backbone, reward.model.config, size, size, reward.num_crops) / 1e12


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _peak(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _vit_h_14(device: torch.device, dtype: torch.dtype) -> Any:
    from transformers import CLIPModel

    from fk_steer.rewards.open_clip import VIT_H_14, clip_config

    return randomize(lambda: CLIPModel(clip_config(VIT_H_14)), device, dtype)


def _clip_flant5(config: dict[str, Any], device: torch.device, dtype: torch.dtype) -> Any:
    from fk_steer.rewards.clip_flant5 import ClipFlanT5
    from fk_steer.rewards.vqa_score import VQAScore

    model = randomize(lambda: ClipFlanT5(config), device, dtype)
    return VQAScore.from_modules(model, WordTokenizer(32128), device=device, dtype=dtype)


app = typer.Typer(add_completion=False, pretty_exceptions_show_locals=False)


@app.command()
def main(
    out: Annotated[Path, typer.Option(help="Write the table to this folder.")],
    reward: Annotated[
        list[str] | None,
        typer.Option(
            help="Measure these rewards, NAME or NAME:VARIANT as in the table.",
            show_default="all; on a CPU the small ones",
        ),
    ] = None,
    batch_size: Annotated[
        int | None, typer.Option(min=1, help="Score this many images at a time.", show_default="16; on a CPU 4")
    ] = None,
    size: Annotated[int, typer.Option(min=1, help="Score images of this height and width in pixels.")] = 512,
    repeats: Repeats = 3,
    dtype: Annotated[
        str | None, typer.Option(help="Compute in this precision.", show_default="float16; on a CPU float32")
    ] = None,
    device: Device = None,
) -> None:
    """Measure images per second and peak memory of rewards at full size with random weights."""

    with one_line_errors():
        target = default_device(device)
        on_cpu = target.type == "cpu"
        names: list[str] = []
        for wanted in reward or (SMALL if on_cpu else FULL_SIZE):
            found = [name for name in FULL_SIZE if wanted in (name, name.split(":")[0])]
            if not found:
                raise ValueError(f"Unknown reward {wanted!r}. Known: {', '.join(FULL_SIZE)}.")
            names += found
        settings: dict[str, Any] = {
            "device": str(target),
            "dtype": dtype or ("float32" if on_cpu else "float16"),
            "batch_size": batch_size or (4 if on_cpu else 16),
            "size": size,
            "repeats": repeats,
        }
        measured = {}
        table = Table(
            "reward", "parameters", "batched /s", "one by one /s", "ratio", "peak memory", "TFLOP each", box=None
        )
        for name in names:
            # A process each, for memory to be its own.
            with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
                row = pool.submit(measure, name, **settings).result()
            measured[name] = row
            write_json(out / "rewards.json", {"settings": settings, "rewards": measured})
            table.add_row(
                name,
                f"{row['parameters'] / 1e6:.0f}M",
                f"{row['batched']:.3g}",
                f"{row['one by one']:.3g}",
                f"{row['ratio']:.2f}",
                f"{row['peak memory'] / 2**30:.2f} GiB",
                f"{row['TFLOP per image']:.1f}" if "TFLOP per image" in row else "",
            )
        console.print(table)


if __name__ == "__main__":
    app()
