from __future__ import annotations

import itertools
import math

import pytest
import torch
from chat_server import MODEL, ChatServer

from fk_steer import Execution, FKSteering, Resampling, Schedule, load_reward, steer
from fk_steer.rewards import (
    Cascade,
    GeneralPreferenceReward,
    PairwiseReward,
    Reward,
    RewardError,
    WeightedSum,
    ZScoreSum,
)
from fk_steer.rewards.general_preference import preference_scores
from fk_steer.rewards.pairwise import mean_outcome, pairings
from fk_steer.shapes import load_pipeline
from fk_steer.smc import standardize
from fk_steer.testing import redness


PROMPTS = ["a photo of a red star", "a photo of two blue circles"]


def brightness(images, prompts):
    """A pointwise reward that also depends on the prompt."""
    return 3.0 * images.mean((1, 2, 3)) + torch.tensor([len(prompt) / 10 for prompt in prompts])


def bradley_terry(reward=brightness):
    """A comparer that knows the scores; `calls` are the numbers of pairs it was given."""

    def compare(first, second, prompts):
        compare.calls.append(len(prompts))
        return torch.sigmoid(reward(first, prompts).double() - reward(second, prompts).double())

    compare.calls = []
    return compare


def grey(*shades: int) -> torch.Tensor:
    return torch.tensor(shades).view(-1, 1, 1, 1).expand(-1, 3, 4, 4) / 255


BATCH = grey(10, 240, 90, 90, 200)


class TestPairings:
    @pytest.mark.parametrize("n", range(9))
    def test_all(self, n):
        games = pairings(range(n), None)
        assert {frozenset(game) for game in games} == {frozenset(pair) for pair in itertools.combinations(range(n), 2)}
        assert len(games) == n * (n - 1) // 2
        first = [sum(game[0] == player for game in games) for player in range(n)]
        assert not n or max(first) - min(first) <= 1

    @pytest.mark.parametrize(("opponents", "played"), [(1, 2), (2, 2), (3, 4), (4, 4), (6, 6), (7, 6), (99, 6)])
    def test_some(self, opponents, played):
        games = pairings(range(7), opponents)
        assert len({frozenset(game) for game in games}) == len(games) == 7 * played // 2
        assert all(sum(player in game for game in games) == played for player in range(7))


class TestMeanOutcome:
    def test_copies_tie(self):
        table = {(0, 1): 0.9, (1, 0): 0.1}
        assert mean_outcome([0, 0, 1], table, 0.5).tolist() == pytest.approx([(0.5 + 0.9) / 2, (0.5 + 0.9) / 2, 0.1])

    def test_only_what_was_played_counts(self):
        table = {(0, 1): 0.9, (1, 0): 0.1}
        assert mean_outcome([0, 1, 2], table, 0.5).tolist() == [0.9, 0.1, 0.5]


