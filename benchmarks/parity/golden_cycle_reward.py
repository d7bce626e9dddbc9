"""Golden scores of CycleReward's own code, `cyclereward` 0.1.7, on small random weights."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import torch
import transformers
from PIL import Image

from benchmarks.parity.shared import CASES, IMAGES, REPOSITORY, checkpoints, stand_in, write


VIT = {"img_size": 224, "patch_size": 16, "embed_dim": 48, "depth": 2, "num_heads": 4}
TEXT = {"hidden_size": 40, "intermediate_size": 72, "num_hidden_layers": 2, "num_attention_heads": 4}


def main() -> None:
    """Score the cases with the original's `score`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--source", type=Path, required=True, help="Folder that holds the package cyclereward.")
    parser.add_argument("--out", type=Path, required=True, help="Folder for the golden files.")
    options = parser.parse_args()
    stand_in("torchvision", "torchvision.transforms", "fairscale", "fairscale.nn", "fairscale.nn.checkpoint")
    stand_in("fairscale.nn.checkpoint.checkpoint_activations", "timm", "timm.models", "timm.models.hub")
    stand_in("timm.models.vision_transformer", "timm.models.layers", "timm.models.helpers")
    sys.modules["timm.models.vision_transformer"].PatchEmbed = PatchEmbed  # type: ignore[attr-defined]
    sys.modules["timm.models.layers"].DropPath = torch.nn.Identity  # type: ignore[attr-defined]
    sys.path.insert(0, str(options.source))
    import cyclereward.blip.blip_pretrain as pretrain
    import cyclereward.model as original
    from cyclereward.blip.vit import VisionTransformer
    from transformers import BertTokenizer

    torch.set_num_threads(1)
    words = REPOSITORY / "tests" / "golden" / "image_reward_a" / "vocab.txt"
    tokenizer = BertTokenizer(str(words))
    tokenizer.add_special_tokens({"bos_token": "[DEC]"})
    tokenizer.add_special_tokens({"additional_special_tokens": ["[ENC]"]})
    published = checkpoints()
    med = {**published.MED_CONFIG, **TEXT, "vocab_size": len(tokenizer), "max_position_embeddings": 128}
    med |= {"pad_token_id": 0, "type_vocab_size": 2, "add_cross_attention": True, "model_type": "bert"}
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "med_config.json").write_text(json.dumps(med, indent=1) + "\n")
    (options.out / "vit_config.json").write_text(json.dumps(VIT, indent=1) + "\n")
    # Small sizes in place of ViT-L/16's, and no weights of BLIP to begin with.
    pretrain.create_vit = lambda *_: (VisionTransformer(**VIT), VIT["embed_dim"])
    pretrain.init_tokenizer = lambda: tokenizer
    original.cyclereward_args = {"blip_path": "", "image_size": 224, "vit": "large", "mlp_dim": TEXT["hidden_size"]}
    original._transform = lambda _: None
    model = original.CycleReward(device="cpu", med_config=str(options.out / "med_config.json"))
    weights = published.random_weights(published.cycle_reward(VIT, med))
    weights["blip.text_encoder.embeddings.position_ids"] = torch.arange(128)[None]
    model.load_state_dict(weights, strict=True)
    scores = []
    for name, prompt in CASES:
        with torch.no_grad():
            score = model.eval().score(preprocessed(Image.open(IMAGES / name)), prompt)
        scores.append({"image": name, "prompt": prompt, "score": score.item()})
    packages = {"cyclereward": "0.1.7", "transformers": transformers.__version__, "torch": torch.__version__}
    write(options.out, "hjbahng/cyclereward", packages, scores)


class PatchEmbed(torch.nn.Module):
    """timm's, with the names of its weights."""

    def __init__(self, img_size: int, patch_size: int, in_chans: int, embed_dim: int) -> None:
        super().__init__()
        self.proj = torch.nn.Conv2d(in_chans, embed_dim, patch_size, patch_size)
        self.num_patches = (img_size // patch_size) ** 2

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return self.proj(pixels).flatten(2).transpose(1, 2)


def preprocessed(picture: Image.Image) -> torch.Tensor:
    """What the original's Resize, CenterCrop, conversion, ToTensor and Normalize of torchvision do with a PIL image."""
    width, height = picture.size
    scale = (224, int(224 * height / width)) if width <= height else (int(224 * width / height), 224)
    left, top = (int(round((length - 224) / 2.0)) for length in scale)
    square = picture.resize(scale, Image.Resampling.BICUBIC).crop((left, top, left + 224, top + 224)).convert("RGB")
    pixels = torch.tensor(list(square.tobytes()), dtype=torch.float32).view(224, 224, 3).permute(2, 0, 1) / 255
    mean = torch.tensor([0.48145466, 0.4578275, 0.40821073]).view(3, 1, 1)
    std = torch.tensor([0.26862954, 0.26130258, 0.27577711]).view(3, 1, 1)
    return ((pixels - mean) / std)[None]


if __name__ == "__main__":
    main()
