"""Golden scores of MPS' own code (Kwai-Kolors/MPS, its `infer_one_sample`) on small random weights."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import torch
import transformers

from benchmarks.parity.shared import CASES, checkpoints, image, stand_in, write


CONFIG: dict[str, Any] = {
    "embed_dim": 32,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 32, "head_width": 8, "patch_size": 8},
    "text_cfg": {"context_length": 77, "width": 32, "heads": 4, "layers": 2},
}
HEADS = 2


def main() -> None:
    """Score the cases one by one, as the published evaluation does."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--source", type=Path, required=True, help="Folder of the repository Kwai-Kolors/MPS.")
    parser.add_argument("--words", type=Path, required=True, help="Folder with CLIP's vocab.json and merges.txt.")
    parser.add_argument("--out", type=Path, required=True, help="Folder for the golden files.")
    options = parser.parse_args()
    stand_in("fire", "cv2", "matplotlib", "matplotlib.pyplot")
    sys.path.insert(0, str(options.source))
    import eval_overall_mps_on_hpdv2 as original
    from trainer.models.clip_model import CLIPModel, XCLIPModel
    from trainer.models.cross_modeling import Cross_model
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPTokenizer

    torch.set_num_threads(1)
    # Half precision is for CUDA devices: the golden scores are of float32.
    torch.Tensor.half = torch.Tensor.float  # type: ignore[method-assign]
    tokenizer = CLIPTokenizer.from_pretrained(options.words, model_max_length=77, pad_token="<|endoftext|>")
    vision, text = CONFIG["vision_cfg"], CONFIG["text_cfg"]
    shared = {"hidden_act": "gelu", "layer_norm_eps": 1e-5, "projection_dim": CONFIG["embed_dim"]}
    config = CLIPConfig(
        vision_config={**shared, "hidden_size": 32, "intermediate_size": 128, "num_hidden_layers": vision["layers"],
                       "num_attention_heads": 4, "image_size": 32, "patch_size": 8},
        text_config={**shared, "hidden_size": 32, "intermediate_size": 128, "num_hidden_layers": text["layers"],
                     "num_attention_heads": 4, "max_position_embeddings": 77, "vocab_size": 49408,
                     "eos_token_id": 2},
        projection_dim=CONFIG["embed_dim"],
    )  # fmt: skip
    model = CLIPModel.__new__(CLIPModel)
    torch.nn.Module.__init__(model)
    model.model, model.cross_model = XCLIPModel(config), Cross_model(dim=32, layer_num=4, heads=HEADS)
    published = checkpoints()
    sizes = {**CONFIG, "text_cfg": {**text, "vocab_size": 49408}}
    weights = published.random_weights(published.mps(sizes, HEADS))
    # Constants, which the published file holds as they are.
    powers = 1.0 / (10000 ** (torch.arange(0, 64, 2).float() / 64))
    constants = {name: powers for name in weights if name.endswith("inv_freq")}
    weights = {name.removeprefix("mps."): value for name, value in {**weights, **constants}.items()}
    model.load_state_dict(weights, strict=True)
    side = {"height": 32, "width": 32}
    processor = CLIPImageProcessor(size={"shortest_edge": 32}, crop_size=side)
    scores = []
    for name, prompt in CASES:
        score = original.infer_one_sample(image(name), prompt, model.eval(), processor, tokenizer, "cpu")
        scores.append({"image": name, "prompt": prompt, "score": score.item()})
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "open_clip_config.json").write_text(json.dumps(sizes, indent=1) + "\n")
    packages = {"transformers": transformers.__version__, "torch": torch.__version__}
    write(options.out, "Kwai-Kolors/MPS be9027f", packages, scores, heads=HEADS)


if __name__ == "__main__":
    main()
