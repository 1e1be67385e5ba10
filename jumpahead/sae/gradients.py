"""Data types passed between architectures and the engine: inputs and firing counts of a step, and gradients.

B = tokens, M = features.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

from torch import Tensor

from jumpahead.sae.support import Number


class Reconstruction(NamedTuple):
    """One reconstruction x̂ of an architecture; the loss contains its squared error."""

    target: Literal["input", "residual"]
    """`input`: x. `residual`: x − x̂, detached, where x̂ is the first reconstruction with those that extend it."""
    trains_decoder: bool
    """True if W_dec and b_dec get a gradient; if not, they are detached and only the values get a gradient."""
    adds_bias: bool
    """True if b_dec is added to the reconstruction."""
    extends_previous: bool = False
    """True if it extends the previous reconstruction: x̂ is the previous x̂ plus the decoded values of this one, and the
    target is the same. The gradient of its error also reaches the previous values and b_dec. Decoding all nested
    reconstructions costs as much as decoding one."""


class StepInputs(NamedTuple):
    """Inputs of a training step that change from step to step, besides the batch and the parameters."""

    sparsity_coefficient: Number = 0.0
    """λ in this step, with warm-up applied."""
    dead: Tensor | None = None
    """[M] bool: features that count as dead; None if there are none, or if the architecture does not need them in this
    step."""
    requested_l0: float | None = None
    """The L0 (or k) requested in this step; None: the value of the sparsity setting."""


class Counts(NamedTuple):
    """Firing counts of the whole batch, over the sparse support and all dense blocks of features together."""

    tokens: int
    """B, the number of tokens in the batch."""
    fired: Tensor
    """[M] number of tokens on which each feature is positive, in the dtype of the values."""
    active: Tensor | None = None
    """[B] number of positive features per token; None if the architecture does not need it."""


class Affine(NamedTuple):
    """A gradient at each entry, affine in the projections: Σ_r slope_r·projection_r + constant.

    By the chain rule every gradient has this form. For reconstruction r and an entry with coefficient v_r of d_j:
    projection_r = ∂(squared error of r)/∂v_r and slope_r = ∂v_r/∂(the parameter).
    """

    slopes: tuple[Tensor | None, ...]
    """One tensor per reconstruction, of the shape and dtype of `Entries.pre`; None means zero."""
    constant: Tensor | None = None
    """The gradient of the sparsity term, of the shape and dtype of `Entries.pre`; None means zero."""

    def evaluate(self, projections: tuple[Tensor, ...]) -> Tensor:
        """Return the gradient at each entry, given one tensor of projections per reconstruction."""
        gradient = self.constant
        for slope, projection in zip(self.slopes, projections, strict=True):
            if slope is not None:
                gradient = slope * projection if gradient is None else gradient + slope * projection
        assert gradient is not None, "the gradient has neither slopes nor a constant"
        return gradient


class Gradients(NamedTuple):
    """The gradients of the loss at each entry: the result of `Architecture.entry_gradients`."""

    pre: Affine
    """∂L/∂(W_enc·(x − b_dec)) at each entry."""
    vectors: dict[str, Affine]
    """For each trained [M] vector, by name, the gradient contribution of each entry; the engine sums per feature."""
    shrink: Tensor | None
    """∂(penalty)/∂‖d_j‖ at each entry, for penalties that depend on ‖d_j‖: the engine adds d_j/‖d_j‖ times its sum over
    the entries of feature j to ∂L/∂d_j. None if the penalty does not depend on ‖d_j‖."""


class Thresholds(NamedTuple):
    """Learned thresholds θ and the windows of their straight-through gradients, for training diagnostics."""

    theta: Tensor
    """[M] the thresholds θ."""
    lower: Tensor
    """[M] lower end of the window: only entries with lower < π < upper train θ; −inf if rectified zeros train θ too."""
    upper: Tensor
    """[M] upper end of the window."""
    parameter: str
    """Name of the trained vector, a key of `Architecture.trained_vectors`."""
    is_log: bool
    """True if the trained vector is log θ; if not, it is θ."""
    in_sqrt_lambda: bool = True
    """True if diagnostics report θ in units of √λ: true if the penalty of every active entry is λ."""
