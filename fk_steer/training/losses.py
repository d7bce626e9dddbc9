"""Losses of pairs, from how far a model and its reference are from what made each image noisy.

Notation, for a pair at one timestep with one noise: m_w, m_l the mean squared errors of the model for the chosen and
the rejected image, r_w, r_l those of the reference. By the evidence bound of a diffusion model, a lower error is a
higher log-likelihood, so that the model's implicit reward of the chosen image over the rejected one is

    beta / 2 * ((r_w - m_w) - (r_l - m_l))

with beta as Diffusion-DPO's code has it (Wallace et al., arXiv 2311.12908, equation 14; the number of timesteps is part
of it).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from .config import LOSSES


@dataclass(frozen=True)
class PairErrors:
    """Mean squared errors of one model for B pairs.

    Attributes:
        chosen: (B,).
        rejected: (B,).
    """

    chosen: Tensor
    rejected: Tensor


def implicit_reward(model: PairErrors, reference: PairErrors, beta: float) -> Tensor:
    """(B,): the chosen image's implicit reward less that of the rejected one, see the module."""
    gain = (reference.chosen - model.chosen) - (reference.rejected - model.rejected)
    return beta / 2 * gain


def pair_losses(loss: str, model: PairErrors, reference: PairErrors, beta: float, anchor: float = 0.0) -> Tensor:
    """(B,): the loss of each pair.

    With h the implicit reward, 'dpo' is -log sigmoid(h); 'ipo' is (h - 1/2)², IPO's (h / beta - 1 / (2 beta))² (Azar et
    al., arXiv 2310.12036, equation 17) times beta², which has the same minimum and gradients of one size for every
    beta; 'sft' is m_w.

    Args:
        anchor: of 'dpo' and 'ipo', this times beta / 2 * (m_w - r_w) is added: they are content if the model forgets
            both images as long as it forgets the rejected one faster, which this holds it back from (as Pang et al.,
            arXiv 2404.19733, for language models).

    Raises:
        ValueError: for another name.
    """
    if loss == "sft":
        return model.chosen
    forgotten = anchor * beta / 2 * (model.chosen - reference.chosen)
    if loss == "dpo":
        return -F.logsigmoid(implicit_reward(model, reference, beta)) + forgotten
    if loss == "ipo":
        return (implicit_reward(model, reference, beta) - 0.5) ** 2 + forgotten
    raise ValueError(f"Unknown `loss` {loss!r}. Known: {', '.join(LOSSES)}.")


def implicit_accuracy(reward: Tensor) -> Tensor:
    """(B,): 1 where the implicit reward favours the chosen image, 1/2 for a tie, as of two equal models."""
    return (torch.sign(reward) + 1) / 2
