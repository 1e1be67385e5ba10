"""Activations from a known sparse dictionary, on which every library's step is timed.

    x = (Σ_j a_j·d_j + noise) / C       d_j unit rows, feature j active with probability p_j, then a_j ~ U(0.5, 1.5)

p_j follows Zipf's law, c·(rank_j + 20)^−0.7 and at most a half, with c such that Σ p_j = L0. C is one scalar, the same
for all batches, such that E‖x‖² = 1.

B tokens · d dimensions · M features.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

ZIPF_EXPONENT, RANK_OFFSET = (
    0.7,
    20.0,
)  # of Zipf's law: the offset keeps the first few features from being active on most tokens
MAX_FREQUENCY = 0.5  # no feature is active on more than this share of tokens
RELATIVE_NOISE = 0.02  # ‖noise‖ / ‖signal‖ of a token
ROWS_AT_ONCE = 256  # tokens drawn at once: bounds memory at ROWS × M


class SyntheticData(NamedTuple):
    """A dictionary and batches made from it."""

    dictionary: Tensor
    """[M, d], unit rows."""
    frequency: Tensor
    """[M] probability that a feature is active; sums to L0."""
    batches: list[Tensor]
    """[B, d] each; mean ‖x‖² over all of them is 1."""


def zipf_frequencies(width: int, l0: float) -> Tensor:
    """Return probabilities [M] that decrease with the rank, are at most MAX_FREQUENCY, and sum to `l0`."""
    assert 0 < l0 < MAX_FREQUENCY * width, "more active features than the cap on their frequency allows"
    shape = (torch.arange(width, dtype=torch.float64) + RANK_OFFSET) ** -ZIPF_EXPONENT
    low, high = 0.0, MAX_FREQUENCY / shape[-1].item()
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if (middle * shape).clamp_max(MAX_FREQUENCY).sum() < l0 else (low, middle)
    return (low * shape).clamp_max(MAX_FREQUENCY).float()


def make_data(
    d: int, width: int, tokens: int, l0: float, count: int = 4, seed: int = 0, device: torch.device | str = "cpu"
) -> SyntheticData:
    """Return a dictionary and `count` batches of `tokens` rows. They depend on the seed and on the device type."""
    generator = torch.Generator(device).manual_seed(seed)
    dictionary = torch.randn(width, d, generator=generator, device=device)
    dictionary /= dictionary.norm(dim=1, keepdim=True)
    frequency = zipf_frequencies(width, l0).to(device)[torch.randperm(width, generator=generator, device=device)]
    x = torch.cat(
        [
            _rows(dictionary, frequency, min(ROWS_AT_ONCE, count * tokens - start), generator)
            for start in range(0, count * tokens, ROWS_AT_ONCE)
        ]
    )
    x /= x.square().sum(1).mean().sqrt()
    return SyntheticData(dictionary, frequency, list(x.split(tokens)))


def _rows(dictionary: Tensor, frequency: Tensor, rows: int, generator: torch.Generator) -> Tensor:
    """Return unscaled activations [rows, d]."""
    width, d = dictionary.shape
    active = torch.rand(rows, width, generator=generator, device=dictionary.device) < frequency
    token, feature = active.nonzero(as_tuple=True)
    size = 0.5 + torch.rand(len(token), generator=generator, device=dictionary.device)
    offsets = torch.cat([token.new_zeros(1), torch.bincount(token, minlength=rows).cumsum(0)])
    signal = torch.nn.functional.embedding_bag(
        feature, dictionary, offsets, mode="sum", per_sample_weights=size, include_last_offset=True
    )
    noise = torch.randn(rows, d, generator=generator, device=dictionary.device) / d**0.5
    return signal + RELATIVE_NOISE * signal.norm(dim=1, keepdim=True) * noise
