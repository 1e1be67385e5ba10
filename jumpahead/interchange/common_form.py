"""An SAE in the conventions that the formats of all libraries agree on, and its conversion from and to `SAE`.

    π = W_enc·(x − c) + b_enc        c: the input bias, which some libraries subtract from x; mostly their b_dec
    relu       f = ReLU(π)
    jumprelu   f = π·H(π − θ)        θ_j ≥ 0
    topk       f = ReLU(TopK_k(π))
    gated      f = H(π)·ReLU(exp(r_mag)·(π − b_enc) + b_mag)
    x̂ = W_decᵀ f + b_dec

An `SAE` keeps c as its `b_pre`. A format without input bias has it folded into b_enc and b_mag, in float64
(`with_input_bias`), which costs precision where W_enc·c is much larger than π.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from jumpahead.errors import ArtefactError, StudyError
from jumpahead.interchange.weights import WeightsFile
from jumpahead.sae.architecture import Options
from jumpahead.sae.architectures import ARCHITECTURES
from jumpahead.sae.architectures.gated import Gated
from jumpahead.sae.gradients import StepInputs
from jumpahead.sae.parameters import Params
from jumpahead.sae.recipe import Setting
from jumpahead.sae.saved import SAE
from jumpahead.sae.support import AboveThreshold, TopKPerToken

ROWS_AT_ONCE = 4096
"""Features that are converted to float64 together."""


class CommonForm(NamedTuple):
    """An SAE in the conventions of all formats; equations in the module's docstring."""

    activation: str
    """`relu`, `jumprelu`, `topk` or `gated`; the names of the architectures with these activation functions."""
    params: Params
    """W_enc and W_dec [M, d], b_dec [d], b_enc [M], and [M] each: threshold (jumprelu), b_mag and r_mag (gated)."""
    k: int = 0
    """Features per token (topk)."""
    input_bias: Tensor | None = None
    """c, [d]; None for zero."""

    def with_input_bias(self, bias: Tensor | None) -> Params:
        """Return the parameters that compute the same with another input bias, float32. bias: [d]; None for zero."""
        if bias is self.input_bias:
            return self.params
        old, new = (torch.zeros(()) if one is None else one.double() for one in (self.input_bias, bias))
        return fold_input_bias(self.params, old - new)


def fold_input_bias(params: Params, bias: Tensor) -> Params:
    """Return the parameters of an SAE that computes from x what the given one computes from x − bias, float32.

    The products are float64 sums, rounded once. bias: [d].
    """
    w, bias = params["W_enc"], bias.double()
    shift = torch.cat([rows.double() @ bias for rows in w.split(ROWS_AT_ONCE)])
    folded = {"b_enc": (params["b_enc"].double() - shift).float()}
    if "b_mag" in params:
        folded["b_mag"] = (params["b_mag"].double() - params["r_mag"].double().exp() * shift).float()
    return params | folded


def to_sae(
    form: CommonForm,
    about: dict[str, Any],
    architecture: str | None = None,
    options: Options | None = None,
    setting: Setting | None = None,
) -> SAE:
    """Return the SAE of a common form, without recipe.

    architecture, options, setting: if more is known than the activation function; by default those of its name.
    """
    params = dict(form.params)
    if "threshold" in params:  # libraries rectify π first, so that a negative threshold acts as zero
        params["threshold"] = params["threshold"].clamp_min(0.0)
    if form.input_bias is not None:
        params["b_pre"] = form.input_bias.clone()
    kind = ARCHITECTURES.get(architecture or form.activation)
    if form.activation == "topk":
        setting = Setting("k", float(form.k))
    assert params.keys() - {"b_pre"} == {"W_enc", "W_dec", "b_dec", *kind.vectors}, sorted(params)
    return SAE(kind(options or kind.Options(), setting, None), params, about)


