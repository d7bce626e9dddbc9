from __future__ import annotations

import pytest
import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionOutput

from fk_steer.diffusion.batches import run_on_live_rows
from fk_steer.diffusion.layout import combine, known_layout, output_layout
from fk_steer.diffusion.ranks import Ranks
from fk_steer.diffusion.rows import Rows, map_rows


ALONE = Ranks(False, torch.device("cpu"))


class Denoiser:
    """Adds up its row arguments and remembers what it was given."""

    parameters = ["sample", "timestep", "encoder_hidden_states"]

    def __init__(self) -> None:
        self.calls: list[tuple[int, dict]] = []

    def __call__(self, sample, timestep, encoder_hidden_states=None, **kwargs):
        self.calls.append((len(sample), kwargs))
        scale = timestep.view(-1, 1) if timestep.ndim else timestep
        out = sample * scale
        if encoder_hidden_states is not None:
            out = out + encoder_hidden_states.sum(1)
        for value in kwargs.get("added_cond_kwargs", {}).values():
            out = out + value.sum(1, keepdim=True)
        return (out,)


def run(rows: Rows, *args, chunk_size=None, **kwargs):
    denoiser = Denoiser()
    output, count, _ = run_on_live_rows(
        denoiser,
        rows,
        ALONE,
        Denoiser.parameters,
        chunk_size,
        args,
        kwargs,
        lambda arguments, copies: known_layout(arguments, copies * rows.total),
    )
    return output[0], count, denoiser.calls


def pruned(num_slots: int, *slots: tuple[int, ...]) -> Rows:
    rows = Rows(len(slots), num_slots)
    keep = torch.tensor(slots)
    continued(rows, keep, keep)
    return rows


def continued(rows: Rows, slots: torch.Tensor, parents: torch.Tensor):
    """Let particles in `slots` (P, M) continue those in slots `parents` (P, M)."""
    return rows.move(slots, rows.positions()[rows.of(parents)])


def resampled(rows: Rows, *parents: int):
    """One prompt whose slots continue `parents`."""
    return continued(rows, torch.arange(len(parents))[None], torch.tensor([parents]))


@pytest.mark.parametrize("copies", [1, 2, 3], ids=["plain", "cfg", "three"])
@pytest.mark.parametrize("chunk_size", [None, 1, 2, 3, 100])
def test_live_rows_get_their_own_output(copies, chunk_size):
    rows = pruned(4, (0, 2), (1, 3))
    n = 8 * copies
    sample, hidden = torch.randn(n, 5), torch.randn(n, 3, 5)
    conditions = {"text_embeds": torch.randn(n, 2), "time_ids": torch.randn(n, 6)}
    full = Denoiser()(sample, torch.tensor(3.0), hidden, added_cond_kwargs=conditions)[0]
    output, count, calls = run(
        rows,
        sample,
        torch.tensor(3.0),
        encoder_hidden_states=hidden,
        added_cond_kwargs=conditions,
        chunk_size=chunk_size,
    )
    assert output.shape == full.shape
    assert count == 4 * copies == sum(size for size, _ in calls)
    live = torch.cat([torch.tensor([0, 2, 5, 7]) + 8 * copy for copy in range(copies)])
    torch.testing.assert_close(output[live], full[live])
    assert all(size <= (chunk_size or n) for size, _ in calls)


def test_everything_alive_is_passed_through_untouched():
    sample, timestep = torch.randn(8, 5), torch.rand(8)
    seen = []

    def denoiser(*args, **kwargs):
        seen.append((args, kwargs))
        return (args[0],)

    kwargs = {"encoder_hidden_states": torch.randn(8, 2, 5), "return_dict": False}
    output, count, copies = run_on_live_rows(
        denoiser, Rows(2, 4), ALONE, Denoiser.parameters, None, (sample, timestep), kwargs, lambda *_: None
    )
    assert copies == 1
    (args, passed), *_ = seen
    assert args[0] is sample
    assert args[1] is timestep
    assert passed["encoder_hidden_states"] is kwargs["encoder_hidden_states"]
    assert output[0] is sample
    assert count == 8


def test_copies_are_run_once_until_they_part():
    rows = Rows(1, 4)
    assert resampled(rows, 0, 0, 2, 0).tolist() == [0, 0, 2, 0]
    sample = torch.randn(4, 5)[[0, 0, 2, 0]]
    output, count, _ = run(rows, sample, torch.tensor(2.0))
    assert count == 2
    torch.testing.assert_close(output, 2 * sample)
    sample = sample.clone()
    sample[3] += 1
    output, count, _ = run(rows, sample, torch.tensor(2.0))
    assert count == 3
    torch.testing.assert_close(output, 2 * sample)
    # Once parted they stay so, even if they should meet again.
    assert run(rows, sample[[0, 1, 2, 0]], torch.tensor(2.0))[1] == 3