class TestPairwiseReward:
    def test_win_probability(self):
        compare = bradley_terry()
        reward = PairwiseReward(compare)
        assert isinstance(reward, Reward) and reward.leaves == (reward,)
        prompts = ["a", "b", "a", "a", "b"]
        scores = reward(BATCH, prompts)
        assert scores.dtype == torch.float32
        points = brightness(BATCH, prompts).double()
        for group in ([0, 2, 3], [1, 4]):
            for i in group:
                wins = [torch.sigmoid(points[i] - points[j]) for j in group if j != i]
                assert scores[i].item() == pytest.approx(sum(wins).item() / len(wins), abs=1e-6)
        assert compare.calls == [4]

    def test_log_odds(self):
        reward = PairwiseReward(bradley_terry(), statistic="log-odds", clip=1e-6)
        points = brightness(BATCH, ["a"] * 5)
        torch.testing.assert_close(reward(BATCH, ["a"] * 5), (points - points.mean()) * 5 / 4, atol=1e-5, rtol=1e-5)
        assert reward.default_lmbda == 1.0

    def test_log_odds_of_verdicts_are_finite(self):
        reward = PairwiseReward(lambda first, second, prompts: [1.0] * len(prompts), statistic="log-odds", clip=0.1)
        assert reward(grey(1, 2), ["a"] * 2).tolist() == pytest.approx([math.log(9), -math.log(9)])

    def test_one_image(self):
        compare = bradley_terry()
        assert PairwiseReward(compare)(grey(7, 8), ["a", "b"]).tolist() == [0.5, 0.5]
        assert PairwiseReward(compare, statistic="log-odds")(grey(7), ["a"]).tolist() == [0.0]
        assert compare.calls == []

    def test_infinite_scores(self):
        """Of a comparer made from a reward: -inf against -inf is a comparison that failed."""
        points = lambda images, prompts: torch.where(images[:, 0, 0, 0] > 0.5, 0.0, -torch.inf)  # noqa: E731
        scores = PairwiseReward(bradley_terry(points))(grey(10, 240, 20), ["a"] * 3)
        assert scores.tolist() == [0.25, 1.0, 0.25]

    def test_failed_comparisons(self, caplog):
        def compare(first, second, prompts):
            dark = [min(one.mean(), other.mean()) < 0.1 for one, other in zip(first, second)]
            return [None if failed else p for failed, p in zip(dark, bradley_terry()(first, second, prompts).tolist())]

        scores = PairwiseReward(compare)(grey(10, 240, 90), ["a"] * 3)
        better = torch.sigmoid(torch.tensor(3.0 * 150 / 255)).item()
        assert scores.tolist() == pytest.approx([0.5, (0.5 + better) / 2, (0.5 + 1 - better) / 2])
        assert "2 of 3 comparisons" in caplog.text
        with pytest.raises(RewardError, match="All comparisons of 'wins.compare.' for the prompt 'a' failed"):
            PairwiseReward(compare)(grey(10, 240), ["a"] * 2)

    def test_both_orders(self):
        def biased(first, second, prompts):
            return 0.2 + 0.8 * bradley_terry()(first, second, prompts)

        fair = PairwiseReward(bradley_terry())(BATCH, ["a"] * 5)
        both = PairwiseReward(biased, both_orders=True)(BATCH, ["a"] * 5)
        # (0.2 + 0.8 p + 1 - 0.2 - 0.8 (1 - p)) / 2 = 0.1 + 0.8 p
        torch.testing.assert_close(both, 0.1 + 0.8 * fair)

        def silent_if_first_is_darkest(first, second, prompts):
            return [None if a.mean() < 0.1 else p for a, p in zip(first, biased(first, second, prompts))]

        # One order of each pair with the darkest image is missing, and those pairs count as ties.
        both = PairwiseReward(silent_if_first_is_darkest, both_orders=True)(grey(10, 240, 90), ["a"] * 3)
        better = 0.1 + 0.8 * torch.sigmoid(torch.tensor(3.0 * 150 / 255)).item()
        assert both.tolist() == pytest.approx([0.5, (0.5 + better) / 2, (0.5 + 1 - better) / 2])

    def test_batches(self):
        compare = bradley_terry()
        scores = PairwiseReward(compare, batch_size=4)(BATCH, ["a"] * 5)
        assert compare.calls == [4, 4, 2]
        torch.testing.assert_close(scores, PairwiseReward(bradley_terry())(BATCH, ["a"] * 5))

    def test_pil_images_of_any_size(self):
        from llava_reward_guide.images import to_pil

        def compare(first, second, prompts):
            return [float(one.width > other.width) for one, other in zip(first, second)]

        pictures = [picture.resize((width, 5)) for picture, width in zip(to_pil(BATCH), (5, 3, 8, 9, 1))]
        assert PairwiseReward(compare)(pictures, ["a"] * 5).tolist() == [0.5, 0.25, 0.75, 1.0, 0.0]

    @pytest.mark.parametrize(
        "options", [{"opponents": 0}, {"batch_size": 0}, {"clip": 0.5}, {"statistic": "median"}], ids=str
    )
    def test_bad_options(self, options):
        with pytest.raises(ValueError, match="Expected|Unknown statistic 'median'. Known: win-probability, log-odds"):
            PairwiseReward(bradley_terry(), **options)

    @pytest.mark.parametrize("bad", [[1.5], [-0.1], [0.5, 0.5]], ids=str)
    def test_bad_comparers(self, bad):
        with pytest.raises(RewardError, match=r"1 probabilities in \[0, 1\]"):
            PairwiseReward(lambda first, second, prompts: bad)(grey(1, 2), ["a"] * 2)


