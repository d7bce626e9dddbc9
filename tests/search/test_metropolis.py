"""Moves of `Metropolis` leave the tilted law as it is, and reach it from elsewhere."""

from __future__ import annotations

import math

import pytest
import torch
from diffusion_1d import GAUSSIAN
from driver import drive, num_steps, start
from torch import Tensor

from fk_steer.search import Look, Metropolis, RewardFacts, Start


P, K, LMBDA = 40, 500, 2.0
TILTED_MEAN, VARIANCE = GAUSSIAN.tilted_mean(LMBDA), GAUSSIAN.std**2


def gaussian(mean: float) -> Tensor:
    generator = torch.Generator().manual_seed(7)
    return mean + GAUSSIAN.std * torch.randn(P, K, generator=generator, dtype=torch.float64)


def chains(moves: int, mean: float, back: float | int = 0.5, seed: int = 0) -> Tensor:
    """Where P K chains are that begin at samples of a Gaussian of the data's variance."""
    search = start(Metropolis(K, LMBDA, moves, back=back), GAUSSIAN, P)
    return drive(search, GAUSSIAN, (P, K), x=gaussian(mean), first=GAUSSIAN.num_steps, seed=seed).x


def standard_errors(x: Tensor) -> tuple[float, float]:
    """How far mean and variance are from the tilted law's, in standard errors of P K independent samples."""
    n = x.numel()
    mean = (x.mean().item() - TILTED_MEAN) / math.sqrt(VARIANCE / n)
    variance = ((x - TILTED_MEAN).square().mean().item() - VARIANCE) / (VARIANCE * math.sqrt(2 / n))
    return mean, variance


@pytest.mark.parametrize("moves", [1, 2, 6])
@pytest.mark.parametrize("back", [0.3, 0.5, 9])
def test_the_tilted_law_is_left_as_it_is(moves, back):
    for distance in standard_errors(chains(moves, TILTED_MEAN, back)):
        assert abs(distance) < 4


def test_chains_move():
    began, ended = gaussian(TILTED_MEAN), chains(1, TILTED_MEAN)
    assert 0.3 < (began != ended).double().mean() < 0.95


def test_chains_that_begin_elsewhere_come_to_the_tilted_law():
    few, many = standard_errors(chains(1, 0.3)), standard_errors(chains(25, 0.3))
    assert abs(few[0]) > 20, "one move does not get there, so that this test means something"
    assert all(abs(distance) < 4 for distance in many)


@pytest.mark.parametrize("difference", [0.0, -0.1, -0.5, -2.0, 0.3, 5.0])
def test_how_often_a_move_is_accepted(difference):
    """min(1, exp(lambda (r' - r))), at lambda 2."""
    number = 20_000
    search = start(Metropolis(number, LMBDA, 1), GAUSSIAN, 1)
    look = Look(num_steps(GAUSSIAN) - 1, num_steps(GAUSSIAN), torch.arange(number)[None], torch.full((1, number), 0.7))
    search.step(look)
    plan = search.step(Look(look.step, look.num_steps, look.slots, look.rewards + difference))
    accepted = (plan.ancestors < number).double().mean().item()
    exact = min(1.0, math.exp(LMBDA * difference))
    assert abs(accepted - exact) <= 4 * math.sqrt(exact * (1 - exact) / number)
    everyone = torch.arange(number)[None]
    assert ((plan.ancestors == everyone) | (plan.ancestors == everyone + number)).all(), "a chain is itself or its past"


@pytest.mark.parametrize(
    "lmbda, before, after, accepted",
    [
        (2.0, 0.0, -math.inf, False),
        (2.0, 0.0, math.inf, True),
        (2.0, -math.inf, 0.0, True),
        (0.0, 0.0, -5.0, True),
        (0.0, 0.0, -math.inf, True),
        (0.0, math.inf, 0.0, True),
    ],
)
def test_infinite_rewards(lmbda, before, after, accepted):
    search = start(Metropolis(3, lmbda, 1), GAUSSIAN, 1)
    for reward in (before, after):
        plan = search.step(Look(8, 9, torch.arange(3)[None], torch.full((1, 3), reward, dtype=torch.float64)))
    assert plan.ancestors.tolist() == ([[0, 1, 2]] if accepted else [[3, 4, 5]])


def test_a_chain_that_stays_is_the_very_state_that_was_remembered():
    """Whatever is refused leaves no trace, over several moves."""
    shape = (3, 4)
    search = start(Metropolis(4, 60.0, 5), GAUSSIAN, 3)
    run = drive(search, GAUSSIAN, shape, seed=3)
    current = run.seen[0].before
    for seen in run.seen[1:]:
        accepted = seen.plan.ancestors < 4
        current = torch.where(accepted, seen.before, current)
        assert torch.equal(seen.after, current)
    assert torch.equal(run.x, current)
    assert any((seen.plan.ancestors >= 4).any() for seen in run.seen)


def test_the_draws_of_a_population_do_not_depend_on_the_others():
    shape, looks = (3, 4), [torch.rand(3, 4, generator=torch.Generator().manual_seed(i)).double() for i in range(4)]

    def plans(populations: list[int]) -> list[Tensor]:
        generators = [torch.Generator().manual_seed(p) for p in populations]
        search = Metropolis(4, 5.0, 3).start(Start(len(populations), 9, generators))
        slots = torch.arange(4).expand(len(populations), 4)
        return [search.step(Look(8, 9, slots, rewards[populations])).ancestors for rewards in looks]

    together = plans([0, 1, 2])
    for p in range(shape[0]):
        assert all(torch.equal(one[p], other[0]) for one, other in zip(together, plans([p])))


@pytest.mark.parametrize("back, taken", [(0.5, 4), (0.3, 3), (9, 9), (1, 1)])
def test_a_move_costs_the_rows_of_the_way_back(back, taken):
    search = start(Metropolis(5, 1.0, 3, back=back), GAUSSIAN, 2)
    run = drive(search, GAUSSIAN, (2, 5))
    once = list(range(9))
    assert run.visited == once + 3 * once[9 - taken :]
    assert run.rows == 2 * 5 * (9 + 3 * taken)
    assert search.log_normalizer is None and torch.equal(run.outcome.weights.log, torch.zeros(2, 5).double())


def test_lambda_is_the_rewards_own_if_none_is_given():
    Metropolis().check(RewardFacts(default_lmbda=3.0))
    search = start(Metropolis(2, moves=1), GAUSSIAN, 1, default_lmbda=1000.0)
    slots = torch.arange(2)[None]
    search.step(Look(8, 9, slots, torch.tensor([[1.0, 1.0]])))
    assert search.step(Look(8, 9, slots, torch.tensor([[0.9, 1.1]]))).ancestors.tolist() == [[2, 1]]
    with pytest.raises(ValueError, match="Reward 'mine' has no `default_lmbda`. Set `lmbda`"):
        Metropolis().check(RewardFacts("mine"))
    with pytest.raises(ValueError, match="'mine' only those of particles"):
        Metropolis(lmbda=1.0).check(RewardFacts("mine", relative=True))
