"""The unit that an SAE is trained in, and the change between trained parameters and those of a saved SAE.

    centred     z = (x − μ)/C     μ the mean of the site's activations, C = √E‖x − μ‖², so that E‖z‖² = 1
    published   z = x/C           C = √E‖x‖²: the unit of the papers, and of the recipe `paper`

In the unit `centred` a saved SAE keeps μ as its parameter `b_pre` and subtracts it before the encoder product:

    π = W_enc·(x − b_pre) + b_enc          x̂ = Σ_j f_j d_j + b_dec, and b_dec includes μ

W_enc·μ is not folded into b_enc: if ‖μ‖ is many times C, then W_enc·x and b_enc are large and nearly cancel, and
float32 loses the difference. x − b_pre is exact to the rounding of x (docs/decisions/0016-unit-and-long-rows.md).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from jumpahead.sae.architecture import Architecture
from jumpahead.sae.parameters import Params


@dataclass(frozen=True, eq=False)
class Unit:
    """The unit of one SAE's training. Two units are equal only if they are the same object."""

    scale: float
    """C, in the LM's unit."""
    mean: Tensor | None = None
    """float32 [d]: μ; None for the unit `published`, where μ = 0."""
    max_norm: float | None = None
    """Largest ‖z‖ in training; longer rows are scaled down to `median_norm`. None for no limit."""
    median_norm: float = 1.0
    """The median of ‖z‖."""

    def to(self, device: torch.device | str) -> Unit:
        """Return the unit with μ on a device."""
        return self if self.mean is None else replace(self, mean=self.mean.to(device))

    def apply(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return z [n, d] for activations x [n, d], and the number of rows that were scaled down, 0-d int64.

        The number is None without a limit. μ is subtracted in the precision of x, at least float32, before anything
        is rounded.
        """
        x = x if x.dtype == torch.float64 else x.float()
        z = (x if self.mean is None else x - self.mean) * (1.0 / self.scale)
        if self.max_norm is None:
            return z, None
        norms = z.norm(dim=1, keepdim=True)
        is_long = norms > self.max_norm
        # Shorter rows are multiplied by exactly 1, so that their bits stay the same.
        return z * torch.where(is_long, self.median_norm / norms, 1.0), is_long.sum()

    def fold(self, arch: Architecture, params: Params) -> Params:
        """Return the float32 parameters of a saved SAE, which takes the LM's own activations."""
        folded = arch.fold(params, self.scale)
        if self.mean is None:
            return folded
        mean = self.mean.to(folded["b_dec"].device)
        return folded | {"b_pre": mean.clone(), "b_dec": (folded["b_dec"].double() + mean.double()).float()}

    def unfold(self, arch: Architecture, saved: Params) -> Params:
        """Return the float32 training parameters of a saved SAE of any unit: the inverse of `fold`, in this unit.

        saved: parameters with unit decoder rows, with or without `b_pre`.
        """
        b_dec = saved["b_dec"].double()
        rest = {name: tensor for name, tensor in saved.items() if name != "b_pre"}
        # In coordinates x − b_pre the saved SAE has no b_pre, b_dec is b_dec − b_pre, and all else is the same.
        from_b_pre = b_dec - saved["b_pre"].double() if "b_pre" in saved else b_dec
        params = arch.unfold(rest | {"b_dec": from_b_pre}, self.scale)
        from_mean = b_dec if self.mean is None else b_dec - self.mean.to(b_dec)
        return params | {"b_dec": (from_mean / self.scale).float()}