def cyclic(images, prompts):
    """Three directions in the plane, one per shade: rock, paper, scissors."""
    angle = 2 * math.pi / 3 * (images[:, 0, 0, 0] * 255)
    return torch.stack([angle.cos(), angle.sin()], 1)


class TestGeneralPreference:
    @pytest.mark.parametrize("dim", [2, 6])
    def test_scores_are_the_skew_symmetric_form(self, dim):
        """With the block-diagonal R of the publication's code, R[i, i+1] = -1 and R[i+1, i] = 1."""
        v, w = torch.randn(4, dim, dtype=torch.float64), torch.randn(3, dim, dtype=torch.float64)
        R = torch.zeros(dim, dim, dtype=torch.float64)
        for i in range(0, dim, 2):
            R[i, i + 1], R[i + 1, i] = -1.0, 1.0
        scores = preference_scores(v, w)
        torch.testing.assert_close(scores, (v @ R.T) @ w.T)
        torch.testing.assert_close(scores, -preference_scores(w, v).T)
        assert preference_scores(v, v).diag().abs().max() < 1e-12
        if dim == 2:
            torch.testing.assert_close(scores[1, 2], v[1, 0] * w[2, 1] - v[1, 1] * w[2, 0])

    def test_mean_win_probability(self):
        table = torch.randn(256, 4, dtype=torch.float64)
        calls = []

        def embed(images, prompts):
            calls.append(len(images))
            return table[(images[:, 0, 0, 0] * 255).round().long()]

        scores = GeneralPreferenceReward(embed, temperature=0.5)(BATCH, ["a"] * 5)
        v = table[[10, 240, 90, 90, 200]]
        for i in range(5):
            wins = [
                torch.sigmoid((v[i, 0] * v[j, 1] - v[i, 1] * v[j, 0] + v[i, 2] * v[j, 3] - v[i, 3] * v[j, 2]) / 0.5)
                for j in range(5)
                if j != i
            ]
            assert scores[i].item() == pytest.approx(sum(wins).item() / 4, abs=1e-6)
        assert calls == [5]
        odds = GeneralPreferenceReward(embed, temperature=0.5, statistic="log-odds")(BATCH, ["a"] * 5)
        torch.testing.assert_close(odds.double(), preference_scores(v, v).sum(1) / 0.5 / 4, atol=1e-5, rtol=1e-5)

    def test_cycles(self):
        assert GeneralPreferenceReward(cyclic)(grey(0, 1, 2), ["a"] * 3).tolist() == pytest.approx([0.5] * 3)
        one, other = GeneralPreferenceReward(cyclic)(grey(0, 1), ["a"] * 2).tolist()
        assert one > 0.99 and other < 0.01

    def test_one_image(self):
        assert GeneralPreferenceReward(cyclic)(grey(0), ["a"]).tolist() == [0.5]
        assert GeneralPreferenceReward(cyclic, statistic="log-odds")(grey(0), ["a"]).tolist() == [0.0]

    @pytest.mark.parametrize(
        ("embeddings", "message"),
        [
            (torch.zeros(2, 3), r"of shape \(2, D\) with D even, but got \(2, 3\)"),
            (torch.zeros(3, 2), r"but got \(3, 2\)"),
            (torch.tensor([[0.0, 0.0], [torch.nan, 0.0]]), "for the prompt 'b' are not finite"),
        ],
    )
    def test_bad_embeddings(self, embeddings, message):
        with pytest.raises(RewardError, match=message):
            GeneralPreferenceReward(lambda images, prompts: embeddings)(grey(1, 2), ["a", "b"])

    def test_bad_options(self):
        with pytest.raises(ValueError, match="`temperature` to be above 0.0"):
            GeneralPreferenceReward(cyclic, temperature=0.0)


