"""Steering, ablation and attribution: closed forms, the model's own passes, finite differences."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch

import jumpahead
from jumpahead.errors import DataError, StudyError
from jumpahead.lm.attribution import attribute
from jumpahead.lm.config import LMConfig
from jumpahead.lm.interventions import ablate, encode_text, spliced, steer, token_ids, token_losses
from jumpahead.lm.losses import next_token_nats
from jumpahead.lm.model import LM
from jumpahead.sae.saved import SAE
from tests.engine.cases import CASES, random_state

SITE, WIDTH = "layers.1.residual", 60
TEXT = "a text of some length"
families = pytest.mark.parametrize("family", ["llama", "neox", "gpt2", "gemma3", "opt"])


def sae_for(lm, architecture="jumprelu", site=SITE):
    """Return a random SAE whose features fire at the site of this model, with an input bias."""
    case = next(case for case in CASES if case.architecture == architecture)
    x = lm.read(token_ids(lm, TEXT), [site])[site][0, 1:].float()
    state = random_state(case, x.shape[1], WIDTH, 3, torch.float32)
    folded = state.arch.fold(state.params, float((x - x.mean(0)).square().sum(1).mean().sqrt()))
    params = folded | {"b_pre": x.mean(0), "b_dec": folded["b_dec"] + x.mean(0)}
    return SAE(state.arch, params, {"site": site, "lm": {"model": lm.name, "digest": lm.digest}})


@pytest.fixture
def lm(lm_of):
    return lm_of("llama")


# ---------------------------------------------------------------------------------------------- steering, ablation


@pytest.mark.parametrize("architecture", ["jumprelu", "gated", "topk"])
def test_a_steered_activation_moves_along_the_features_directions(lm, architecture):
    sae = sae_for(lm, architecture)
    x = lm.read(token_ids(lm, TEXT), [SITE])[SITE]
    f, w_dec = sae.encode(x), sae.params["W_dec"]
    wanted = x + (2.5 - f[..., 3:4]) * w_dec[3] + (0.7 - f[..., 9:10]) * w_dec[9]
    torch.testing.assert_close(steer(sae, {3: 2.5, 9: 0.7})(x), wanted)
    torch.testing.assert_close(steer(sae, {3: 2.5}, add=True)(x), x + 2.5 * w_dec[3])
    torch.testing.assert_close(steer(sae, {3: 2.5}, error=False)(x), sae.decode(f.index_fill(-1, torch.tensor(3), 2.5)))
    torch.testing.assert_close(ablate(sae, range(WIDTH), error=False)(x), sae.params["b_dec"].expand_as(x))
    assert torch.equal(ablate(sae, [])(x), x)
    assert (f > 0).any()


def test_an_intervention_that_changes_nothing_gives_the_same_bits(lm):
    sae, ids = sae_for(lm), token_ids(lm, TEXT)
    assert torch.equal(lm.splice(ids, SITE, steer(sae, {5: 0.0}, add=True)), lm.logits(ids))
    assert torch.equal(lm.splice(ids, SITE, ablate(sae, [], error=False)), lm.splice(ids, SITE, sae))
    assert not torch.equal(lm.splice(ids, SITE, steer(sae, {5: 3.0})), lm.logits(ids))


def test_losses_with_features_ablated(lm):
    sae, ids = sae_for(lm), token_ids(lm, TEXT)
    assert torch.equal(token_losses(lm, ids), next_token_nats(lm.logits(ids), ids))
    used = encode_text(lm, sae, TEXT).features.sum(0).topk(5).indices.tolist()
    found = token_losses(lm, ids, ablate(sae, used))
    assert torch.equal(found, next_token_nats(lm.splice(ids, SITE, ablate(sae, used)), ids))
    assert found.shape == (1, ids.shape[1] - 1)
    assert not torch.equal(found, token_losses(lm, ids))


def test_the_features_of_a_text(lm):
    sae = sae_for(lm)
    found = encode_text(lm, sae, TEXT)
    x = lm.read(found.ids, [SITE])[SITE][0]
    assert torch.equal(found.features[1:], sae.encode(x)[1:])
    assert not found.features[0].any()  # BOS is not trained on
    assert found.tokens[0] == "<bos>"
    assert "".join(found.tokens[1:]) == TEXT
    position = int(found.features.sum(1).argmax())
    (feature, value), *_ = found.top(position)
    assert value == found.features[position].max() == found.features[position, feature]
    assert all(value > 0 for _, value in found.top(position, WIDTH))


# ---------------------------------------------------------------------------------------------- generation


def greedy(lm, ids, replacement, count):
    """Return the tokens that greedy decoding gives, each from a whole pass without a KV cache."""
    for _ in range(count):
        logits = lm.splice(ids, SITE, replacement)[:, -1]
        logits[:, 1] = -torch.inf  # no end, as with `min_new_tokens`
        following = logits.argmax(-1, keepdim=True)
        ids = torch.cat([ids, following], 1)
    return ids


@families
def test_generation_with_a_kv_cache_is_that_without(lm_of, family):
    lm = lm_of(family)
    sae, ids = sae_for(lm), token_ids(lm, TEXT)
    options = {"max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False, "pad_token_id": 1}
    for replacement in (sae, steer(sae, {7: 20.0}, add=True)):
        with spliced(lm, replacement):
            made = lm.model.generate(ids, **options)
        assert torch.equal(made, greedy(lm, ids, replacement, 6))
    assert torch.equal(lm.model.generate(ids, **options), greedy(lm, ids, lambda x: x, 6))  # nothing stays spliced


def test_batches_padded_on_the_left_are_generated_as_each_text_alone(lm):
    sae = sae_for(lm)
    replacement = steer(sae, {7: 20.0}, add=True)
    texts = [token_ids(lm, TEXT)[0], token_ids(lm, TEXT[:9])[0]]
    longest = max(map(len, texts))
    ids = torch.stack([torch.nn.functional.pad(one, (longest - len(one), 0), value=1) for one in texts])
    mask = torch.stack([torch.nn.functional.pad(torch.ones_like(one), (longest - len(one), 0)) for one in texts])
    options = {"max_new_tokens": 5, "min_new_tokens": 5, "do_sample": False, "pad_token_id": 1}
    with spliced(lm, replacement):
        made = lm.model.generate(ids, attention_mask=mask, **options)
        alone = [lm.model.generate(one[None], **options) for one in texts]
    for row, one in zip(made, alone, strict=True):
        assert torch.equal(row[-5:], one[0, -5:])


def test_a_pass_that_fails_leaves_nothing_spliced(lm):
    ids = token_ids(lm, TEXT)
    before = lm.logits(ids)

    def fail(_):
        raise RuntimeError("no")

    with pytest.raises(RuntimeError, match="no"), spliced(lm, fail, SITE):
        lm.logits(ids)
    with spliced(lm, lambda x: 0 * x, SITE):
        assert not torch.equal(lm.logits(ids), before)
    assert torch.equal(lm.logits(ids), before)


# ---------------------------------------------------------------------------------------------- attribution


@pytest.fixture(scope="module")
def precise(lm_folder):
    """Return a model in float64, in which finite differences are exact to many digits."""
    lm = LM.load(LMConfig(model=str(lm_folder("neox")), context=32))
    lm.model.double()
    return lm


@pytest.mark.parametrize("has_error", [True, False])
@pytest.mark.parametrize("target", ["loss", "logit", "difference"])
def test_attribution_is_the_derivative(precise, target, has_error):
    """∂m/∂f_j by a central difference of the spliced model, times f_j; and the same for the SAE's error."""
    lm, sae = precise, sae_for(precise)
    ids = token_ids(lm, TEXT)
    goal = {"loss": None, "logit": 17, "difference": lambda logits: logits[0, 5, 3] - logits[0, 7, 8]}[target]
    found = attribute(lm, sae, ids, goal, error=has_error)

    def measure(change):
        """m with `change` [1, t, d] added at the site."""
        logits = lm.splice(ids, SITE, lambda x: (x if has_error else sae(x).double()) + change)
        if target == "loss":
            return float(torch.nn.functional.cross_entropy(logits[0, :-1], ids[0, 1:]))
        return float(logits[0, -1, 17] if target == "logit" else goal(logits))

    x = lm.read(ids, [SITE])[SITE]
    assert found.value == pytest.approx(measure(torch.zeros_like(x)), rel=1e-5)
    f, step = sae.encode(x), 1e-3
    active = [(p, j) for p, j in f[0].nonzero().tolist() if p > 0]
    chosen = [active[i] for i in np.linspace(0, len(active) - 1, 12).astype(int)]
    scale = float(found.features.abs().max())
    for p, j in chosen:
        change = torch.zeros_like(x)
        change[0, p] = step * sae.params["W_dec"][j].double()
        slope = (measure(change) - measure(-change)) / (2 * step)
        assert float(found.features[0, p, j]) == pytest.approx(slope * float(f[0, p, j]), rel=1e-3, abs=1e-4 * scale)
    misses = (x - sae(x).double()) * step
    slope = (measure(misses) - measure(-misses)) / (2 * step)
    assert float(found.error.sum()) == pytest.approx(slope, rel=1e-3, abs=1e-4 * scale)
    assert not found.features[f == 0].any()
    assert not found.features[:, 0].any()
    top, value = found.top(1)[0]
    assert value == pytest.approx(float(found.features.sum((0, 1))[top]))
    assert abs(value) == pytest.approx(float(found.features.sum((0, 1)).abs().max()))


