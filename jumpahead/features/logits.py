"""The direct effect of a feature on the logits: W_U · gain ⊙ d, with the gain of the final norm folded in.

A final norm divides by the size of the residual stream, which scales all logits of a token alike; the rest of it is
linear: a gain γ per dimension and, for a LayerNorm, subtracting the mean. Both are folded into W_U:

    RMSNorm      W_U diag(γ)                       LayerNorm    W_U diag(γ) (I − 11ᵀ/d)

Which one it is, and γ (some models store γ − 1), is found by running the norm on two vectors.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from jumpahead.lm.model import LM
from jumpahead.lm.sites import Site, parse_site

_FINAL_NORMS = ("norm", "ln_f", "final_layer_norm", "final_layernorm", "final_norm", "ln_final")
"""Names of the final norm in the decoders of model families."""
FEATURES_AT_ONCE = 256


class TopLogits(NamedTuple):
    """The tokens whose logits the features raise most, or lower most."""

    token: Tensor
    """int64 [n, k]: token ids, the strongest effect first."""
    value: Tensor
    """float32 [n, k]: the effect on the logit per unit of activation, up to the final norm's common scale."""


def logit_weights(lm: LM, site: str | Site) -> Tensor | None:
    """Return W [V, d] such that W·d_i is the direct effect of a direction at the site on the logits.

    None if the site does not write to the residual stream, or the model's output does not read it by one matrix.
    """
    site, head = parse_site(site), lm.model.get_output_embeddings()
    if site.layer is None or head is None or getattr(head, "weight", None) is None:
        return None
    weight = _fold_final_norm(lm, head.weight.detach().float())
    if site.kind == "attention":
        projection = _matrix_of(lm.hook_point(site).module)
        if projection is None or projection.shape[0] != weight.shape[1]:
            return None
        weight = weight @ projection.to(weight)
    return weight if weight.shape[1] == lm.width_at(site) else None


def top_logits(weight: Tensor, directions: Tensor, k: int) -> tuple[TopLogits, TopLogits]:
    """Return the k tokens whose logits each direction [n, d] raises most, and those that it lowers most."""
    raised, lowered = list[Any](), list[Any]()
    k = min(k, weight.shape[0])
    for start in range(0, len(directions), FEATURES_AT_ONCE):
        effect = directions[start : start + FEATURES_AT_ONCE].to(weight) @ weight.T
        for found, sign in ((raised, 1), (lowered, -1)):
            values, tokens = (sign * effect).topk(k)
            found.append((tokens.cpu(), sign * values.cpu()))
    first, second = (TopLogits(*map(torch.cat, zip(*found, strict=True))) for found in (raised, lowered))
    return first, second


def _fold_final_norm(lm: LM, weight: Tensor) -> Tensor:
    """Return W_U [V, d] with the linear part of the final norm folded in; unchanged if the norm is not known."""
    decoder = lm.model.get_decoder()
    norm = next((getattr(decoder, name) for name in _FINAL_NORMS if hasattr(decoder, name)), None)
    if not isinstance(norm, nn.Module):
        return weight
    gain = _gain_of(norm, weight.shape[1], weight.device)
    if gain is None:
        return weight
    values, is_centred = gain
    folded = weight * values
    return folded - folded.mean(1, keepdim=True) if is_centred else folded


def _gain_of(norm: nn.Module, d: int, device: torch.device) -> tuple[Tensor, bool] | None:
    """Return the gain γ [d] of a norm, and whether it subtracts the mean; None if it is neither LayerNorm nor RMSNorm.

    Two vectors are normalised: the first gives γ, the second must agree with it.
    """
    parameter = next(norm.parameters(), torch.zeros(d, device=device))
    angle = torch.arange(d, dtype=torch.float64, device=device) + 1
    vectors = [1e3 * (torch.sin(angle * step) + 1.5) for step in (0.7, 1.3)]  # large: ε in the norm does not matter
    with torch.no_grad():
        outputs = [norm(v.to(parameter)[None, None])[0, 0].double().to(device) for v in vectors]
    bias = getattr(norm, "bias", None)
    if isinstance(bias, Tensor):
        outputs = [out - bias.double().to(device) for out in outputs]
    tolerance = 8 * torch.finfo(parameter.dtype).eps ** 0.5 / 4
    for is_centred in (False, True):
        unit = [_normalised(v, is_centred) for v in vectors]
        gain = outputs[0] / torch.where(unit[0].abs() < 1e-9, 1e-9, unit[0])
        scale = float(outputs[1].norm().clamp_min(1e-30))
        if float((gain * unit[1] - outputs[1]).norm()) <= tolerance * scale:
            return gain.float(), is_centred
    return None


def _normalised(vector: Tensor, is_centred: bool) -> Tensor:
    """Return a vector divided by its root mean square, after its mean is subtracted if is_centred."""
    vector = vector - vector.mean() if is_centred else vector
    return vector / vector.square().mean().sqrt()


def _matrix_of(module: nn.Module) -> Tensor | None:
    """Return the matrix [out, in] of a linear module; None if it is none. GPT-2 stores the transpose."""
    weight = getattr(module, "weight", None)
    if not isinstance(weight, Tensor) or weight.ndim != 2:
        return None
    is_transposed = type(module).__name__ == "Conv1D"
    return weight.detach().float().T if is_transposed else weight.detach().float()
