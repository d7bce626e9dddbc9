"""Rewards that choose among finished images: ensembles, and cascades whose expensive reward sees finalists alone."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from fk_steer import FKSteering, preset, steer
from fk_steer.rewards import (
    Cascade,
    Clipped,
    Ensemble,
    Finalists,
    Majority,
    PairwiseReward,
    Reward,
    WeightedSum,
    ZScoreSum,
)
from fk_steer.testing import PROMPTS, SIZE, redness, row_generators, sd


class Given(Reward):
    """Scores by the images' first pixel, and remembers which it was asked about."""

    def __init__(self, values: list[float], name: str = "given") -> None:
        self.values, self.name = torch.tensor(values), name
        self.asked: list[list[int]] = []

    def __call__(self, images: Tensor, prompts: list[str]) -> Tensor:
        which = (images[:, 0, 0, 0] * 255).round().long()
        self.asked.append(which.tolist())
        return self.values[which]


def numbered(count: int) -> Tensor:
    """Images that are told apart by their first pixel."""
    return (torch.arange(count) / 255).view(-1, 1, 1, 1).expand(count, 3, 4, 4).clone()


def brightness(images: Tensor, prompts: list[str]) -> Tensor:
    return images.mean((1, 2, 3))


A, B = [0.0, 1.0, 2.0, 5.0], [3.0, 1.0, 2.0, 0.0]


def z(values: list[float]) -> Tensor:
    tensor = torch.tensor(values, dtype=torch.float64)
    return (tensor - tensor.mean()) / tensor.std(correction=0)


class TestMajority:
    def test_is_the_share_of_the_others_that_most_rewards_like_less(self):
        # Of [0, 1, 2, 3]: two rewards agree on that order, one turns it round.
        up, down = [0.0, 1.0, 2.0, 3.0], [300.0, 200.0, 100.0, 0.0]
        found = Majority([Given(up), Given(up), Given(down)])(numbered(4), ["a"] * 4)
        torch.testing.assert_close(found, torch.tensor([0.0, 1 / 3, 2 / 3, 1.0]))

    def test_a_cycle_is_a_draw(self):
        votes = [[2.0, 1.0, 0.0], [0.0, 2.0, 1.0], [1.0, 0.0, 2.0]]
        found = Majority([Given(one) for one in votes])(numbered(3), ["a"] * 3)
        torch.testing.assert_close(found, torch.full((3,), 0.5))

    def test_undecided_pairs_and_equal_scores_are_halves(self):
        found = Majority([Given(A), Given(B)])(numbered(4), ["a"] * 4)
        # A: 0 < 1 < 2 < 3 in place; B: 3 > 1, 2 > 1, and image 0 best.
        torch.testing.assert_close(found, torch.tensor([0.5, 1 / 3, 2 / 3, 0.5]))
        assert Majority([Given(A)])(numbered(1), ["a"]).tolist() == [0.5]

    def test_infinities_vote_like_any_score(self):
        found = Majority([Given([-math.inf, 0.0, math.inf])])(numbered(3), ["a"] * 3)
        torch.testing.assert_close(found, torch.tensor([0.0, 0.5, 1.0]))

    def test_steers_and_says_that_it_compares(self):
        both = Majority([redness, brightness])
        assert both.relative and both.name == "majority(redness, brightness)"
        output = steer(sd(), both, preset("adaptive"))(PROMPTS, num_inference_steps=8, **SIZE)
        assert ((output.rewards >= 0) & (output.rewards <= 1)).all()
        assert math.isnan(output.trace.log_normalizer[0])

    @pytest.mark.parametrize("parts, error", [([], ValueError), ({redness: 1.0}, TypeError), ([3], TypeError)])
    def test_errors(self, parts, error):
        with pytest.raises(error):
            Majority(parts)


