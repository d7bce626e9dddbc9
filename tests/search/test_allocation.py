"""Which prompts are run again: the index, the loops over passes, and what they gain."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fk_steer.search import Allocation, FKSteering, Pass, RewardFacts, Screen, Stop, preset
from fk_steer.search.improvement import Seen, allocate, expected_improvement, pooled_variance


def tensor(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


class Bandit:
    """Passes of one image each whose rewards are read from a table, a row for each population."""

    def __init__(self, table: torch.Tensor, cost: int = 1, saved: int = 0) -> None:
        self.table, self.cost, self.saved = table.tolist(), cost, saved
        self.num_populations = len(table)
        self.calls: list[list[int]] = []

    @property
    def rows(self) -> int:
        return self.cost * sum(map(len, self.calls)) - self.saved

    def run(self, strategy, populations=None) -> Pass:
        chosen = list(range(self.num_populations)) if populations is None else list(populations)
        rewards = [[self.table[p][sum(p in call for call in self.calls)]] for p in chosen]
        self.calls.append(chosen)
        saved = self.saved if populations is None else 0
        return Pass(chosen, rewards, [[0]] * len(chosen), self.cost * len(chosen) - saved, saved)

    @property
    def best(self) -> list[float]:
        tries = [sum(p in call for call in self.calls) for p in range(self.num_populations)]
        return [max(row[:n]) for row, n in zip(self.table, tries)]


class TestIndex:
    @settings(deadline=None, max_examples=50)
    @given(best=st.floats(-3, 3), mean=st.floats(-3, 3), deviation=st.floats(0.05, 3))
    def test_is_the_integral(self, best, mean, deviation):
        z = best + (max(mean - best, 0) + 15 * deviation) * torch.linspace(0, 1, 200_001, dtype=torch.float64)
        density = (-0.5 * ((z - mean) / deviation) ** 2).exp() / (deviation * math.sqrt(2 * math.pi))
        integral = torch.trapezoid((z - best) * density, z)
        found = expected_improvement(tensor(best), tensor(mean), tensor(deviation))
        torch.testing.assert_close(found[0], integral, rtol=1e-6, atol=1e-12)

    def test_far_tails_keep_their_order(self):
        """There the terms of the closed form cancel: by Mills' ratio E[(Z - b)+] -> s phi(z) / z^2."""
        z = tensor(-8.0, -12.0, -20.0, -30.0)
        found = expected_improvement(-z, torch.zeros(4).double(), torch.ones(4).double())
        expected = (-0.5 * z * z).exp() / math.sqrt(2 * math.pi) / z**2
        assert (found > 0).all() and (found.diff() < 0).all()
        torch.testing.assert_close(found / expected, torch.ones(4).double(), rtol=0.05, atol=0)

    def test_without_spread_it_is_what_the_mean_exceeds_the_best_by(self):
        found = expected_improvement(tensor(1.0, 2.0), tensor(1.5, 1.5), tensor(0.0, 0.0))
        assert found.tolist() == [0.5, 0.0]


