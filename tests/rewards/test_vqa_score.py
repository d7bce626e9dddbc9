from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoProcessor, CLIPVisionConfig, CLIPVisionModel, Qwen2VLImageProcessorPil

from fk_steer import load_reward
from fk_steer.rewards import RewardLoadError
from fk_steer.rewards.clip_flant5 import AFTER_IMAGE, BEFORE_IMAGE, _square
from fk_steer.rewards.images import CLIP_MEAN, CLIP_STD
from fk_steer.rewards.loading import read_sharded
from fk_steer.rewards.qwen_vl import smart_size
from fk_steer.testing.rewards import save_clip_flant5, save_llava, save_qwen, save_qwen3


PROMPT = "a red circle"


def picture(height: int = 60, width: int = 90) -> Image.Image:
    noise = np.random.default_rng(0).integers(0, 256, (height, width, 3)).astype(np.uint8)
    return Image.fromarray(noise)


@pytest.fixture(scope="module")
def t5_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("t5")
    save_clip_flant5(folder)
    return folder


@pytest.fixture(scope="module")
def t5_reward(t5_folder):
    return load_reward("vqa-score", path=str(t5_folder))


@pytest.fixture(scope="module")
def parts(t5_reward):
    """log P("Yes") and log P(end | "Yes"), by T5's own loop over tokens."""
    model = t5_reward.model
    pixels = t5_reward.preprocess([picture()])
    with torch.no_grad():
        hidden = model.vision(pixel_values=pixels, output_hidden_states=True).hidden_states[-1][:, 1:]
        texts = (BEFORE_IMAGE, AFTER_IMAGE.format(PROMPT))
        before, after = (t5_reward.tokenizer(text, return_tensors="pt").input_ids for text in texts)
        embed = model.t5.get_input_embeddings()
        inputs = torch.cat([embed(before), model.projector(hidden), embed(after)], 1)
        yes = t5_reward.tokenizer.convert_tokens_to_ids("Yes")
        start = torch.tensor([[0, yes]])
        logits = model.t5(inputs_embeds=inputs, decoder_input_ids=start).logits[0].log_softmax(-1)
    return logits[0, yes].item(), logits[1, 1].item()