class TestEnsemble:
    def test_is_the_mean_less_kappa_standard_deviations(self):
        for kappa in (0.0, 0.5, 2.0):
            found = Ensemble([Given(A), Given(B)], kappa)(numbered(4), ["a"] * 4)
            wanted = (z(A) + z(B)) / 2 - kappa * (z(A) - z(B)).abs() / 2
            torch.testing.assert_close(found, wanted.float())

    def test_three_parts(self):
        C = [1.0, 1.0, 0.0, 7.0]
        found = Ensemble([Given(A), Given(B), Given(C)], 1.5)(numbered(4), ["a"] * 4)
        parts = torch.stack([z(A), z(B), z(C)])
        torch.testing.assert_close(found, (parts.mean(0) - 1.5 * parts.std(0, correction=0)).float())

    def test_without_kappa_ranks_as_the_sum_of_z_scores(self):
        one, other = Ensemble([Given(A), Given(B)]), ZScoreSum({Given(A): 1.0, Given(B): 1.0})
        torch.testing.assert_close(2 * one(numbered(4), ["a"] * 4), other(numbered(4), ["a"] * 4))
        assert one.default_lmbda == pytest.approx(2 * other.default_lmbda)

    def test_kappa_prefers_what_all_find_fairly_good(self):
        values = [[4.0, 2.0, 0.0, 0.0], [0.0, 2.0, 1.0, 0.0]]
        agreed = Ensemble([Given(some) for some in values], kappa=1.0)(numbered(4), ["a"] * 4)
        assert agreed.argmax() == 1

    def test_infinities_decide(self):
        values = Ensemble([Given([math.inf, 1.0, -math.inf, 2.0]), Given(B)], kappa=1.0)(numbered(4), ["a"] * 4)
        assert values[0] == math.inf and values[2] == -math.inf and values[[1, 3]].isfinite().all()
        opposed = Ensemble([Given([math.inf, 1.0]), Given([-math.inf, 1.0])], kappa=1.0)
        assert opposed(numbered(2), ["a"] * 2)[0].isnan()

    def test_is_a_reward_like_others(self):
        nested = WeightedSum({Ensemble([redness, Cascade(brightness, redness)], 0.5): 2.0, Clipped(brightness): 1.0})
        output = steer(sd(), nested, FKSteering(seed=0))(PROMPTS, **CALL)
        assert output.rewards.isfinite().all()
        both = Ensemble([redness, brightness], 0.5)
        assert both.relative and both.default_lmbda == pytest.approx(2 * math.sqrt(2))
        assert both.name == "mean(z(redness), z(brightness)) - 0.5 * sd"
        assert Ensemble([redness]).name == "mean(z(redness))"

    @pytest.mark.parametrize(
        "make, error, message",
        [
            (lambda: Ensemble([]), ValueError, "at least one reward"),
            (lambda: Ensemble({redness: 1.0}), TypeError, "a list of rewards.*`ZScoreSum` takes weights"),
            (lambda: Ensemble("clip-score"), TypeError, "a list of rewards, but got 'clip-score'"),
            (lambda: Ensemble([redness], kappa=-1.0), ValueError, "`kappa`"),
            (lambda: Ensemble([redness], kappa=math.nan), ValueError, "`kappa`"),
            (lambda: Ensemble([redness, 3]), TypeError, "3"),
        ],
    )
    def test_mistakes(self, make, error, message):
        with pytest.raises(error, match=message):
            make()


CALL = {**SIZE, "num_inference_steps": 6, "output_type": "pt"}


