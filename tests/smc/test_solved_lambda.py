"""The lambda that meets a target ESS, against plain bisection."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from fk_steer.smc import Current, Difference, FeynmanKac, Resampling, TargetESS, effective_sample_size


INFINITY = float("inf")


def bisected(log_weights_at: Callable[[Tensor], Tensor], lowest: Tensor, highest: Tensor, ess: float) -> Tensor:
    """What `TargetESS.solve` has to find, by a hundred halvings."""

    def keeps_target(lmbda: Tensor) -> Tensor:
        lw = log_weights_at(lmbda)
        return effective_sample_size(lw) >= 1 + ess * ((lw > -torch.inf).sum(1).double() - 1)

    low, high = lowest.clone(), highest.clone()
    for _ in range(100):
        middle = (low + high) / 2
        keeps = keeps_target(middle)
        low, high = torch.where(keeps, middle, low), torch.where(keeps, high, middle)
    return torch.where(keeps_target(highest), highest, low)


KINDS: dict[str, Callable[[int, int], Tensor]] = {
    "normal": lambda P, K: torch.randn(P, K),
    "heavy tails": lambda P, K: torch.distributions.StudentT(1.2).sample((P, K)),
    "log-normal": lambda P, K: (2 * torch.randn(P, K)).exp(),
    "ties": lambda P, K: torch.randint(0, 3, (P, K)).float(),
    "near ties": lambda P, K: torch.randint(0, 3, (P, K)) + 1e-4 * torch.randn(P, K),
    "several close to the best": lambda P, K: torch.where(torch.rand(P, K) < 0.5, 1e-3, 1.0) * torch.randn(P, K),
}
SIZES = (2, 3, 4, 5, 8, 17, 64)


class Counted:
    """Counts how often the weights are looked at."""

    def __init__(self, log_weights_at: Callable[[Tensor], Tensor]) -> None:
        self.log_weights_at, self.count = log_weights_at, 0

    def __call__(self, lmbda: Tensor) -> Tensor:
        self.count += 1
        return self.log_weights_at(lmbda)


def case(kind: str, P: int, K: int, carried: bool, scale: float) -> tuple[Callable[[Tensor], Tensor], Tensor, Tensor]:
    """Log-weights with what a path has been given already, and a bracket of 50 nats."""
    rewards = KINDS[kind](P, K).double() * scale
    given, lowest = torch.zeros(P, K).double(), torch.zeros(P).double()
    if carried:
        before = rewards + 0.7 * scale * torch.randn(P, K)
        lowest = 1 / before.std(1)
        given = lowest[:, None] * before
    gap = rewards.amax(1) - rewards.amin(1)
    highest = torch.where(gap > 0, lowest + 50 / gap, lowest)
    return lambda lmbda: lmbda[:, None] * rewards - given, lowest, highest


def is_the_same(found: Tensor, wanted: Tensor, log_weights_at: Callable[[Tensor], Tensor]) -> Tensor:
    """Equal, or where the ESS hardly depends on lambda, with the same ESS to rounding."""
    sizes = [effective_sample_size(log_weights_at(lmbda)) for lmbda in (found, wanted)]
    alike = (sizes[0] - sizes[1]).abs() <= 1e-13 * sizes[1]
    nearly = (found - wanted).abs() <= 1e-3 * wanted
    return ((found - wanted).abs() <= 1e-10 * wanted) | (alike & nearly)


@pytest.mark.parametrize("carried", [False, True], ids=["first event", "weights carried"])
@pytest.mark.parametrize("kind", KINDS)
def test_lambda_is_that_of_bisection(kind, carried):
    """8 targets and scales x 7 sizes x 40 populations, each kind: 2240 cases."""
    torch.manual_seed(0)
    looks, differ = [], 0
    for K in SIZES:
        for ess, scale in zip((1 / 3, 0.5, 0.05, 0.9, 1 / 3, 1 / 3, 0.2, 0.6), (1, 1, 1, 1, 1e-6, 1e6, 1e3, 1e-3)):
            log_weights_at, lowest, highest = case(kind, 40, K, carried, scale)
            counted = Counted(log_weights_at)
            found = TargetESS(ess).solve(counted, lowest, highest)
            looks.append(counted.count)
            assert ((lowest <= found) & (found <= highest)).all()
            differ += (~is_the_same(found, bisected(log_weights_at, lowest, highest, ess), log_weights_at)).sum().item()
    assert differ == 0
    # All populations at once take as many as the worst of them.
    assert max(looks) <= 30


@pytest.mark.parametrize("carried", [False, True], ids=["first event", "weights carried"])
@pytest.mark.parametrize("kind", KINDS)
def test_few_looks_at_the_weights(kind, carried):
    torch.manual_seed(1)
    looks = []
    for K in SIZES:
        for _ in range(40):
            log_weights_at, lowest, highest = case(kind, 1, K, carried, 1.0)
            counted = Counted(log_weights_at)
            TargetESS().solve(counted, lowest, highest)
            looks.append(counted.count)
    assert sum(looks) / len(looks) <= 10
    assert max(looks) <= 25


def test_populations_do_not_depend_on_one_another():
    """What is solved together is what each is alone, to the bit."""
    torch.manual_seed(2)
    rewards = torch.cat([KINDS[kind](20, 6).double() for kind in KINDS])
    together = FeynmanKac(None, tempering=TargetESS()).weigh(
        FeynmanKac(None, tempering=TargetESS()).start(*rewards.shape), rewards, 0.5
    )
    for p, row in enumerate(rewards):
        model = FeynmanKac(None, tempering=TargetESS())
        assert model.weigh(model.start(1, 6), row[None], 0.5).lmbda.item() == together.lmbda[p].item()


def test_log_weights_that_are_not_linear_are_solved_too():
    """The answer is bracketed, whatever the function is like."""
    torch.manual_seed(3)
    rewards = torch.randn(200, 6).double()
    for bend in (lambda x: x**3, lambda x: x.sqrt(), lambda x: x.exp() - 1):
        counted = Counted(lambda lmbda, bend=bend: bend(lmbda)[:, None] * rewards)
        lowest, highest = torch.zeros(200).double(), torch.full((200,), 20.0).double()
        found = TargetESS().solve(counted, lowest, highest)
        wanted = bisected(counted.log_weights_at, lowest, highest, 1 / 3)
        assert torch.allclose(found, wanted, rtol=1e-10)
        assert counted.count <= 30


def test_the_ends_of_the_bracket():
    rewards = torch.tensor([[0.0, 1.0, 2.0, 3.0]]).double()

    def log_weights_at(lmbda: Tensor) -> Tensor:
        return lmbda[:, None] * rewards

    def solve(lowest: float, highest: float) -> float:
        ends = torch.tensor([[lowest], [highest]], dtype=torch.float64)
        return TargetESS().solve(log_weights_at, *ends).item()

    assert solve(0.0, 0.1) == 0.1, "even that leaves more than the target"
    assert solve(5.0, 50.0) == 5.0, "even that is too much"
    assert solve(3.0, 3.0) == 3.0
    assert 0.1 < solve(0.0, 50.0) == pytest.approx(solve(0.1, 5.0), rel=1e-12)


@pytest.mark.parametrize(
    "rewards, weights",
    [
        ([5.0, 5.0, 5.0, 5.0], [0.25] * 4),
        ([1.0, 1.0, 0.0, 0.0], [0.5, 0.5, 0.0, 0.0]),
        ([1.0, 1.0, 0.5, 0.0], [0.5, 0.5, 0.0, 0.0]),
        ([1.0, 1.0, 1.0, 0.0], [1 / 3, 1 / 3, 1 / 3, 0.0]),
        ([1.0, 1.0, 1.0 - 1e-9, 0.0], [1 / 3, 1 / 3, 1 / 3, 0.0]),
        ([INFINITY, 1.0, 1.0, 0.0], [1.0, 0.0, 0.0, 0.0]),
        ([INFINITY, INFINITY, 1.0, 0.0], [0.5, 0.5, 0.0, 0.0]),
        ([1.0, 1.0, -INFINITY, -INFINITY], [0.5, 0.5, 0.0, 0.0]),
    ],
    ids=str,
)
def test_ties_and_infinities(rewards, weights):
    """Those that tie share what the target leaves them, and infinite rewards decide."""
    model = FeynmanKac(None, tempering=TargetESS())
    state = model.weigh(model.start(1, 4), torch.tensor([rewards]).double(), 0.5)
    assert state.lmbda.isfinite().all()
    total = state.weights.normalized[0]
    best = [w for w in weights if w]
    assert total[: len(best)].tolist() == pytest.approx(best, abs=0.03)


@pytest.mark.parametrize("unit", [1e-310, 1e-290, 1e-20, 1e20, 1e290])
def test_rewards_of_any_scale(unit):
    """Lambda stays finite where 50 nats over a gap are beyond what a number can be."""
    model = FeynmanKac(None, tempering=TargetESS())
    state = model.weigh(model.start(1, 4), unit * torch.tensor([[0.0, 1.0, 2.0, 4.0]]).double(), 0.5)
    assert state.lmbda.isfinite().all() and state.lmbda > 0
    if unit > 1e-300:
        assert state.weights.ess.item() == pytest.approx(2.0, rel=1e-9)


def test_a_limit_holds_and_a_limit_of_zero_leaves_infinities_alone():
    limited = FeynmanKac(1e-3, tempering=TargetESS())
    state = limited.weigh(limited.start(1, 3), torch.tensor([[1.0, 2.0, -INFINITY]]).double(), 0.5)
    assert state.lmbda.item() == 1e-3
    assert state.weights.normalized[0].tolist() == pytest.approx([0.49975, 0.50025, 0.0], abs=1e-6)
    rewards = torch.tensor([[INFINITY, 1.0, 2.0, -INFINITY]]).double()
    unmoved = FeynmanKac(0.0, tempering=TargetESS())
    assert unmoved.weigh(unmoved.start(1, 4), rewards, 0.5).weights.normalized.tolist() == [[0.25] * 4]


@pytest.mark.parametrize("potential", [Difference(), Current()])
def test_a_run_of_events_meets_the_target(potential):
    """Weights that were carried and paths that telescope, event after event."""
    torch.manual_seed(4)
    model = FeynmanKac(None, potential, TargetESS(), Resampling())
    state, rewards = model.start(64, 4), torch.randn(64, 4).double()
    for count in range(6):
        before = state
        state = model.weigh(state, rewards, 0.3 + 0.1 * count)
        risen = state.lmbda > before.lmbda
        assert torch.allclose(state.weights.ess[risen], torch.tensor(2.0).double(), rtol=1e-9)
        assert risen.sum() > 10
        ancestors, resampled = model.select(state, None, torch.Generator().manual_seed(count))
        state = model.follow(state, ancestors, resampled)
        rewards = rewards.gather(1, ancestors) + 0.5 * torch.randn(64, 4)
