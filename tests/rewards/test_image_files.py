"""Files of images: what is read, and what is refused with which words."""

from __future__ import annotations

import io
import json
import struct
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from odd_images import chunk, encoded, mutated, originals, picture, with_chunks
from PIL import Image
from typer.testing import CliRunner

from fk_steer import load_reward
from fk_steer.cli import app
from fk_steer.rewards.base import check_one_prompt_per_image
from fk_steer.rewards.functions import as_pil
from fk_steer.rewards.images import clip_pixels, to_pixels, to_uint8
from fk_steer.testing.rewards import TINY_REWARDS
from llava_reward_guide.images import ImageError, as_rgb, decode_image, load_image, to_pil
from llava_reward_guide.scoring import score_files
from llava_reward_guide.untrained import random_reward


RAMP = np.tile(np.arange(256, dtype=np.uint8), (4, 1))


def grey(image: Image.Image) -> np.ndarray:
    pixels = np.asarray(as_rgb(image))
    assert (pixels == pixels[..., :1]).all()
    return pixels[..., 0]


@pytest.mark.parametrize("scale", [256, 257])
@pytest.mark.parametrize("dtype", ["<u2", ">u2"], ids=["little", "big"])
def test_sixteen_bits_are_their_eight(scale, dtype):
    assert (grey(Image.fromarray((RAMP.astype(np.uint16) * scale).astype(dtype))) == RAMP).all()


@pytest.mark.parametrize("mode", ["I;16", "I;16L", "I;16B", "I;16N"])
def test_every_mode_of_sixteen_bits(mode):
    assert (grey(Image.new(mode, (3, 2), 0x8040)) == 0x80).all()


@pytest.mark.parametrize("scale", [1, 256, 257])
def test_integers_of_8_or_16_bits(scale):
    assert (grey(Image.fromarray(RAMP.astype(np.int32) * scale)) == RAMP).all()


@pytest.mark.parametrize("scale", [1 / 255, 1, 256, 257])
def test_floats_by_their_range(scale):
    assert (grey(Image.fromarray(RAMP.astype(np.float32) * np.float32(scale))) == RAMP).all()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([0.0, np.nan], "without NaN or infinity"),
        ([0.0, np.inf], "without NaN or infinity"),
        ([-1.0, 1.0], "float greys in .* from -1 to 1"),
        ([0.0, 1.5], "float greys in .* from 0 to 1.5"),
        ([0.0, 300.0], "float greys in .* from 0 to 300"),
        ([0.0, 1e6], "float greys in .* from 0 to 1e"),
    ],
)
def test_floats_of_no_known_range(values, message, tmp_path):
    image = Image.fromarray(np.array([values], np.float32))
    with pytest.raises(ImageError, match=message):
        as_rgb(image)
    image.save(tmp_path / "float.tiff")
    with pytest.raises(ImageError, match=f"float.tiff.*{message}"):
        load_image(tmp_path / "float.tiff")


@pytest.mark.parametrize("values", [[-1, 5], [0, 65536]])
def test_integers_of_no_known_range(values):
    with pytest.raises(ImageError, match=rf"from 0 to 255 or to 65535, but got values from {values[0]} to {values[1]}"):
        as_rgb(Image.fromarray(np.array([values], np.int32)))


@pytest.mark.parametrize("name", ["a.png", "a.tiff", "a.pgm", "a.PNG", "a.jp2"])
def test_files_of_deep_greys(name, tmp_path):
    """Dark ones too, whose greatest value would fit into 8 bits."""
    for values in (RAMP.astype(np.uint16) * 257, RAMP.astype(np.uint16)):
        buffer = io.BytesIO()
        kind = {".pgm": "PPM", ".jp2": "JPEG2000"}.get(Path(name).suffix, Path(name).suffix[1:])
        Image.fromarray(values).save(buffer, kind)
        (tmp_path / name).write_bytes(buffer.getvalue())
        assert (np.asarray(load_image(tmp_path / name))[..., 0] == values >> 8).all()