class TestFinalists:
    def test_the_expensive_one_decides_among_the_best_of_the_cheap_one(self):
        cheap, expensive = Given([1.0, 4.0, 3.0, 2.0, 0.0]), Given([9.0, 1.0, 3.0, 2.0, 8.0])
        found = Finalists(cheap, expensive, keep=3)(numbered(5), ["a"] * 5)
        low = z([1.0, 3.0, 2.0])
        torch.testing.assert_close(found[[1, 2, 3]], low.float())
        torch.testing.assert_close(found[[0, 4]], (low.min() - torch.tensor([1.0, 2.0])).float())
        assert cheap.asked == [[0, 1, 2, 3, 4]] and expensive.asked == [[1, 2, 3]]

    def test_prompts_have_finalists_of_their_own(self):
        cheap, expensive = Given([1.0, 4.0, 3.0, 2.0, 0.0, 5.0]), Given([0.0, 1.0, 3.0, 2.0, 8.0, 9.0])
        found = Finalists(cheap, expensive, keep=2)(numbered(6), ["a", "b"] * 3)
        assert expensive.asked == [[0, 1, 2, 5]]
        assert found.tolist() == [-1.0, -1.0, 1.0, -2.0, -2.0, 1.0]

    @pytest.mark.parametrize("keep", [1, 5, 99])
    def test_as_many_as_there_are(self, keep):
        expensive = Given([9.0, 1.0, 3.0, 2.0, 8.0])
        found = Finalists(Given([1.0, 4.0, 3.0, 2.0, 0.0]), expensive, keep)(numbered(5), ["a"] * 5)
        assert expensive.asked == [[1] if keep == 1 else [0, 1, 2, 3, 4]]
        assert found.argmax() == (1 if keep == 1 else 0)

    def test_ties_and_infinities_of_the_cheap_one(self):
        tied = Given([1.0, 1.0, 1.0, 0.0])
        expensive = Given([0.0, 5.0, 9.0, 9.0])
        assert Finalists(tied, expensive, 2)(numbered(4), ["a"] * 4).tolist() == [-1.0, 1.0, -2.0, -3.0]
        found = Finalists(Given([-math.inf, 2.0, -math.inf, math.inf]), expensive, 3)(numbered(4), ["a"] * 4)
        assert found.argmax() == 3 and found[0] == found[2] == -math.inf

    def test_rewards_that_compare_see_finalists_alone(self):
        seen = []

        def compare(first, second, prompts):
            seen.append(len(first))
            return torch.sigmoid(first[:, 0, 0, 0] - second[:, 0, 0, 0])

        pairs = PairwiseReward(compare)
        found = Finalists(Given([0.0, 4.0, 3.0, 2.0, 0.0]), pairs, 3)(numbered(5), ["a"] * 5)
        assert sum(seen) == 3, "pairs of three"
        assert found.argmax() == 3

    @pytest.mark.parametrize(
        "wrap, behind",
        [
            (lambda cheap, dear: Finalists(Finalists(cheap, dear[0], 3), dear[1], 2), [3, 2]),
            (lambda cheap, dear: Finalists(cheap, Finalists(dear[0], dear[1], 2), 4), [4, 2]),
            (lambda cheap, dear: WeightedSum({Finalists(cheap, dear[0], 2): 1.0, dear[1]: 0.1}), [2, 5]),
            (lambda cheap, dear: Ensemble([Finalists(cheap, dear[0], 2), Finalists(cheap, dear[0], 4)]), [4, 0]),
            (lambda cheap, dear: Ensemble([Finalists(cheap, cheap, 2), dear[0], dear[1]], 1.0), [5, 5]),
            (lambda cheap, dear: Finalists(cheap, WeightedSum({dear[0]: 1.0, dear[1]: 1.0, cheap: 1.0}), 2), [2, 2]),
        ],
    )
    def test_inside_others(self, wrap, behind):
        """Everyone is scored at most once by each."""
        cheap = Given([1.0, 4.0, 3.0, 2.0, 0.0], "cheap")
        dear = [Given([9.0, 1.0, 3.0, 2.0, 8.0], "one"), Given([2.0, 1.0, 0.0, 5.0, 8.0], "two")]
        values = wrap(cheap, dear)(numbered(5), ["a"] * 5)
        assert values.isfinite().all()
        assert sorted(cheap.asked[0]) == [0, 1, 2, 3, 4] and len(cheap.asked) == 1
        asked = [[i for call in one.asked for i in call] for one in dear]
        assert all(len(set(some)) == len(some) for some in asked)
        assert [len(some) for some in asked] == behind

    def test_a_nan_of_a_finalist_is_not_asked_for_for_ever(self):
        expensive = Given([math.nan] * 4)
        assert Finalists(Given(A), expensive, 2)(numbered(4), ["a"] * 4)[[2, 3]].isnan().all()
        assert expensive.asked == [[2, 3]]

    @pytest.mark.parametrize("keep", [0, -1, 1.5, "two"])
    def test_bad_numbers(self, keep):
        with pytest.raises(ValueError, match="`keep`"):
            Finalists(redness, brightness, keep)


