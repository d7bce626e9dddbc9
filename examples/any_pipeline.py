"""A pipeline that you have already, steered without a subclass: `steer(pipe, reward)` is called as the pipeline is.

python examples/any_pipeline.py
python examples/any_pipeline.py --model black-forest-labs/FLUX.1-dev --guidance 3.5
python examples/any_pipeline.py --tour             # modular Flux, Qwen-Image, SD3 image-to-image, inpainting
"""

import argparse
from pathlib import Path

import torch
from diffusers import DiffusionPipeline

from fk_steer import FKSteering, load_reward, steer
from fk_steer.bundled import BUNDLED, bundled_options, resolve
from fk_steer.options import Help
from fk_steer.search import DEFAULT_PRESET
from fk_steer.shapes import shared_components


parser = argparse.ArgumentParser(description=__doc__, formatter_class=Help)
parser.add_argument("--model", default="shapes", help="Steer this text-to-image pipeline, a hub id or folder.")
parser.add_argument("--reward", default="clip-score", help="Steer by this reward; `fk-steer rewards` lists them.")
parser.add_argument("--preset", default=DEFAULT_PRESET, help="Steer by these settings; `fk-steer presets` lists them.")
parser.add_argument("--prompt", default="a photo of a red star and a blue circle", help="Say what to generate.")
parser.add_argument("--guidance", type=float, default=3.0, help="Use this scale of classifier-free guidance.")
parser.add_argument("--steps", type=int, default=25, help="Take this many denoising steps.")
parser.add_argument("--tour", action="store_true", help="Steer tiny pipelines of other families, with random weights.")
parser.add_argument("--out", type=Path, default=Path("out/examples/any_pipeline"), help="Write images to this folder.")
options = parser.parse_args()


def save(name, output):
    """The images of all particles, best first."""
    options.out.mkdir(parents=True, exist_ok=True)
    for rank, image in enumerate(output.particles[0]):
        image.save(options.out / f"{name}{rank}.png")
    print(f"{name}best of {len(output.particles[0])}: {output.rewards[0, 0].item():.3f}; see {options.out}")


# Any pipeline of Diffusers' own, loaded in any way, with its LoRAs, offloading or compiled denoiser.
components = shared_components(options.model) if options.model in BUNDLED else {}
pipe = DiffusionPipeline.from_pretrained(resolve(options.model), **components)
pipe = pipe.to("cuda" if torch.cuda.is_available() else "cpu")

reward = load_reward(options.reward, **bundled_options(options.model, options.reward))
steered = steer(pipe, reward, options.preset)


def watch(event):
    """Called after every scoring event; `event.stop()` would end the run with the predictions of this step."""
    best = event.rewards.max().item()
    print(f"step {event.step}: best reward {best:.3f}, ancestors {event.ancestors[0].tolist()}")


output = steered(
    options.prompt,
    num_inference_steps=options.steps,
    guidance_scale=options.guidance,
    generator=torch.Generator().manual_seed(0),
    on_event=watch,
)
save("", output)


def redness(images, prompts):
    """A reward of one's own: mean red minus mean blue."""
    return (images[:, 0] - images[:, 2]).mean((1, 2))


def tour():
    """The same for pipelines of other families. They draw noise here, to be run as they stand; yours, loaded with
    `from_pretrained`, are steered by the same lines."""
    from fk_steer.testing import tiny

    settings = FKSteering(num_particles=3, lmbda=50.0, schedule=(0.5,))
    call = {"num_inference_steps": 4, "height": 16, "width": 16}

    # A modular pipeline: the blocks of Flux.
    modular = tiny.modular_flux()
    steered = steer(modular, redness, settings)
    save("modular-flux-", steered(prompt="a red circle", **call, max_sequence_length=16))

    # Qwen-Image, with true classifier-free guidance.
    qwen = tiny.qwen_image()
    steered = steer(qwen, redness, settings)
    save(
        "qwen-image-", steered("a red circle", negative_prompt=" ", true_cfg_scale=3.0, **call, max_sequence_length=16)
    )

    # Stable Diffusion 3, starting from an image.
    img2img = tiny.sd3_img2img()
    steered = steer(img2img, redness, settings)
    save("sd3-img2img-", steered("a red circle", image=tiny.photograph(16), strength=0.75, num_inference_steps=4))

    # Inpainting of a part, cut out around the mask and put back; the reward sees the whole image.
    inpaint = tiny.sd_inpaint()
    steered = steer(inpaint, redness, settings)
    pictures = {"image": tiny.photograph(48), "mask_image": tiny.hole(48), "padding_mask_crop": 4}
    save("inpainting-", steered("a red circle", **pictures, **call))


if options.tour:
    tour()
