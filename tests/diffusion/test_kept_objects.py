"""Objects with tensors that a denoiser makes in one step and is given in later ones."""

from __future__ import annotations

import pytest
import torch

from fk_steer.diffusion.batches import run_on_live_rows
from fk_steer.diffusion.layout import Block, learned_layout, take_units
from fk_steer.diffusion.ranks import Ranks
from fk_steer.diffusion.replay import outline
from fk_steer.diffusion.rows import Rows


class Layer:
    def __init__(self, keys):
        self.keys = keys


class Cache:
    """Keys and values of layers, (rows, tokens) each."""

    def __init__(self, *layers):
        self.layers, self.num_tokens = [Layer(keys) for keys in layers], 2

    def clear(self):
        self.layers = []


def cache(*rows):
    keys = torch.tensor(rows)[:, None].expand(-1, 2).clone()
    return Cache(keys, keys + 10.0)


def denoiser(sample, cache=None, changes=False):
    if cache is None:
        return sample, Cache(sample[:, :1].expand(-1, 2).clone(), sample[:, :2])
    if changes:
        cache.layers[0] = Layer(cache.layers[0].keys + 1)
    return (sample + cache.layers[0].keys,)


def run(rows, sample, chunk_size=None, **arguments):
    def layout_of(arguments, copies):
        return learned_layout({**arguments, **one}, arguments, rows.total)

    one = {"sample": sample[:1], "cache": outline(cache(0.0))}
    names = ["sample", "cache", "changes"]
    output, _, _ = run_on_live_rows(
        denoiser, rows, Ranks(False, torch.device("cpu")), names, chunk_size, (sample,), arguments, layout_of
    )
    return output


def test_rows_of_objects_are_known_and_taken():
    layout = learned_layout(cache(0.0), cache(0.0, 1.0, 2.0), 3)
    assert layout == {"layers": {0: {"keys": Block()}, 1: {"keys": Block()}}, "num_tokens": None}
    whole = cache(0.0, 1.0, 2.0)
    part = take_units(whole, layout, torch.tensor([2, 0]))
    assert [layer.keys[:, 0].tolist() for layer in part.layers] == [[2.0, 0.0], [12.0, 10.0]]
    part.clear()
    assert len(whole.layers) == 2 and whole.layers[0].keys.shape == (3, 2)


@pytest.mark.parametrize("size", [None, 1, 2])
def test_chunks_make_one_object_and_are_given_its_rows(size):
    rows, sample = Rows(1, 3), torch.arange(6.0).view(3, 2)
    _, made = run(rows, sample, size)
    assert made.layers[0].keys.tolist() == sample[:, :1].expand(-1, 2).tolist() and made.num_tokens == 2
    (output,) = run(rows, sample, size, cache=made)
    assert torch.equal(output, sample + made.layers[0].keys)


def test_an_outline_shares_nothing_with_the_object():
    whole = cache(0.0, 1.0)
    made = outline((whole,))[0]
    assert made.layers[1].keys.device.type == "meta"
    made.layers[0].keys = None
    made.clear()
    assert whole.layers[0].keys.shape == (2, 2)


def test_what_is_not_common_to_a_population_cannot_stay_behind():
    rows, sample = Rows(2, 2), torch.arange(8.0).view(4, 2)
    run(rows, sample, cache=cache(0.0, 1.0, 2.0, 3.0))  # nothing has moved
    ancestors = torch.tensor([[1, 1], [0, 1]])
    rows.move(rows.slots, rows.particles.gather(1, ancestors))
    run(rows, sample, cache=cache(0.0, 0.0, 2.0, 2.0))
    rows.move(rows.slots, rows.particles.gather(1, ancestors))
    with pytest.raises(ValueError, match="`cache` differs between particles"):
        run(rows, sample, cache=cache(0.0, 1.0, 2.0, 2.0))


def test_an_object_that_is_changed_in_a_call_cannot_be_put_together():
    with pytest.raises(ValueError, match="changes what its argument `cache` holds"):
        run(Rows(1, 3), torch.zeros(3, 2), 1, cache=cache(0.0, 0.0, 0.0), changes=True)