class TestMoments:
    def seen(self, *rewards: list[float]) -> Seen:
        seen = Seen(len(rewards))
        seen.add(Pass(list(range(len(rewards))), rewards, [list(range(len(r))) for r in rewards], 1, 0))
        return seen

    def test_of_many_rewards_are_their_own(self):
        g = torch.Generator().manual_seed(0)
        rewards = [(m + s * torch.randn(5000, generator=g).double()).tolist() for m, s in [(0, 1), (3, 0.2), (-1, 5)]]
        mean, deviation = self.seen(*rewards).moments()
        torch.testing.assert_close(mean, tensor(0, 3, -1), atol=0.15, rtol=0)
        torch.testing.assert_close(deviation, tensor(1, 0.2, 5), atol=0, rtol=0.05)

    def test_of_few_rewards_lie_between_their_own_and_the_batchs(self):
        rewards = [[0.0, 1.0, 2.0], [4.0, 4.5, 5.0], [0.5, 4.5, 8.5]]
        mean, deviation = self.seen(*rewards).moments()
        own = tensor(1.0, 4.5, 4.5)
        assert own[0] < mean[0] < own.mean()
        assert own.mean() < mean[1] < own[1]
        assert mean[2] < mean[1], "noisier means are trusted less"
        assert 0.5 < deviation[1] < deviation[0] < deviation[2]

    def test_of_equal_means_are_one(self):
        mean, _ = self.seen([0.0, 2.0], [0.5, 1.5], [1.0, 1.0]).moments()
        torch.testing.assert_close(mean, torch.ones(3).double())

    def test_of_one_prompt_are_its_own(self):
        mean, deviation = self.seen([1.0, 2.0, 4.0]).moments()
        assert mean.item() == pytest.approx(7 / 3)
        assert 1.0 < deviation.item() < 3.0

    @pytest.mark.parametrize(
        "rewards", [[[1.0]], [[1.0, 1.0]], [[2.0], [2.0]], [[1.0], [3.0]], [[1.0, 1.0], [3.0, 3.0]]]
    )
    def test_without_a_spread_are_finite(self, rewards):
        seen = self.seen(*rewards)
        assert all(values.isfinite().all() for values in (*seen.moments(), seen.index()))

    def test_variances_have_a_law_of_their_own(self):
        """Of s^2 d / chi^2_d, from which 2000 variances of 8 degrees of freedom are drawn."""
        g = torch.Generator().manual_seed(0)
        chi = lambda number: torch.randn(2000, number, generator=g).double().square().sum(1)  # noqa: E731
        variances = 3.0 * 6 / chi(6)
        scale, degrees = pooled_variance(variances * chi(8), torch.full((2000,), 8.0).double())
        assert scale == pytest.approx(3.0, rel=0.05)
        assert degrees == pytest.approx(6.0, rel=0.15)


class TestAllocating:
    def test_each_pass_goes_where_most_is_promised(self):
        bandit = Bandit(tensor(*range(30)).view(3, 10))
        seen = Seen(3)
        seen.add(bandit.run(None))
        chosen = []

        def again(populations):
            assert populations == [seen.index().argmax().item()]
            chosen.append(populations)
            return Pass(populations, [[25.0 - len(chosen) ** 2]], [[0]], 7, 0)

        assert allocate(seen, 45, 7, again) == 3
        assert len(chosen) == 6 and len({p for (p,) in chosen}) > 1

    def test_prompts_that_have_reached_the_target_are_left_alone(self):
        bandit = Bandit(tensor(0.0, 5.0, *[0.0] * 5, 2.0, *[0.0] * 6, *range(-6, 1)).view(3, 7))
        seen = Seen(3)
        seen.add(bandit.run(None))
        assert allocate(seen, 6, 1, lambda populations: bandit.run(None, populations), target=2.0) == 0
        assert bandit.calls.count([0]) <= 1 and [1] not in bandit.calls and bandit.calls.count([2]) >= 5

    def test_nothing_is_run_without_rows_or_need(self):
        for reward, cost, rows in [(0.0, 10, 9), (1.0, 10, 100), (0.0, 0, 100)]:
            seen = Seen(1)
            seen.add(Pass([0], [[reward]], [[0]], cost, 0))
            assert allocate(seen, rows, cost, lambda populations: pytest.fail("was run"), target=1.0) == rows

    def test_prompts_that_promise_the_same_take_turns(self):
        bandit = Bandit(torch.zeros(3, 9))
        seen = Seen(3)
        seen.add(bandit.run(None))
        allocate(seen, 5, 1, lambda populations: bandit.run(None, populations))
        assert bandit.calls[1:] == [[0], [1], [2], [0], [1]]

    @pytest.mark.parametrize("spread, passes", [(0.0, 8), (0.3, 8), (0.75, 16)])
    def test_beats_the_same_number_for_everyone(self, spread, passes):
        """16 prompts with normal rewards whose deviations differ, paired with best-of-n, over 100 bandits."""
        g = torch.Generator().manual_seed(0)
        gains = []
        for _ in range(100):
            mean, scale = torch.randn(2, 16, 1, generator=g, dtype=torch.float64)
            table = mean + (spread * scale).exp() * torch.randn(16, 16 * passes, generator=g, dtype=torch.float64)
            bandit = Bandit(table)
            Allocation(passes=passes).conduct(bandit)
            assert bandit.rows == passes * 16
            gains.append(sum(bandit.best) / 16 - table[:, :passes].amax(1).mean().item())
        gains = torch.tensor(gains)
        assert gains.mean() > 3 * gains.std() / len(gains) ** 0.5