def test_copies_that_never_part_stay_one_through_later_events():
    rows = Rows(1, 4)
    resampled(rows, 0, 0, 2, 3)
    resampled(rows, 0, 1, 1, 3)
    assert rows.distinct.tolist() == [0, 3]
    position, inverse = rows.distinct_live()
    assert position.tolist() == [0, 3]
    assert inverse.tolist() == [0, 0, 0, 1]


def test_nothing_moves():
    assert resampled(Rows(1, 3), 0, 1, 2) is None


def test_pruned_rows_take_a_survivors_place():
    rows = pruned(3, (2,), (0,))
    assert rows.live.tolist() == [2, 3]
    assert rows.distinct.tolist() == [2, 3]
    assert rows.positions().tolist() == [0, 0, 0, 1, 1, 1]


def test_rows_may_come_back():
    rows = pruned(3, (2,), (0,))
    moved = continued(rows, torch.tensor([[0, 2], [0, 1]]), torch.tensor([[2, 2], [0, 0]]))
    assert moved.tolist() == [0, 0, 1, 1]
    assert rows.live.tolist() == [0, 2, 3, 4]
    assert rows.source.tolist() == [0, 0, 0, 3, 3, 3]


def test_one_row_stands_for_a_collapsed_prompt():
    rows = Rows(2, 3)
    slots = torch.tensor([[0, 0, 0], [0, 1, 2]])
    moved = continued(rows, slots, torch.tensor([[1, 1, 1], [0, 1, 2]]))
    assert rows.live.tolist() == [0, 3, 4, 5]
    assert moved.tolist() == [1, 3, 4, 5]
    assert rows.positions().tolist() == [0, 0, 0, 1, 2, 3]
    assert run(rows, torch.randn(6, 5), torch.tensor(1.0))[1] == 4
    # Nothing more happens to it when it collapses again.
    assert continued(rows, slots, slots) is None


@pytest.mark.parametrize("rows_in_text", [512, 4])
def test_position_ids_of_flux_are_left_alone(rows_in_text):
    """Their first dimension is a sequence length, which may happen to equal the batch."""
    ids = {"txt_ids": torch.randn(rows_in_text, 3), "img_ids": torch.randn(4, 3)}
    _, _, calls = run(pruned(4, (1, 2)), torch.randn(4, 5), torch.ones(4), **ids)
    ((size, passed),) = calls
    assert size == 2
    assert passed["txt_ids"] is ids["txt_ids"]
    assert passed["img_ids"] is ids["img_ids"]


def test_other_arguments_are_left_alone():
    """Broadcast rows, scalars, numbers of layers, nested dictionaries without rows."""
    kwargs = {
        "timestep_cond": torch.randn(1, 8),
        "guidance": torch.tensor(3.5),
        "skip_layers": [1, 2, 3, 4],
        "cross_attention_kwargs": {"scale": 0.5, "deep": {"encoder_attention_mask": torch.randn(1, 4)}},
        "return_dict": False,
        "nothing": None,
    }
    _, _, calls = run(pruned(4, (1, 2)), torch.randn(4, 5), torch.ones(4), **kwargs)
    passed = calls[0][1]
    for name in ("timestep_cond", "guidance", "skip_layers", "return_dict", "nothing"):
        assert passed[name] is kwargs[name]
    assert passed["cross_attention_kwargs"]["scale"] == 0.5
    assert torch.equal(
        passed["cross_attention_kwargs"]["deep"]["encoder_attention_mask"],
        kwargs["cross_attention_kwargs"]["deep"]["encoder_attention_mask"],
    )


def test_rows_inside_lists_and_dictionaries_are_taken():
    residuals = (torch.randn(4, 2), torch.randn(4, 3))
    embeds = {"image_embeds": [torch.randn(4, 1, 2)]}
    _, _, calls = run(
        pruned(4, (1, 2)), torch.randn(4, 5), torch.ones(4), down_block_additional_residuals=residuals, joint=embeds
    )
    passed = calls[0][1]
    assert torch.equal(passed["down_block_additional_residuals"][1], residuals[1][[1, 2]])
    assert torch.equal(passed["joint"]["image_embeds"][0], embeds["image_embeds"][0][[1, 2]])


def test_a_batch_that_is_not_the_particles_passes_through():
    output, count, calls = run(pruned(4, (1, 2)), torch.randn(3, 5), torch.tensor(1.0))
    assert len(output) == 3
    assert count == 3
    assert calls[0][0] == 3


def test_output_classes_are_kept():
    outputs = [UNet2DConditionOutput(sample=torch.ones(2, 1)), UNet2DConditionOutput(sample=torch.zeros(1, 1))]
    joined = combine(outputs, output_layout(outputs[0], 2), torch.cat)
    assert isinstance(joined, UNet2DConditionOutput)
    assert joined.sample.flatten().tolist() == [1, 1, 0]
    mapped = map_rows(lambda tensor: tensor[:1], UNet2DConditionOutput(sample=torch.ones(2, 1)), 2)
    assert isinstance(mapped, UNet2DConditionOutput)
    assert len(mapped.sample) == 1
