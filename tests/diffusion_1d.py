"""A diffusion in one dimension whose score, reverse kernel and tilted law are known in closed form.

Data: a mixture of Gaussians. Forward process: x_t = sqrt(a_t) x_0 + sqrt(1 - a_t) noise. The reverse kernel
p(x_s | x_t) is again a mixture of Gaussians and is sampled exactly, so p(x_0) is the data law at any number of steps.
Reward: r(x) = x, so p(x_0) exp(lambda x_0) is a mixture of Gaussians too.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Diffusion1D:
    weights: tuple[float, ...]
    means: tuple[float, ...]
    std: float
    num_steps: int = 8

    @property
    def alphas(self) -> Tensor:
        """Cumulative a_t at the levels T, ..., 0: from almost pure noise to clean data."""
        angle = torch.linspace(1, 0, self.num_steps + 1, dtype=torch.float64) * (torch.pi / 2) * 0.98
        return angle.cos().square()

    def initial(self, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
        x0 = self._pick(torch.tensor(self.weights, dtype=torch.float64).log().expand(*shape, -1), generator)
        a = self.alphas[0]
        return a.sqrt() * (x0 + self.std * _randn(shape, generator)) + (1 - a).sqrt() * _randn(shape, generator)

    def predict_x0(self, x: Tensor, t: int) -> Tensor:
        """E[x_0 | x_t]."""
        log_posterior, mean, _ = self._posterior(x, t)
        return (log_posterior.exp() * mean).sum(-1)

    def move(self, x: Tensor, t: int, generator: torch.Generator) -> Tensor:
        """x_{t+1} ~ p(. | x_t), levels counted from the noise: draw x_0 given x_t, then x_{t+1} given both."""
        log_posterior, mean, variance = self._posterior(x, t)
        x0 = self._pick(log_posterior, generator, mean) + variance.sqrt() * _randn(x.shape, generator)
        a, b = self.alphas[t], self.alphas[t + 1]
        ratio = a / b
        posterior_mean = (b.sqrt() * (1 - ratio) * x0 + ratio.sqrt() * (1 - b) * x) / (1 - a)
        posterior_variance = (1 - b) * (1 - ratio) / (1 - a)
        return posterior_mean + posterior_variance.sqrt() * _randn(x.shape, generator)

    def tilted_mean(self, lmbda: float) -> float:
        log_mass, means = self._tilted(lmbda)
        return float((log_mass.softmax(0) * means).sum())

    def log_normalizer(self, lmbda: float) -> float:
        return float(self._tilted(lmbda)[0].logsumexp(0))

    def _tilted(self, lmbda: float) -> tuple[Tensor, Tensor]:
        weights, means = torch.tensor(self.weights).double(), torch.tensor(self.means).double()
        return weights.log() + lmbda * means + (lmbda * self.std) ** 2 / 2, means + lmbda * self.std**2

    def _posterior(self, x: Tensor, t: int) -> tuple[Tensor, Tensor, Tensor]:
        a = self.alphas[t]
        means = torch.tensor(self.means, dtype=torch.float64)
        marginal_variance = a * self.std**2 + 1 - a
        residual = x[..., None] - a.sqrt() * means
        log_weights = torch.tensor(self.weights, dtype=torch.float64).log() - residual.square() / (
            2 * marginal_variance
        )
        mean = means + a.sqrt() * self.std**2 / marginal_variance * residual
        return log_weights.log_softmax(-1), mean, self.std**2 * (1 - a) / marginal_variance

    def _pick(self, log_weights: Tensor, generator: torch.Generator, values: Tensor | None = None) -> Tensor:
        values = torch.tensor(self.means, dtype=torch.float64).expand(log_weights.shape) if values is None else values
        cumulated = log_weights.exp().cumsum(-1)
        uniform = torch.rand(log_weights.shape[:-1], generator=generator, dtype=torch.float64)
        index = (uniform[..., None] > cumulated).sum(-1, keepdim=True).clamp(max=log_weights.shape[-1] - 1)
        return values.gather(-1, index)[..., 0]


def _randn(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    return torch.randn(shape, generator=generator, dtype=torch.float64)


GAUSSIAN = Diffusion1D(weights=(1.0,), means=(0.3,), std=0.4)
MIXTURE = Diffusion1D(weights=(0.7, 0.3), means=(-0.3, 0.4), std=0.2)