@pytest.mark.parametrize("mode", ["RGBa", "La", "RGBX", "RGBA", "LA", "1"])
def test_premultiplied_and_other_modes(mode):
    assert as_rgb(Image.new(mode, (3, 2))).mode == "RGB"


def test_an_image_without_pixels():
    with pytest.raises(ImageError, match="with pixels, but got one of 0 x 5"):
        as_rgb(Image.new("RGB", (0, 5)))


def test_the_mode_can_be_kept(tmp_path):
    picture().convert("RGBA").save(tmp_path / "a.png")
    assert load_image(tmp_path / "a.png").mode == "RGB"
    assert load_image(tmp_path / "a.png", keep_mode=True).mode == "RGBA"
    picture().convert("CMYK").save(tmp_path / "a.jpg")
    assert load_image(tmp_path / "a.jpg", keep_mode=True).mode == "RGB"


def exif(entries: list[tuple[int, int, int, bytes]]) -> bytes:
    """An EXIF block of (tag, type, count, value or place of it)."""
    listed = b"".join(struct.pack("<HHI", *entry[:3]) + entry[3].ljust(4, b"\0") for entry in entries)
    return b"Exif\0\0II*\0\x08\0\0\0" + struct.pack("<H", len(entries)) + listed + bytes(4)


BROKEN_EXIF = {
    "orientation is text": exif([(0x0112, 2, 2, b"6\0")]),
    "orientation is a fraction by zero": exif([(0x0112, 5, 1, b"\x1a\0\0\0")]) + bytes(16),
    "orientation is far": exif([(0x0112, 3, 1, b"\xff\xff")]),
    "text is a number": exif([(0x010E, 3, 1, b"\7\0"), (0x0131, 12, 1, b"\xff\0\0\0")]),
    "values lie beyond the end": exif([(0x010E, 2, 99999, b"\xff\xff\xff\x7f"), (0x8769, 4, 1, b"\xff\xff\xff\x7f")]),
    "a directory in itself": exif([(0x8769, 4, 1, b"\x08\0\0\0")]),
    "no directory": b"Exif\0\0II*\0\xff\xff\xff\xff",
    "garbage": b"Exif\0\0garbage",
    "empty": b"Exif\0\0",
}


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("block", BROKEN_EXIF.values(), ids=BROKEN_EXIF)
@pytest.mark.filterwarnings("ignore")
def test_broken_exif_leaves_the_pixels(block, kind, tmp_path):
    options = {"lossless": True} if kind == "WEBP" else {}
    (tmp_path / "a").write_bytes(encoded(picture(), kind, exif=block, **options))
    plain = decode_image(encoded(picture(), kind, **options))
    assert load_image(tmp_path / "a").tobytes() == plain.tobytes()


@pytest.mark.filterwarnings("ignore")
def test_a_turn_is_made_though_the_rest_is_broken():
    block = exif([(0x0112, 3, 1, b"\6\0"), (0x0131, 12, 1, b"\xff\0\0\0"), (0x8769, 2, 9, b"\xff\xff\0\0")])
    turned = decode_image(encoded(picture(), "PNG", exif=block))
    assert turned.tobytes() == picture().transpose(Image.Transpose.ROTATE_270).tobytes()


BROKEN_CHUNKS = {
    "text that grows too large": chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(9_000_000))),
    "profile that is none": chunk(b"iCCP", b"a\0\0garbage"),
    "profile without a name": chunk(b"iCCP", b""),
    "resolution cut off": chunk(b"pHYs", b"\0"),
    "transparency cut off": chunk(b"tRNS", b"\0"),
    "gamma cut off": chunk(b"gAMA", b""),
    "animation cut off": chunk(b"acTL", b"\0"),
    "frame cut off": chunk(b"fcTL", b"\0"),
    "check sum wrong": chunk(b"tEXt", b"a\0b")[:-1] + b"\0",
    "xmp that is no text": chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0\xff\xfe"),
    "colours cut off": chunk(b"cHRM", b"\0"),
}