def test_attribution_leaves_the_model_as_it_is(lm):
    sae, ids = sae_for(lm), token_ids(lm, TEXT)
    before = lm.logits(ids)
    attribute(lm, sae, ids)
    assert torch.equal(lm.logits(ids), before)
    assert all(parameter.grad is None for parameter in lm.model.parameters())


# ---------------------------------------------------------------------------------------------- refusals


def test_what_cannot_be_done_is_a_sentence(lm, monkeypatch):
    sae, ids = sae_for(lm), token_ids(lm, TEXT)
    with pytest.raises(DataError, match="There is no feature 60: SAE"):
        steer(sae, {60: 1.0})
    with pytest.raises(DataError, match="finite"):
        steer(sae, {6: float("nan")})
    unplaced = SAE(sae.arch, sae.params)
    with pytest.raises(StudyError, match="Name the site, such as"):
        attribute(lm, unplaced, ids)
    with pytest.raises(StudyError, match="Name the site, such as"):
        token_losses(lm, ids, lambda x: x)
    with pytest.raises(DataError, match="must be one number"):
        attribute(lm, sae, ids, lambda logits: logits[0, -1])
    with pytest.raises(DataError, match="attention masks are taken by `spliced` only"):
        token_losses(lm, {"input_ids": ids, "attention_mask": ids * 0 + 1})
    with pytest.raises(DataError, match=r"\[contexts, positions\], not \[5\]"):
        attribute(lm, sae, [1, 2, 3, 4, 5])
    monkeypatch.setattr(lm, "tokenizer", SimpleNamespace(pad_token_id=1))
    with pytest.raises(DataError, match="begins with padding: pad on the right"):
        token_losses(lm, torch.cat([ids[:, :2] * 0 + 1, ids], 1))
    with spliced(lm, sae), pytest.raises(DataError, match="give input_ids"):
        lm.model(inputs_embeds=lm.model.get_input_embeddings()(ids))


def test_an_intervention_elsewhere_warns_as_its_sae_does(lm):
    with pytest.warns(UserWarning, match=r"was trained for site layers\.1\.residual, not layers\.0\.residual"):
        lm.splice(token_ids(lm, TEXT), "layers.0.residual", steer(sae_for(lm), {1: 1.0}))


def test_the_names_are_public():
    assert jumpahead.steer is steer
    assert jumpahead.attribute is attribute
