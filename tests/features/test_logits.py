"""Logit effects: equal to a dense product, and to how the language model's own output changes."""

from __future__ import annotations

import pytest
import torch

from jumpahead.features.logits import logit_weights, top_logits
from jumpahead.lm.sites import parse_site

FAMILIES = ["neox", "gpt2", "llama", "gemma2", "phi", "opt", "gptj"]


def final_norm(lm):
    decoder = lm.model.get_decoder()
    names = ("final_layer_norm", "ln_f", "norm", "final_layernorm")
    return next(getattr(decoder, name) for name in names if hasattr(decoder, name))


@pytest.mark.parametrize("family", FAMILIES)
def test_the_effect_is_the_derivative_of_the_logits(lm_of, family):
    """∂ logits/∂ε of norm(h + ε·d), for h much larger than d and of mean zero along the norm's own direction.

    A norm divides by its input's size, so the derivative has a part along the logits of h itself; it vanishes for d
    orthogonal to h (and, for a LayerNorm, to the ones).
    """
    lm, random = lm_of(family), torch.Generator().manual_seed(2)
    weight = logit_weights(lm, "layers.1.residual")
    width = lm.width_at("layers.1.residual")
    h = torch.randn(width, generator=random)
    h -= h.mean()
    d = torch.randn(width, generator=random)
    d -= (d @ h) / (h @ h) * h
    norm, head = final_norm(lm), lm.model.get_output_embeddings().weight

    def logits(x):
        return head.double() @ norm(x[None, None].float())[0, 0].double()

    step = 1e-2
    change = (logits(h.double() + step * d) - logits(h.double() - step * d)) / (2 * step)
    size = h.square().mean().sqrt()  # both norms divide by it
    expected = weight.double() @ d.double() / size.double()
    assert torch.allclose(change, expected, rtol=2e-3, atol=2e-3 * float(expected.abs().max()))


@pytest.mark.parametrize("family", ["neox", "gpt2", "llama"])
def test_attention_is_projected_into_the_stream_first(lm_of, family):
    lm = lm_of(family)
    site = parse_site("layers.1.attention")
    stream, heads = logit_weights(lm, "layers.1.residual"), logit_weights(lm, site)
    blocks = lm.blocks[1]
    projection = next(
        module
        for name, module in blocks.named_modules()
        if name in ("attention.dense", "attn.c_proj", "self_attn.o_proj")
    )
    direction = torch.randn(lm.width_at(site), generator=torch.Generator().manual_seed(1))
    bias = 0 if getattr(projection, "bias", None) is None else projection.bias
    written = projection(direction[None])[0] - bias
    assert torch.allclose(heads @ direction, stream @ written, atol=1e-4)


def test_a_site_that_does_not_write_to_the_stream_has_none(lm_of):
    assert logit_weights(lm_of("llama"), "model.layers.1.mlp.down_proj.input") is None


def test_the_top_are_those_of_a_dense_product():
    random = torch.Generator().manual_seed(0)
    weight, directions = torch.randn(50, 7, generator=random), torch.randn(600, 7, generator=random)
    raised, lowered = top_logits(weight, directions, 4)
    effect = directions @ weight.T
    assert torch.equal(raised.token, effect.argsort(1, descending=True)[:, :4])
    assert torch.equal(lowered.token, effect.argsort(1)[:, :4])
    assert torch.allclose(raised.value, effect.gather(1, raised.token), atol=1e-5)
    assert torch.allclose(lowered.value, effect.gather(1, lowered.token), atol=1e-5)
    assert (lowered.value[:, 0] < 0).all()