@pytest.mark.parametrize("more", BROKEN_CHUNKS.values(), ids=BROKEN_CHUNKS)
@pytest.mark.filterwarnings("ignore")
def test_broken_chunks_leave_the_pixels(more):
    assert decode_image(with_chunks(encoded(picture(), "PNG"), more)).tobytes() == picture().tobytes()


@pytest.mark.parametrize("number", [3, 7, 12, 16])
@pytest.mark.filterwarnings("ignore")
def test_tiff_tags_of_the_wrong_type(number):
    """The description as anything."""
    data = bytearray(encoded(picture(), "TIFF", description="about the picture"))
    at = data.index(struct.pack("<HH", 270, 2))
    data[at + 2 : at + 12] = struct.pack("<HII", number, 1 << 20, 0x7FFFFFF0)
    assert decode_image(bytes(data)).tobytes() == picture().tobytes()


def test_what_is_no_image_is_named_with_the_reason(tmp_path):
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "empty.png").touch()
    (tmp_path / "cut.png").write_bytes(encoded(picture((90, 90)), "PNG")[:400])
    (tmp_path / "bomb.bmp").write_bytes(
        b"BM" + struct.pack("<IIIIiiHHI", 0, 0, 54, 40, 60000, 60000, 1, 24, 0) + bytes(20)
    )
    (tmp_path / "link.png").symlink_to("nowhere")
    for name, reason in {
        "folder.png": "is a folder",
        "empty.png": "of no known format",
        "cut.png": "truncated",
        "bomb.bmp": "exceeds limit",
        "link.png": "no such file",
        "none.png": "no such file",
        "nul\0.png": "null",
    }.items():
        with pytest.raises(ImageError, match=f"(?s){name}.*{reason}"):
            load_image(tmp_path / name)


NOT_IMAGES = [
    (torch.zeros(1, 3, 4, 4, dtype=torch.uint8), "float in .* but got torch.uint8"),
    (torch.full((1, 3, 4, 4), torch.nan), "without NaN or infinity"),
    (torch.full((1, 3, 4, 4), torch.inf), "without NaN or infinity"),
    (torch.full((1, 3, 4, 4), 200.0), r"in \[0, 1\], but got values from 200 to 200.*images / 255"),
    (torch.full((1, 3, 4, 4), -1.0), r"in \[0, 1\], but got values from -1 to -1.*images \+ 1"),
    (torch.zeros(1, 4, 4, 4), r"shape \(B, 3, H, W\), but got \(1, 4, 4, 4\)"),
    (torch.zeros(3, 4, 4), r"shape \(B, 3, H, W\), but got \(3, 4, 4\)"),
    (torch.zeros(1, 3, 0, 4), "with pixels"),
    (np.zeros((1, 4, 4, 3)), "an array of shape .*permute"),
    ([np.zeros((4, 4, 3))], "a list with ndarray in it"),
    (["a.png"], "a list with str in it"),
    (Image.new("RGB", (4, 4)), "a single image. Put it into a list"),
    ([Image.fromarray(np.full((4, 4), np.nan, np.float32))], "without NaN or infinity"),
]


@pytest.mark.parametrize(("images", "message"), NOT_IMAGES)
@pytest.mark.parametrize(
    "take",
    [
        to_pil,
        lambda images: to_uint8(images, "cpu"),
        lambda images: to_pixels(images, "cpu", exact=False),
        lambda images: clip_pixels(images, 8, "cpu", torch.float32, convert_last=True),
        lambda images: as_pil(lambda pictures, prompts: [0.0] * len(pictures))(images, ["a"]),
        lambda images: random_reward("phi3_v", "tiny").embed(images, ["a"]),
    ],
    ids=["to_pil", "to_uint8", "floats", "clip", "function", "llava-reward"],
)
def test_rewards_refuse_in_the_same_words(take, images, message):
    with pytest.raises(ImageError, match=message):
        take(images)


def test_a_single_image_is_no_list():
    with pytest.raises(ImageError, match="single image"):
        check_one_prompt_per_image(picture(), ["a"])


@pytest.fixture(scope="module")
def reward(tmp_path_factory):
    folder = tmp_path_factory.mktemp("reward")
    TINY_REWARDS["pickscore"].save(folder)
    return folder