class TestClipFlanT5:
    def test_published(self, t5_reward, parts):
        assert t5_reward([picture()], [PROMPT]).item() == pytest.approx(np.exp(sum(parts) / 2), rel=1e-5)

    def test_plain(self, t5_folder, parts):
        plain = load_reward("vqa-score", path=str(t5_folder), probability="plain")
        assert plain([picture()], [PROMPT]).item() == pytest.approx(np.exp(parts[0]), rel=1e-5)

    def test_output_layer_is_not_tied(self, t5_reward):
        """T5 would tie it to the embeddings, which are others."""
        t5 = t5_reward.model.t5
        assert not torch.equal(t5.lm_head.weight, t5.shared.weight)
        assert t5.encoder.embed_tokens.weight.data_ptr() == t5.shared.weight.data_ptr()
        assert t5.decoder.embed_tokens.weight.data_ptr() == t5.shared.weight.data_ptr()

    def test_features_are_those_before_the_last_layer(self, t5_folder, t5_reward):
        prefix = "vision_tower.vision_tower.vision_model."
        weights = read_sharded(str(t5_folder), "vqa-score")
        weights = {name.removeprefix(prefix): value for name, value in weights.items() if name.startswith(prefix)}
        whole = CLIPVisionModel(
            CLIPVisionConfig(**json.loads((t5_folder / "config.json").read_text())["vision_config"])
        )
        whole.load_state_dict(weights)
        pixels = t5_reward.preprocess([picture()])
        with torch.no_grad():
            expected = whole.eval()(pixel_values=pixels, output_hidden_states=True).hidden_states[-2]
            features = t5_reward.model.vision(pixel_values=pixels).last_hidden_state
        torch.testing.assert_close(features, expected)

    def test_square(self):
        """LLaVA's: the image in the middle, CLIP's mean colour around it."""
        colour = tuple(int(mean * 255) for mean in CLIP_MEAN)
        image = picture(31, 50)
        expected = Image.new("RGB", (50, 50), colour)
        expected.paste(image, (0, (50 - 31) // 2))
        pixels = _square(torch.from_numpy(np.array(image)).permute(2, 0, 1))
        assert np.array_equal(pixels.permute(1, 2, 0).numpy(), np.array(expected))

    def test_questions(self, t5_reward):
        before, after, answer = t5_reward.prompts([PROMPT])[0]
        text = "".join(t5_reward.tokenizer.convert_ids_to_tokens(torch.cat([before, after]).tolist()))
        assert text.endswith('</s>\nDoes this figure show "a red circle"? Please answer yes or no. ASSISTANT: </s>')
        assert text.startswith("A chat between a curious user and")
        assert t5_reward.tokenizer.convert_ids_to_tokens(answer.tolist()) == ["Yes", "</s>"]


@pytest.fixture(scope="module")
def qwen_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("qwen")
    save_qwen(folder)
    return folder


@pytest.fixture(scope="module")
def qwen_reward(qwen_folder):
    return load_reward("vqa-score", variant="qwen2.5-vl-7b", path=str(qwen_folder))


class TestQwen:
    @pytest.mark.parametrize("size", [(60, 90), (300, 40), (28, 28), (500, 333)])
    def test_preprocessing_equals_transformers(self, qwen_reward, size):
        processor = Qwen2VLImageProcessorPil(min_pixels=4 * 28 * 28, max_pixels=16384 * 28 * 28)
        expected = processor([picture(*size)], return_tensors="pt", image_mean=CLIP_MEAN, image_std=CLIP_STD)
        patches, grids = qwen_reward.preprocess([picture(*size)])
        assert torch.equal(grids, expected["image_grid_thw"])
        torch.testing.assert_close(patches, expected["pixel_values"], atol=1e-5, rtol=0)

    @pytest.mark.parametrize("probability", ["published", "plain"])
    def test_equals_generate(self, qwen_folder, probability):
        """The probability of the first token `generate` would draw from, with the repetition penalty or without."""
        reward = load_reward("vqa-score", variant="qwen2.5-vl-7b", path=str(qwen_folder), probability=probability)
        patches, grids = reward.preprocess([picture()])
        question = (
            "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n<|vision_start|>"
            + "<|image_pad|>" * (int(grids.prod()) // 4)
            + f'<|vision_end|>Does this figure show "{PROMPT}"? Please answer Yes or No.<|im_end|>\n'
            "<|im_start|>assistant\n"
        )
        ids = reward.tokenizer(question, return_tensors="pt").input_ids
        image = (ids == reward.model.qwen.config.image_token_id).int()
        generated = reward.model.qwen.generate(
            input_ids=ids, attention_mask=torch.ones_like(ids), mm_token_type_ids=image, pixel_values=patches,
            image_grid_thw=grids, max_new_tokens=1, do_sample=False, output_scores=True, output_logits=True,
            return_dict_in_generate=True,
        )  # fmt: skip
        logits = generated.scores[0] if probability == "published" else generated.logits[0]
        yes = reward.tokenizer.convert_tokens_to_ids("Yes")
        expected = logits[0].softmax(-1)[yes].item()
        assert reward([picture()], [PROMPT]).item() == pytest.approx(expected, rel=1e-5)

    def test_definitions_differ(self, qwen_folder, qwen_reward):
        plain = load_reward("vqa-score", variant="qwen2.5-vl-7b", path=str(qwen_folder), probability="plain")
        assert qwen_reward([picture()], [PROMPT]).item() != pytest.approx(plain([picture()], [PROMPT]).item(), rel=1e-3)

    def test_sizes(self):
        """Multiples of 28 nearest to the image's own, within bounds."""
        assert smart_size(512, 512, 28) == (504, 504)
        assert smart_size(1024, 768, 28) == (1036, 756)
        assert smart_size(1, 1, 28) == (56, 56)
        rows, columns = smart_size(8000, 6000, 28)
        assert rows * columns <= 16384 * 28 * 28
        with pytest.raises(ValueError, match="at most 200 times as long as wide"):
            smart_size(1, 201, 28)

    def test_images_of_several_sizes(self, qwen_reward):
        together = qwen_reward([picture(60, 90), picture(90, 60)], [PROMPT, "longer than the other"])
        alone = [
            qwen_reward([picture(60, 90)], [PROMPT]),
            qwen_reward([picture(90, 60)], ["longer than the other"]),
        ]
        torch.testing.assert_close(together, torch.cat(alone), atol=1e-6, rtol=1e-5)


@pytest.fixture(scope="module")
def qwen3_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("qwen3")
    save_qwen3(folder)
    return folder


class TestQwen3:
    @pytest.fixture
    def reward(self, qwen3_folder):
        return load_reward("vqa-score", variant="qwen3-vl-8b", path=str(qwen3_folder))

    @pytest.mark.parametrize("size", [(60, 90), (300, 40)])
    def test_preprocessing_equals_transformers(self, reward, size):
        """Patches of 16 pixels, merged in squares of 32; pixels in [-1, 1]."""
        half = [0.5] * 3
        processor = Qwen2VLImageProcessorPil(
            patch_size=16, min_pixels=4 * 32 * 32, max_pixels=16384 * 32 * 32, image_mean=half, image_std=half
        )
        expected = processor([picture(*size)], return_tensors="pt")
        patches, grids = reward.preprocess([picture(*size)])
        assert torch.equal(grids, expected["image_grid_thw"])
        torch.testing.assert_close(patches, expected["pixel_values"], atol=1e-5, rtol=0)

    def test_equals_generate(self, reward):
        """No system message; both definitions are one, as Qwen3-VL has no repetition penalty."""
        patches, grids = reward.preprocess([picture()])
        question = (
            "<|im_start|>user\n<|vision_start|>"
            + "<|image_pad|>" * (int(grids.prod()) // 4)
            + f'<|vision_end|>Does this figure show "{PROMPT}"? Please answer Yes or No.<|im_end|>\n'
            "<|im_start|>assistant\n"
        )
        ids = reward.tokenizer(question, return_tensors="pt").input_ids
        image = (ids == reward.model.qwen.config.image_token_id).int()
        generated = reward.model.qwen.generate(
            input_ids=ids, attention_mask=torch.ones_like(ids), mm_token_type_ids=image, pixel_values=patches,
            image_grid_thw=grids, max_new_tokens=1, do_sample=False, output_scores=True, return_dict_in_generate=True,
        )  # fmt: skip
        expected = generated.scores[0][0].softmax(-1)[reward.tokenizer.convert_tokens_to_ids("Yes")].item()
        assert reward([picture()], [PROMPT]).item() == pytest.approx(expected, rel=1e-5)


@pytest.fixture(scope="module")
def llava_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("llava")
    save_llava(folder)
    return folder


class TestAny:
    def test_equals_generate(self, llava_folder):
        """Through the model's own processor, one image at a time and without padding."""
        reward = load_reward("vqa-score", variant="any", path=str(llava_folder))
        images, prompts = [picture(), picture(90, 60)], [PROMPT, "longer than the other"]
        processor = AutoProcessor.from_pretrained(llava_folder)
        expected = []
        for image, prompt in zip(images, prompts):
            text = f'USER: <image>\nDoes this figure show "{prompt}"? Please answer Yes or No. ASSISTANT: '
            inputs = processor(text=[text], images=[image], return_tensors="pt")
            generated = reward.model.network.generate(
                **inputs, max_new_tokens=1, do_sample=False, output_scores=True, return_dict_in_generate=True
            )
            expected.append(generated.scores[0].softmax(-1)[0, processor.tokenizer.convert_tokens_to_ids("Yes")])
        torch.testing.assert_close(reward(images, prompts), torch.stack(expected), rtol=1e-5, atol=0)

    def test_needs_a_path(self):
        with pytest.raises(RewardLoadError, match="`path` of the reward 'vqa-score' with the variant 'any' to be"):
            load_reward("vqa-score", variant="any")

    def test_any_model_is_refused_by_the_variants_of_qwen(self, llava_folder):
        with pytest.raises(RewardLoadError, match="is a 'llava', which the variant 'any' takes"):
            load_reward("vqa-score", variant="qwen3-vl-8b", path=str(llava_folder))

    def test_a_model_without_images(self, tmp_path):
        (tmp_path / "config.json").write_text('{"model_type": "bert"}')
        with pytest.raises(RewardLoadError, match="to be a|a model of images and text .* is a 'bert'"):
            load_reward("vqa-score", variant="any", path=str(tmp_path))


def test_unknown_probability():
    with pytest.raises(ValueError, match="`probability` to be 'published' or 'plain', but got 'p'"):
        load_reward("vqa-score", probability="p")
