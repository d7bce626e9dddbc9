"""The reward's head: skip-connection cross-attention (SkipCA) and a linear readout."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .backbones.base import BackboneOutput
from .config import RewardConfig


class RMSNorm(nn.Module):
    """x / rms(x) * weight, the mean square in float32."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        values = x.float()
        normalized = values * torch.rsqrt(values.square().mean(-1, keepdim=True) + self.eps)
        return self.weight * normalized.to(x.dtype)


class RewardHead(nn.Module):
    """Rewards from the hidden states of a backbone.

    With H the hidden states and E the projected visual tokens (LLaVA-Reward, arXiv 2507.21391):

        A  = softmax(H W_q^T (E W_k^T)^T / sqrt(D))
        H' = RMSNorm(H + A E W_v^T)
        r  = H' W^T at the end of the text

    Without SkipCA H' = H. Only the rows of H that are read are computed. The parameters have the published names.

    Args:
        config: of the reward.
        hidden_size: D.
        eps: of the norm.
    """

    def __init__(self, config: RewardConfig, hidden_size: int, eps: float) -> None:
        super().__init__()
        self.config = config
        self.value_head = nn.Linear(hidden_size, config.value_head_dim, bias=False)
        if config.add_cross_attention:
            self.W_q = nn.Linear(hidden_size, hidden_size, bias=False)
            self.W_k = nn.Linear(hidden_size, hidden_size, bias=False)
            self.W_v = nn.Linear(hidden_size, hidden_size, bias=False)
            self.ca_layernorm = RMSNorm(hidden_size, eps)
        for module in self.children():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=1 / (hidden_size + 1))

    def forward(self, output: BackboneOutput) -> Tensor:
        """(B, value_head_dim): one number to rank by, or the embedding of the general preference model."""
        if self.config.mean_pooling:
            weight = output.attention_mask[..., None]
            states = self.skip_connection(output.hidden_states, output.visual_tokens, output.visual_mask)
            pooled = (states * weight).sum(1) / weight.sum(1)
            return self.value_head(pooled.to(states.dtype))
        end = last_position(output.attention_mask)
        states = output.hidden_states[torch.arange(len(end), device=end.device), end]
        return self.value_head(
            self.skip_connection(states[:, None], output.visual_tokens, output.visual_mask).squeeze(1)
        )

    def skip_connection(self, states: Tensor, visual: Tensor, mask: Tensor | None) -> Tensor:
        """SkipCA of states (B, Q, D) on visual tokens (B, N, D), where mask (B, N) is True; no tokens, no attention."""
        if not self.config.add_cross_attention:
            return states
        # (Q W_k) E^T in place of Q (E W_k^T)^T, and (A E) W_v^T in place of A (E W_v^T): the same numbers without
        # projecting every visual token, of which there are thousands, for one query. Scaled first, as sums of products
        # may be too large for float16.
        queries = (self.W_q(states) / states.shape[-1] ** 0.5) @ self.W_k.weight
        scores = (queries @ visual.transpose(1, 2)).float()
        if mask is not None:
            scores = scores.masked_fill(~mask[:, None], -torch.inf)
            # A row without any visual token attends to nothing.
            scores = scores.masked_fill(~mask.any(1)[:, None, None], 0.0)
        attention = scores.softmax(-1).to(visual.dtype)
        return self.ca_layernorm(states + self.W_v(attention @ visual))


def last_position(attention_mask: Tensor) -> Tensor:
    """(B,) index of the last token of each row, whichever side is padded."""
    positions = torch.arange(attention_mask.shape[1], device=attention_mask.device)
    return (positions * attention_mask).argmax(1)
