"""Golden rewards of DiNa-LRM's own code, HKUST-C4G/diffusion-rm, on small random weights."""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import patch

import torch
import torch._dynamo  # which asks whether there is scikit-learn, and must not meet the stand-in
from safetensors.torch import save_file

from benchmarks.parity.shared import checkpoints, stand_in, write


def main() -> None:
    """Rewards of clean latents at several levels of noise, of several levels together, and of noisy latents."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--source", type=Path, required=True, help="Folder that holds the package diffusion_rm.")
    parser.add_argument("--out", type=Path, required=True, help="Folder for the golden file.")
    options = parser.parse_args()
    stand_in("sklearn", "omegaconf")
    sys.path.insert(0, str(options.source))
    import diffusers
    import peft
    from diffusers import FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel
    from diffusion_rm.infer import inference

    torch.set_num_threads(1)
    published = checkpoints()
    sizes = (published.TINY_DINA_LRM, published.TINY_SD3)
    transformer = SD3Transformer2DModel(**published.TINY_SD3)
    transformer.load_state_dict(published.sd3_weights(published.TINY_SD3), strict=True)
    encoders = {f"text_encoder{end}": torch.nn.Identity() for end in ("", "_2", "_3")}
    tokenizers = {f"tokenizer{end}": None for end in ("", "_2", "_3")}
    pipe = SimpleNamespace(
        transformer=transformer.eval(), scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0), **encoders, **tokenizers
    )
    with tempfile.TemporaryDirectory() as folder:
        lora = Path(folder) / "backbone_lora"
        lora.mkdir()
        (lora / "adapter_config.json").write_text(json.dumps(published.adapter_config(published.TINY_DINA_LRM)))
        save_file(published.random_weights(published.dina_lora(*sizes)), lora / "adapter_model.safetensors")
        torch.save(published.random_weights(published.dina_head(*sizes)), Path(folder) / "rm_head.pt")
        with patch.object(inference, "load_config", lambda path: attributes(published.TINY_DINA_LRM)):
            original = inference.DRMInferencer(
                pipe, "", folder, load_from_disk=True, device="cpu", model_dtype=torch.float32
            )
    inputs = published.dina_inputs()
    texts = {"encoder_hidden_states": inputs["words"], "pooled_projections": inputs["pooled"]}
    noise, latents, found = inputs["noise"], inputs["latents"], {}
    with torch.no_grad(), patch.object(torch, "randn_like", lambda like: noise.expand_as(like)):
        for level in (0.1, 0.4, 0.9):
            found[f"clean at {level}"] = original.reward(texts, latents, u=level)
        original.model.backbone.set_adapter("rm_lora")
        asked = torch.tensor([0.2, 0.5, 0.7])
        sigmas, steps = original.get_timesteps_from_sigma(original.noise_scheduler, asked, n_dim=1)
        found["clean at 0.2, 0.5, 0.7"] = original.model.forward_ensemble(
            latents=[(1 - sigma) * latents + sigma * noise for sigma in sigmas],
            ensemble_timesteps=[step.expand(len(latents)) for step in steps],
            **texts,
        )
        found["noisy at 0.65"] = original.model(latents=latents, timesteps=torch.full((len(latents),), 650.0), **texts)
    scores = [{"what": name, "rewards": ((raw[:, 0] + 10) / 10).tolist()} for name, raw in found.items()]
    options.out.mkdir(parents=True, exist_ok=True)
    packages = {"diffusers": diffusers.__version__, "peft": peft.__version__, "torch": torch.__version__}
    write(options.out, "HKUST-C4G/diffusion-rm", packages, scores)


class attributes(dict):
    """A configuration as OmegaConf has it: entries are attributes, too, and what is missing is not."""

    def __getattr__(self, name: str) -> object:
        if name not in self:
            raise AttributeError(name)
        value = self[name]
        return attributes(value) if isinstance(value, dict) else value


if __name__ == "__main__":
    main()
