"""Resampling: from log-weights to ancestor indices.

Notation, as in Chopin & Papaspiliopoulos, *An Introduction to Sequential Monte Carlo* (2020), chapter 9:

| symbol | meaning | shape |
|---|---|---|
| `lw` | log-weights, any additive constant per row | (P, K) |
| `W` | normalised weights, rows sum to one | (P, K) |
| `M` | number of offspring | int |
| `A` | ancestors: `A[p, m]` is the parent of offspring `m` in population `p`, in `[0, K)` | (P, M) |

P populations (one per prompt) are resampled independently and at once. Every scheme has the signature
`scheme(lw, M=None, generator=None) -> A`; `M=None` means `M = K`. All but `top_k` and `argmax` are unbiased:
`E[number of offspring of k] = M * W[k]`. When `M = K`, survivors keep their index (`A[p, k] = k` if `k` survives)
for every scheme but `multinomial`, which returns its draws in the order drawn, and `argmax`.

`generator` is one `torch.Generator` or a list of P of them. With a list, a population's ancestors do not depend on
which other populations share the batch. Weights are handled in float64 on the CPU: they are a handful of numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .checks import flag, real
from .names import Keywords, is_named, unknown
from .weights import Weights, checked, normalize


Generators = torch.Generator | Sequence[torch.Generator] | None
Resampler = Callable[..., Tensor]


def ssp(lw: Tensor, M: int | None = None, generator: Generators = None) -> Tensor:
    """Srinivasan sampling process: counts in {floor(M W), ceil(M W)} that are negatively associated.

    The fractional parts of `M W` meet in pairs; each meeting settles one of the two at an integer and hands the rest
    to the other, keeping both expectations (Srinivasan, FOCS 2001). Unlike `systematic` it is consistent whatever the
    order of the particles (Gerber, Chopin & Whiteley, Ann. Stat. 2019). Pairs meet as in a knock-out tournament, so P
    populations of K particles take ceil(log2 K) vectorised rounds. Uniform weights with M = K return the identity.
    """
    expected = _expected_offspring(lw, M)
    counts = expected.floor()
    fraction = expected - counts
    P, K = fraction.shape
    owner = torch.arange(K).expand(P, K)
    uniforms = _uniforms(P, K, generator)
    while (n := fraction.shape[1]) > 1:
        half = n // 2
        a, b = fraction[:, :half], fraction[:, half : 2 * half]
        owner_a, owner_b = owner[:, :half], owner[:, half : 2 * half]
        total = a + b
        # The last meetings add up to exactly 1 but for rounding, which must not decide who wins.
        reaches_one = total >= 1 - 1e-9
        a_settles = uniforms[:, :half] < torch.where(reaches_one, (1 - b) / (2 - total), b / total)
        counts.scatter_add_(1, torch.where(a_settles, owner_a, owner_b), reaches_one.to(counts.dtype))
        fraction = torch.cat([(total - reaches_one.to(total.dtype)).clamp(min=0), fraction[:, 2 * half :]], dim=1)
        owner = torch.cat([torch.where(a_settles, owner_b, owner_a), owner[:, 2 * half :]], dim=1)
        uniforms = uniforms[:, half:]
    # The fractions sum to an integer, so the last one standing is 0 or 1 up to rounding.
    counts.scatter_add_(1, owner, fraction.round())
    return _ancestors(counts, M or K)


def systematic(lw: Tensor, M: int | None = None, generator: Generators = None) -> Tensor:
    """One uniform per population, M equally spaced points on the cumulated weights; counts in {floor, ceil} of M W.

    Uniform weights with M = K return the identity.
    """
    expected = _expected_offspring(lw, M)
    P, K = expected.shape
    points = torch.arange(M or K) + _uniforms(P, 1, generator)
    return _ancestors(_counts_at(expected, points), M or K)


def stratified(lw: Tensor, M: int | None = None, generator: Generators = None) -> Tensor:
    """One uniform point in each of M equal strata of the cumulated weights."""
    expected = _expected_offspring(lw, M)
    P, K = expected.shape
    points = torch.arange(M or K) + _uniforms(P, M or K, generator)
    return _ancestors(_counts_at(expected, points), M or K)


def residual(lw: Tensor, M: int | None = None, generator: Generators = None) -> Tensor:
    """Residual resampling: floor(M W) offspring for certain, the rest drawn from the fractional parts; counts are at
    least floor(M W)."""
    expected = _expected_offspring(lw, M)
    P, K = expected.shape
    counts = expected.floor()
    fraction = expected - counts
    left = ((M or K) - counts.sum(1, keepdim=True)).round()
    cumulated = _pin_last(fraction.cumsum(1), left)
    draws = torch.searchsorted(cumulated, _uniforms(P, M or K, generator) * left, right=True).clamp(max=K - 1)
    wanted = torch.arange(M or K).expand(P, -1) < left
    counts.scatter_add_(1, draws, wanted.to(counts.dtype))
    return _ancestors(counts, M or K)


def multinomial(lw: Tensor, M: int | None = None, generator: Generators = None) -> Tensor:
    """M independent draws from W, in the order drawn. The highest variance of all; the published FK setting."""
    W = normalize(lw)
    P, K = W.shape
    return torch.cat(
        [
            torch.multinomial(W[p : p + 1], M or K, replacement=True, generator=_generator_of(generator, p))
            for p in range(P)
        ]
    )


def top_k(lw: Tensor, M: int | None = None, generator: Generators = None) -> Tensor:
    """The M heaviest particles, each once (ties go to the lower index). Truncation selection: biased by design.

    With M > K every particle is kept and the heaviest ones are repeated in turn.
    """
    # Not of the normalised weights, which tie where they underflow.
    order = checked(lw).argsort(dim=1, descending=True, stable=True)
    P, K = order.shape
    rank = torch.empty_like(order).scatter_(1, order, torch.arange(K).expand(P, K))
    full_rounds, rest = divmod(M or K, K)
    return _ancestors((full_rounds + (rank < rest).long()), M or K)


def argmax(lw: Tensor, M: int | None = None, generator: Generators = None) -> Tensor:
    """Every offspring continues the heaviest particle (ties go to the lower index): the limit of large lambda, and the
    selection of SVDD (arXiv 2408.08252) among the children of one beam. Biased by design."""
    W = normalize(lw)
    return W.argmax(dim=1, keepdim=True).expand(len(W), M or W.shape[1]).clone()


RESAMPLERS: dict[str, Resampler] = {
    "ssp": ssp,
    "systematic": systematic,
    "stratified": stratified,
    "residual": residual,
    "multinomial": multinomial,
    "top-k": top_k,
    "argmax": argmax,
}

BIASED = (top_k, argmax)
"""Resamplers after which weights are no longer unbiased."""


@dataclass(frozen=True)
class Resampling(Keywords):
    """How and when particles are resampled.

    Attributes:
        scheme: one of `RESAMPLERS`.
        ess_threshold: a population is resampled when its effective sample size is at most this fraction of the number
            of particles, in [0, 1]; 1 is always, 0 never. A change in the number of particles always resamples.
        after_noise: move the particles after the solver's noise, as the reference implementation does, so that copies
            share the noise of one step.

    Raises:
        ValueError: for an unknown scheme or a threshold out of range.
    """

    scheme: str = "ssp"
    ess_threshold: float = 1.0
    after_noise: bool = False

    def __post_init__(self) -> None:
        if not is_named(self.scheme, RESAMPLERS):
            raise unknown("resampler", self.scheme, RESAMPLERS)
        object.__setattr__(self, "after_noise", flag("after_noise", self.after_noise))
        object.__setattr__(self, "ess_threshold", real("ess_threshold", self.ess_threshold, 0.0, 1.0))

    @property
    def biased(self) -> bool:
        """Whether weights are no longer unbiased afterwards."""
        return RESAMPLERS[self.scheme] in BIASED

    def copies(self, before: int, after: int) -> bool:
        """Whether an event with that many particles before and after it can leave two of one ancestor."""
        if after > before:
            return True
        return after > 1 and self.scheme != "top-k" and (self.ess_threshold > 0.0 or after != before)

    def __call__(self, weights: Weights, M: int, generator: Generators) -> tuple[Tensor, Tensor]:
        """Ancestors (P, M), and which populations (P,) were resampled; the others go on as they are."""
        K = weights.log.shape[1]
        # Drawn whether used or not, so that a population's draws do not depend on what the others in the batch do.
        ancestors = RESAMPLERS[self.scheme](weights.log, M, generator)
        if M != K:
            return ancestors, torch.ones(len(ancestors), dtype=torch.bool)
        # A tempering may have solved for exactly this size, which rounding must not decide.
        resampled = weights.ess <= self.ess_threshold * K * (1 + 1e-9)
        return torch.where(resampled[:, None], ancestors, torch.arange(K).expand(len(ancestors), K)), resampled


def _expected_offspring(lw: Tensor, M: int | None) -> Tensor:
    W = normalize(lw)
    M = W.shape[1] if M is None else M
    if M < 1:
        raise ValueError(f"Expected at least one offspring, but got M = {M}.")
    expected = M * W
    # Values a rounding error away from an integer are that integer; otherwise uniform weights would not be left alone.
    nearest = expected.round()
    return torch.where((expected - nearest).abs() < 1e-9, nearest, expected)


def _counts_at(expected: Tensor, points: Tensor) -> Tensor:
    M = float(points.shape[1])
    cumulated = _pin_last(expected.cumsum(1), torch.full((len(points), 1), M, dtype=expected.dtype))
    draws = torch.searchsorted(cumulated, points, right=True).clamp(max=expected.shape[1] - 1)
    return torch.zeros_like(expected).scatter_add_(1, draws, torch.ones_like(points, dtype=expected.dtype))


def _pin_last(cumulated: Tensor, total: Tensor) -> Tensor:
    """Set the last cumulated value, and its copies at trailing zero weights, to the total (they differ by rounding)."""
    return torch.where(cumulated >= cumulated[:, -1:], total, cumulated)


def _ancestors(counts: Tensor, M: int) -> Tensor:
    counts = counts.round().long()
    P, K = counts.shape
    index = torch.arange(K).expand(P, K)
    if M != K:
        return index.reshape(-1).repeat_interleave(counts.reshape(-1)).reshape(P, M)
    ancestors = index.clone()
    extra = (counts - 1).clamp(min=0)
    ancestors[counts == 0] = index.reshape(-1).repeat_interleave(extra.reshape(-1))
    return ancestors


def _generator_of(generator: Generators, p: int) -> torch.Generator | None:
    return generator if generator is None or isinstance(generator, torch.Generator) else generator[p]


def _uniforms(P: int, n: int, generator: Generators) -> Tensor:
    if generator is None or isinstance(generator, torch.Generator):
        return torch.rand(P, n, generator=generator, dtype=torch.float64)
    return torch.stack([torch.rand(n, generator=g, dtype=torch.float64) for g in generator])
