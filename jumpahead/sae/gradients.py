"""What passes between an architecture's `rule` and the engine: the inputs and counts of a step, and gradients.

B = tokens, M = features.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

from torch import Tensor

from jumpahead.sae.support import Number


class Reconstruction(NamedTuple):
    """One squared error of the loss."""

    target: Literal["input", "residual"]
    """`input`: x. `residual`: x − x̂ of the first reconstruction and those that continue it, as a constant."""
    live: bool
    """Whether W_dec and b_dec get a gradient; otherwise they are frozen here and only the values get one."""
    bias: bool
    """Whether b_dec is added."""
    continues: bool = False
    """Whether it continues the previous one: x̂ is the previous x̂ plus what its own values add, the target is the same,
    and the gradient of its error reaches the previous values and b_dec too. Nested reconstructions thus cost one."""


class StepInputs(NamedTuple):
    """What changes from step to step."""

    sparsity_coefficient: Number = 0.0
    """λ in force, warm-up included."""
    dead: Tensor | None = None
    """[M] bool: features that count as dead; None if the architecture does not need them."""
    requested_l0: float | None = None
    """The L0 (or k) requested in this step; None: the setting's."""


class Counts(NamedTuple):
    """Firing counts of the whole batch: of the support and every dense block together."""

    tokens: int
    """B."""
    fired: Tensor
    """[M] tokens on which each feature is positive, in the values' dtype."""
    active: Tensor | None = None
    """[B] features that are positive on each token; None if the architecture does not need them."""


class Affine(NamedTuple):
    """A gradient at each entry: Σ_r slope_r·projection_r + constant.

    By the chain rule every gradient has this form: projection_r = ∂(r-th squared error)/∂(its coefficient of d_j) is
    all that an entry needs from the reconstruction, and slope_r = ∂(that coefficient)/∂(the parameter).
    """

    slopes: tuple[Tensor | None, ...]
    """Like `pre`, one per reconstruction; None is zero."""
    constant: Tensor | None = None
    """What the sparsity term adds; None is zero."""

    def evaluate(self, projections: tuple[Tensor, ...]) -> Tensor:
        """Return the gradient at each entry, given the projections."""
        found = self.constant
        for slope, projection in zip(self.slopes, projections, strict=True):
            if slope is not None:
                found = slope * projection if found is None else found + slope * projection
        assert found is not None, "the gradient has neither slopes nor a constant"
        return found


class Gradients(NamedTuple):
    """The result of an architecture's `rule`."""

    pre: Affine
    """∂L/∂(W_enc·(x − b_dec)) at each entry."""
    vectors: dict[str, Affine]
    """For each trained [M] vector, its gradient's contribution at each entry; the engine sums them per feature."""
    shrink: Tensor | None
    """c at each entry of a penalty on ‖d_j‖, which adds Σc·d_j/‖d_j‖ to ∂L/∂d_j; None without one."""


class Thresholds(NamedTuple):
    """Learned thresholds and the windows of their straight-through gradient, for training diagnostics."""

    theta: Tensor
    """[M] θ."""
    lower: Tensor
    """[M] Only entries with lower < π < upper train θ; −inf if rectified zeros do too."""
    upper: Tensor
    """[M] The upper end of the window."""
    trained: str
    """The trained vector, a key of `Architecture.trained`."""
    is_log: bool
    """Whether that vector is log θ; else it is θ."""
    in_sqrt_lambda: bool = True
    """Whether θ is reported in units of √λ: true if every active entry costs λ."""