class TestSettings:
    def test_first_passes_are_for_all(self):
        for passes, first, number in [(4, 0.5, 2), (4, 1.0, 4), (4, 0.0, 1), (1, 0.5, 1), (5.5, 0.6, 3)]:
            bandit = Bandit(torch.randn(4, 40, generator=torch.Generator().manual_seed(0)).double(), cost=6)
            Allocation(passes=passes, first=first).conduct(bandit)
            assert bandit.calls[:number] == [[0, 1, 2, 3]] * number
            assert all(len(call) == 1 for call in bandit.calls[number:])
            assert bandit.rows == 6 * int(4 * passes)

    def test_one_prompt_has_the_whole_budget(self):
        bandit = Bandit(tensor(0.0, 3.0, 1.0, 2.0).view(1, 4), cost=5)
        Allocation(passes=4).conduct(bandit)
        assert bandit.calls == [[0]] * 4 and bandit.best == [3.0]

    def test_what_the_first_pass_saves_is_spent(self):
        bandit = Bandit(torch.randn(4, 40, generator=torch.Generator().manual_seed(0)).double(), cost=6, saved=12)
        Allocation(passes=2, first=0.5).conduct(bandit)
        assert bandit.rows == 2 * 24 and len(bandit.calls) == 1 + 4 + 2

    def test_prompts_that_are_good_enough_get_no_more(self):
        bandit = Bandit(tensor(0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0).view(2, 6))
        Allocation(FKSteering(stop=2.0), passes=4).conduct(bandit)
        assert bandit.best == [0.0, 2.0] and bandit.calls[:2] == [[0, 1], [0, 1]]
        assert [1] not in bandit.calls and sum(call == [0] for call in bandit.calls) == 4

    def test_rollover_spends_what_was_saved(self):
        table = tensor(0.0, 0.2, 0.1, 0.9, 3.0, 3.0, 3.0, 3.0).view(2, 4)
        for stop, calls in [(None, 1), (Stop(1.0), 1), (Stop(1.0, rollover=True), 3), (Stop(0.0, True), 1)]:
            bandit = Bandit(table, cost=10, saved=25)
            FKSteering(stop=stop).conduct(bandit)
            assert bandit.calls == [[0, 1], *[[0]] * 2][:calls]

    def test_of_the_strategy_inside_are_its_own_unless_given(self):
        inner = FKSteering.preset("psp", seed=3)
        around = Allocation(inner)
        assert around.inner == inner and (around.num_particles, around.noise, around.seed) == (8, inner.noise, 3)
        assert Allocation("psp").inner == preset("psp") and Allocation({"strategy": "evolution"}).num_particles == 4
        assert Allocation(inner, num_particles=16).inner == inner.replace(num_particles=16)
        assert Allocation(seed=5).replace(inner="psp").inner == preset("psp")
        assert Screen(keep=3, inner="adaptive").inner == FKSteering(3)
        assert Screen(num_particles=6).replace(inner="adaptive").num_particles == 6

    @pytest.mark.parametrize(
        "make, message",
        [
            (lambda: Allocation(passes=0.5), "`passes`"),
            (lambda: Allocation(first=1.5), "`first`"),
            (lambda: Allocation(3), "Expected `inner` to be an `FKSteering`"),
            (lambda: Allocation("addaptive"), "Unknown preset 'addaptive'"),
            (lambda: Screen(num_particles=3, keep=4), "at most 3 of as many seeds, but got 4"),
            (lambda: Screen(few_steps=0), "`few_steps`"),
            (lambda: Screen(few_sampler="dpm"), "Unknown `few_sampler` 'dpm'.*dpm"),
            (lambda: Allocation(passses=2.0), "passses"),
        ],
    )
    def test_mistakes_are_told(self, make, message):
        with pytest.raises((ValueError, TypeError), match=message):
            make()

    @pytest.mark.parametrize("strategy", [Allocation(), Screen()])
    def test_rewards_have_to_be_comparable_between_passes(self, strategy):
        with pytest.raises(ValueError, match="only compares the particles of one with one another"):
            strategy.check(RewardFacts("tournament", relative=True))