def check_that_all_agree(folder, files, reward, llava):
    """`fk-steer score`, `judge` and `eval panel`, and the scoring of `llava-reward`, on the same files."""
    for number, (suffix, content) in enumerate(files):
        (folder / f"{number}.{suffix}").write_bytes(content)
    paths = sorted(path for path in folder.iterdir() if path.is_file())
    names = [path.name for path in paths]
    (folder / "judge.json").write_text(
        json.dumps([{"path": n, "prompt": "a", "label": i % 2} for i, n in enumerate(names)])
    )
    (folder / "list.jsonl").write_text("\n".join(json.dumps({"path": name, "prompt": "a"}) for name in names))

    def invoke(*arguments):
        result = CliRunner().invoke(app, [str(argument) for argument in arguments])
        assert result.exit_code == 0, (result.output, result.exception)
        return result

    option = f"path={reward}"
    of_reward = ("--reward", "pickscore", "--reward-option", option, "--device", "cpu")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        output = invoke(
            "score",
            *paths,
            "--prompt",
            "a",
            "--reward",
            "pickscore",
            "--reward-option",
            option,
            "--json",
            "--device",
            "cpu",
        )
        out = folder / "judged"
        invoke("judge", folder / "judge.json", "--out", out, *of_reward)
        panel = invoke(
            *(
                "eval",
                "panel",
                folder / "list.jsonl",
                "--metric",
                "pickscore",
                "--metric-option",
                option,
                "--device",
                "cpu",
            ),
        )
        rows = score_files(llava, [(path, "a") for path in paths])
    scored = json.loads(output.stdout)
    scores = {Path(one["image"]).name: one["scores"]["pickscore"] for one in scored["results"]}
    errors = {Path(one["image"]).name: one["error"] for one in scored["errors"]}
    assert scores.keys() | errors.keys() == set(names)
    judged: dict = {}
    problems: dict = {}
    for file in sorted((out / "pickscore" / "scores").glob("*.json")):
        batch = json.loads(file.read_text())
        problems |= batch["problems"]
        judged |= {
            names[int(file.stem) + index]: one[0] for index, one in enumerate(batch["scores"]) if one[0] is not None
        }
    listed = json.loads((folder / "panel" / "pickscore.json").read_text())["scores"]
    # Sizes of batches differ between the commands.
    assert judged == pytest.approx(scores, abs=1e-4)
    assert {name: row["score"] for name, row in listed.items()} == pytest.approx(scores, abs=1e-4)
    assert problems == errors
    assert {Path(row.path).name: row.error for row in rows if row.error} == errors
    assert all(row.reward is not None for row in rows if Path(row.path).name in scores)
    assert all(error in panel.output for error in errors.values())
    assert all(name in error for name, error in errors.items())
    return scores, errors


@pytest.fixture(scope="module")
def llava():
    return random_reward("phi3_v", "tiny")


def test_commands_agree_on_good_files(tmp_path, reward, llava):
    scores, errors = check_that_all_agree(tmp_path, originals(), reward, llava)
    assert not errors
    # Frames after the first and metadata do not show; the turned ones are alike, but for a lossy format.
    scorer = load_reward("pickscore", path=str(reward), device="cpu")
    assert scores["3.png"] == pytest.approx(scorer([picture()], ["a"]).item(), abs=1e-4)
    assert scores["0.png"] == pytest.approx(
        scorer([picture().transpose(Image.Transpose.ROTATE_270)], ["a"]).item(), abs=1e-4
    )


def test_commands_agree_on_mutated_files(tmp_path, reward, llava):
    scores, errors = check_that_all_agree(tmp_path, mutated(100), reward, llava)
    assert scores
    assert errors


@pytest.mark.slow
def test_commands_agree_on_2000_mutated_files(tmp_path, reward, llava):
    scores, errors = check_that_all_agree(tmp_path, mutated(2000, seed=1), reward, llava)
    assert len(scores) + len(errors) == 2000
    assert scores
    assert errors