def rounded(images, prompts):
    """`redness` of the image as it is saved, which is what a comparer sees."""
    return redness((images * 255).round() / 255, prompts)


@pytest.fixture(scope="module")
def pipe():
    pipe = load_pipeline()
    pipe.set_progress_bar_config(disable=True)
    return pipe


def run(pipe, reward, prompts=PROMPTS, steps=5, **settings):
    sizes = {name: settings.pop(name) for name in list(settings) if name.endswith("_batch_size")}
    steering = FKSteering(**{"num_particles": 4, "lmbda": 1.0, "schedule": Schedule(at=(0.4, 0.8)), **settings})
    generator = torch.Generator().manual_seed(0)
    return steer(pipe, reward, steering, Execution(**sizes))(
        prompts, num_inference_steps=steps, guidance_scale=3.0, generator=generator, output_type="pt"
    )


class TestSteering:
    """On the bundled world, with a comparer made from a known pointwise reward."""

    def test_ranking_and_closed_form(self, pipe):
        compare = bradley_terry(rounded)
        out = run(pipe, PairwiseReward(compare))
        points = rounded(out.particles.flatten(0, 1), []).view(2, 4).double()
        assert (points.diff(dim=1) <= 0).all()
        wins = torch.sigmoid(points[:, :, None] - points[:, None, :]).sum(2).sub(0.5) / 3
        torch.testing.assert_close(out.rewards.double(), wins, atol=1e-5, rtol=1e-5)
        # Three events, all pairs of both prompts at once, the copies that are still equal not compared.
        assert len(compare.calls) == 3 and max(compare.calls) <= 12 and compare.calls[0] == 12
        assert all(math.isnan(value) for value in out.trace.log_normalizer)
        assert out.trace.reward_calls_by_part == {"wins(compare)": sum(out.trace.reward_calls_by_part.values())}

    @pytest.mark.parametrize("kind", ["comparer", "embedding"])
    def test_log_odds_steer_as_the_pointwise_reward(self, pipe, kind):
        """Bradley-Terry log-odds differ from the scores by a constant per prompt and the factor K / (K - 1)."""
        if kind == "comparer":
            relative = PairwiseReward(bradley_terry(rounded), statistic="log-odds", clip=1e-9)
        else:
            # (s, 1): s_ij = s_i - s_j.
            relative = GeneralPreferenceReward(
                lambda images, prompts: torch.stack([rounded(images, prompts), torch.ones(len(images))], 1),
                temperature=1.0,
                statistic="log-odds",
            )
        pointwise = run(pipe, rounded, lmbda=1.0, resampling=Resampling())
        pairwise = run(pipe, relative, lmbda=0.75, resampling=Resampling())
        assert any(any(event.resampled) for event in pointwise.trace.events)
        assert torch.equal(pointwise.particles, pairwise.particles)
        torch.testing.assert_close(pointwise.log_weights, pairwise.log_weights, atol=1e-4, rtol=1e-4)

    def test_blocks_do_not_matter(self, pipe):
        whole = run(pipe, PairwiseReward(bradley_terry(rounded)))
        for sizes in (
            {"decode_batch_size": 3, "reward_batch_size": 2},
            {"decode_batch_size": 1},
            {"reward_batch_size": 1},
        ):
            blocks = run(pipe, PairwiseReward(bradley_terry(rounded)), **sizes)
            torch.testing.assert_close(blocks.particles, whole.particles, atol=1e-4, rtol=1e-4)
            torch.testing.assert_close(blocks.rewards, whole.rewards, atol=1e-3, rtol=1e-3)

    def test_populations_of_one_prompt_are_apart(self, pipe):
        """The same prompt twice in a batch is two populations, each compared within itself."""
        both = run(pipe, PairwiseReward(bradley_terry(rounded)), prompts=PROMPTS[:1] * 2)
        points = rounded(both.particles.flatten(0, 1), []).view(2, 4).double()
        wins = torch.sigmoid(points[:, :, None] - points[:, None, :]).sum(2).sub(0.5) / 3
        torch.testing.assert_close(both.rewards.double(), wins, atol=1e-5, rtol=1e-5)

    def test_shrinking_populations(self, pipe):
        steering = FKSteering.preset("psp", num_particles=4)
        options = {
            name: getattr(steering, name) for name in ("potential", "resampling", "tempering", "schedule", "noise")
        }
        compare = bradley_terry(rounded)
        relative = run(pipe, PairwiseReward(compare), **options)
        pointwise = run(pipe, rounded, **options)
        assert torch.equal(relative.particles, pointwise.particles)
        assert [len(event.rewards[0]) for event in relative.trace.events] == [4, 2, 1]
        assert compare.calls == [12, 2]
        assert relative.rewards.tolist() == [[0.5], [0.5]]

    def test_one_particle(self, pipe):
        assert run(pipe, PairwiseReward(bradley_terry(rounded)), num_particles=1).rewards.tolist() == [[0.5], [0.5]]

    def test_in_sums(self, pipe):
        """Sums see all particles of a prompt too, in blocks of one image."""
        wins = PairwiseReward(bradley_terry(rounded))
        for composite in (WeightedSum({wins: 2.0, rounded: 0.5}), ZScoreSum({wins: 1.0, rounded: 1.0})):
            out = run(pipe, composite, reward_batch_size=1, schedule=Schedule())
            points = rounded(out.particles.flatten(0, 1), []).view(2, 4).double()
            expected = torch.sigmoid(points[:, :, None] - points[:, None, :]).sum(2).sub(0.5) / 3
            if isinstance(composite, WeightedSum):
                expected = 2.0 * expected + 0.5 * points
            else:
                expected = standardize(expected) + standardize(points)
            torch.testing.assert_close(out.rewards.double(), expected, atol=1e-4, rtol=1e-4)
            assert math.isnan(out.trace.log_normalizer[0])

        def nothing(images, prompts):
            return torch.full((len(prompts),), torch.nan)

        with pytest.raises(
            RewardError, match="Reward 'nothing' returned NaN at step 1 for the prompt 'a photo of a red star'"
        ):
            run(pipe, WeightedSum({nothing: 1.0, wins: 1.0}))
        judged = WeightedSum({PairwiseReward(bradley_terry()): 2.0, brightness: 1.0})
        expected = 2.0 * PairwiseReward(bradley_terry())(BATCH, ["a"] * 5) + brightness(BATCH, ["a"] * 5)
        torch.testing.assert_close(judged(BATCH, ["a"] * 5), expected)
        assert judged.relative and not WeightedSum({brightness: 1.0}).relative

    def test_in_a_cascade(self, pipe):
        cascade = Cascade(rounded, PairwiseReward(bradley_terry(rounded)), switch=0.6)
        out = run(pipe, cascade)
        first, *others = out.trace.events
        assert list(first.scores) == ["rounded"]
        assert all(list(event.scores) == ["wins(compare)"] for event in others)
        points = rounded(out.particles.flatten(0, 1), []).view(2, 4)
        assert (points.diff(dim=1) <= 0).all()

    def test_chat_judges(self, pipe):
        """Over HTTP: pair ranking gives the ranking of the score, and a judge that falters does not stop the run."""
        with ChatServer() as server:
            points = load_reward("unified-reward", model=MODEL, base_url=server.url)
            pairs = load_reward("unified-reward", variant="pair", model=MODEL, base_url=server.url)
            out = run(pipe, pairs, reward_batch_size=1)
            scores = points(out.particles.flatten(0, 1), ["x"] * 8).view(2, 4)
            assert (scores.diff(dim=1) <= 0).all()
            before = len(server.requests)
            server.reply = lambda text, pictures: "Final Score: 3" if len(server.requests) % 3 else "Hm."
            out = run(pipe, points, reward_batch_size=1)
            assert out.rewards.tolist() == [[3.0] * 4] * 2
            assert len(server.requests) > before and points.counts.unparsed > 0