class TestSteeringByFinalists:
    @pytest.mark.parametrize("output_type", ["pt", "latent"])
    @pytest.mark.parametrize("keep", [1, 2, 4])
    def test_counts_and_choice(self, keep, output_type):
        """The trace counts what was scored, and the images are those of the cheap reward, in another order."""
        settings = preset("best-of-n", num_particles=4)
        call = {**CALL, "output_type": output_type}
        output = steer(sd(), Finalists(redness, brightness, keep), settings)(
            PROMPTS, generator=row_generators(0, 1), **call
        )
        plain = steer(sd(), redness, settings)(PROMPTS, generator=row_generators(0, 1), **call)
        dear = steer(sd(), brightness, settings)(PROMPTS, generator=row_generators(0, 1), **call)
        assert output.trace.reward_calls_by_part == {"redness": 8, "brightness": 2 * keep}
        assert output.trace.reward_calls == 8 + 2 * keep
        (event,) = output.trace.events
        for p in range(2):
            cheap = torch.tensor(event.scores["redness"][p])
            scored = torch.tensor(event.scores["brightness"][p])
            finalists = cheap.argsort(descending=True)[:keep]
            assert scored.isfinite().nonzero().flatten().tolist() == sorted(finalists.tolist())
            known = torch.tensor(dear.trace.events[0].rewards[p])
            assert scored[finalists].tolist() == pytest.approx(known[finalists].tolist(), abs=1e-6)
            assert cheap.tolist() == pytest.approx(plain.trace.events[0].rewards[p], abs=1e-6)
            best = finalists[known[finalists].argmax()].item()
            place = torch.tensor(plain.trace.events[0].rewards[p]).argsort(descending=True).tolist().index(best)
            torch.testing.assert_close(output.particles[p, 0], plain.particles[p, place], atol=1e-5, rtol=1e-5)

    def test_the_cheap_one_alone_counts_along_the_loop(self):
        settings = FKSteering(4, schedule=(0.3, 0.6), seed=0)
        output = steer(sd(), Finalists(redness, brightness, 2), settings)(PROMPTS, **CALL)
        *early, last = output.trace.events
        assert [list(event.scores) for event in early] == [["redness"]] * 2
        assert list(last.scores) == ["redness", "brightness"]
        by_part = output.trace.reward_calls_by_part
        assert by_part["redness"] == 24 and 2 <= by_part["brightness"] <= 4
        assert math.isnan(output.trace.log_normalizer[0])

    def test_thumbnails_are_those_of_everyone(self):
        settings = preset("best-of-n", num_particles=4)
        steered = steer(sd(), Finalists(redness, brightness, 1), settings)
        output = steered(PROMPTS, generator=row_generators(0, 1), keep_predictions=True, **CALL)
        pictures = output.trace.events[0].predictions
        assert [len(set(row)) for row in pictures] == [4, 4]

    def test_a_target_is_refused(self):
        with pytest.raises(ValueError, match="a scale of its own"):
            steer(sd(), Finalists(redness, brightness, 2), FKSteering(stop=1.0))

    def test_a_trace_with_unscored_particles_is_saved(self, tmp_path):
        output = steer(sd(), Finalists(redness, brightness, 1), preset("best-of-n"))(PROMPTS[0], **CALL)
        output.trace.save(tmp_path / "trace.json")
        again = type(output.trace).load(tmp_path / "trace.json")
        assert sum(map(math.isnan, again.events[0].scores["brightness"][0])) == 3