def common_form(sae: SAE, title: str) -> CommonForm:
    """Return the common form of an SAE of any architecture.

    title: of the format that wants it. Raises StudyError if the features are not what one of the four activation
    functions computes, as they may be in an architecture of another package.
    """
    arch, p = sae.arch, sae.params
    bias = None if sae.b_pre is None else sae.b_pre.cpu()
    shared = {name: p[name].cpu() for name in ("W_enc", "W_dec", "b_dec", "b_enc")}
    if isinstance(arch, Gated):
        return CommonForm("gated", shared | {name: p[name].cpu() for name in ("b_mag", "r_mag")}, input_bias=bias)
    selection = arch.selection(p, arch.derive(p), StepInputs(), training=False)
    if isinstance(selection, TopKPerToken):
        return CommonForm("topk", shared, selection.k, bias)
    if isinstance(selection, AboveThreshold):
        threshold = selection.lower.clamp_min(0.0)
        pre = threshold + torch.tensor([[0.0], [0.3], [7.0]]).to(threshold) * (threshold.mean() + 1.0)
        if torch.equal(arch.activate(p, pre), pre * (pre > threshold)):
            if not bool(threshold.any()):
                return CommonForm("relu", shared, input_bias=bias)
            return CommonForm("jumprelu", shared | {"threshold": threshold.cpu()}, input_bias=bias)
    raise StudyError(f"{title} has no activation function like that of '{sae.architecture}': name another format.")


def take_matrices(
    weights: WeightsFile,
    encoder: str,
    decoder: str,
    width: int,
    d: int,
    *,
    is_encoder_by_row: bool,
    is_decoder_by_row: bool,
) -> Params:
    """Return W_enc and W_dec [width, d] from a file.

    encoder, decoder: names in the file. is_encoder_by_row, is_decoder_by_row: True for the shape [width, d], False for
    [d, width]. Raises ArtefactError if a shape is another or, where width = d, if a matrix looks transposed.
    """
    shapes = {True: (width, d), False: (d, width)}
    w_enc = weights.take(encoder, *shapes[is_encoder_by_row], transpose=not is_encoder_by_row)
    w_dec = weights.take(decoder, *shapes[is_decoder_by_row], transpose=not is_decoder_by_row)
    if width == d:
        _check_orientation(weights, encoder, decoder, w_enc, w_dec)
    return {"W_enc": w_enc, "W_dec": w_dec}


def _check_orientation(weights: WeightsFile, encoder: str, decoder: str, w_enc: Tensor, w_dec: Tensor) -> None:
    """Raise ArtefactError if a square matrix is transposed: columns of W_dec have norm one, or w_j is like no d_j."""
    rows, columns = w_dec.norm(dim=1), w_dec.norm(dim=0)
    if bool(((columns - 1).abs() < 1e-3).all()) and not bool(((rows - 1).abs() < 1e-3).all()):
        raise weights.error(decoder, "is transposed: its columns have norm one, and not its rows")
    aligned, transposed = (
        torch.nn.functional.cosine_similarity(matrix, w_dec, dim=1).mean().item() for matrix in (w_enc, w_enc.T)
    )
    if transposed > aligned + 0.2:
        raise weights.error(encoder, "is transposed: its columns, and not its rows, are like the decoder's directions")


def require(form: CommonForm, activations: tuple[str, ...], title: str, sae: SAE, why: str = "") -> None:
    """Raise StudyError if a format has no place for the activation function of an SAE.

    activations: those that the format holds. why: a clause that says what is missing.
    """
    if form.activation not in activations:
        raise StudyError(
            f"An SAE of architecture '{sae.architecture}' cannot be exported to {title}"
            f"{': ' + why if why else ''}; {title} holds {', '.join(activations)}."
        )


def check_count(found: int, limit: int, error: ArtefactError) -> int:
    """Return k if it is between 1 and the width. Raises the error otherwise."""
    if not 1 <= found <= limit:
        raise error
    return found
