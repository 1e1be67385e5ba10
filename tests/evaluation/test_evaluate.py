"""Evaluation: exact where the answer is known; elsewhere recomputed, context by context with whole forward passes."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from jumpahead import metrics
from jumpahead.errors import DataError
from jumpahead.evaluation import held_out as held_out_module
from jumpahead.evaluation import logits as logits_module
from jumpahead.evaluation.evaluate import evaluate
from jumpahead.evaluation.held_out import HeldOut
from jumpahead.evaluation.logits import cross_entropies
from jumpahead.evaluation.outliers import OutlierRule
from jumpahead.evaluation.sums import count_per_chunk, evaluation_json, sum_per_chunk
from jumpahead.lm.config import LMConfig
from jumpahead.lm.losses import next_token_nats
from jumpahead.lm.model import LM
from jumpahead.resampling import ratio_standard_error, replicate_weights
from jumpahead.sae.recipe import Setting
from jumpahead.sae.saved import SAE
from jumpahead.storage.json_files import to_json
from jumpahead.storage.packed_numbers import packed_length
from jumpahead.text.documents import is_held_out
from jumpahead.text.source import Document
from jumpahead.text.tokenize import tokenize
from tests.engine.cases import CASES, layer, quick_recipe, random_state, standard_normal

SITE = "layers.1.residual"
EVERYTHING = 10**9
WIDTH = 150


def documents(count=14, seed=1):
    """Held-out documents of 5 to 120 letters, some with a special token inside."""
    random = np.random.default_rng(seed)
    found, number = [], 0
    while len(found) < count:
        number += 1
        if is_held_out(f"{number}.txt", 0.1):
            text = "".join(random.choice(list("abcdefgh \n"), random.integers(5, 120)))
            found.append(Document(f"{number}.txt", text[:9] + "<eos>" + text[9:] if number % 3 else text))
    return found


@pytest.fixture(scope="module")
def lm(lm_of):
    return lm_of("neox")


def held_out(lm, tokens=EVERYTHING):
    return HeldOut.first_groups(tokenize(documents(), lm, split="held_out", held_out=0.1), tokens)


@pytest.fixture(scope="module")
def text(lm):
    return held_out(lm)


def hand_made(w_enc, w_dec, b_dec, threshold):
    """A saved JumpReLU SAE with these weights."""
    case = next(case for case in CASES if case.architecture == "jumprelu")
    kind = type(case.arch())
    arch = kind(kind.Options(), Setting("l0", 3.0), quick_recipe())
    rest = {"b_enc": torch.zeros(len(w_enc)), "threshold": torch.full((len(w_enc),), threshold)}
    return SAE(arch, {"W_enc": w_enc, "W_dec": w_dec, "b_dec": b_dec, **rest})


def identity(d):
    both = torch.cat([torch.eye(d), -torch.eye(d)])
    return hand_made(both, both, torch.zeros(d), 0.0)


def constant(value):
    """x̂ = value whatever x is."""
    return hand_made(torch.eye(len(value)), torch.eye(len(value)), value, float("inf"))


def random_sae(lm, site, name="jumprelu", seed=7):
    d = lm.width_at(site)
    state = random_state(next(case for case in CASES if case.architecture == name), d, WIDTH, seed, torch.float32)
    x = lm.read([[0, *range(2, 30)]], [site])[site][0, 1:]
    return SAE(state.arch, state.arch.fold(state.params, float(x.square().sum(1).mean().sqrt())))


# ---------------------------------------------------------------------------------------------- known answers


@pytest.mark.parametrize("family", ["neox", "llama"])
@pytest.mark.parametrize("site", ["layers.0.residual", "layers.1.mlp", "layers.2.attention"])
def test_an_identity_costs_exactly_nothing(lm_of, family, site):
    lm, d = lm_of(family), lm_of(family).width_at(site)
    text = held_out(lm, 200)
    found = evaluate({"identity": identity(d)}, lm, text, site, torch.zeros(d))["identity"]
    assert np.array_equal(found.sums.spliced, found.sums.clean)
    assert np.array_equal(found.documents["spliced"], found.documents["clean"])
    m = metrics.measure(found.sums)
    assert m["delta_lm_loss"] == 0
    assert m["fvu"] == 0
    assert m["l0"] == d
    assert m["cosine"] == pytest.approx(1, abs=1e-12)
    assert m["shrinkage"] == 1
    assert m["kl"] == 0
    assert m["loss_recovered_zero"] == 1
    assert m["ce_zero"] != m["ce_clean"]


def test_zero_output_is_the_zero_ablation_and_the_means_the_mean_ablation(lm, text):
    d = lm.width_at(SITE)
    mean = 0.3 * standard_normal(d, seed=3).float()
    found = evaluate({"zero": constant(torch.zeros(d)), "mean": constant(mean)}, lm, text, SITE, mean)
    for name in ("zero", "mean"):
        sums = found[name].sums
        assert np.array_equal(sums.spliced, getattr(sums, name))
        m = metrics.measure(sums)
        assert (m["l0"], m["never_fired"], m["share_never_fired"]) == (0, d, 1)
        assert m[f"loss_recovered_{name}"] == 0
        assert m["kl"] > 0.001
    assert not np.array_equal(found["zero"].sums.spliced, found["mean"].sums.spliced)


def test_sums_per_chunk_by_hand():
    """The first context is one chunk, the second is padding before none, the third is two chunks."""
    where = torch.tensor([[0, 1, 1], [0, 0, 0], [1, 0, 1]]).bool()
    chunk = torch.tensor([[0, 0, 0], [1, 1, -1], [2, 3, 3]])
    counts = count_per_chunk(chunk, where, 5)
    assert counts.tolist() == [2, 0, 1, 1, 0]
    assert sum_per_chunk(torch.tensor([0.5, 2.0, 3.0, 7.0]), counts).tolist() == [2.5, 0, 3, 7, 0]
    pairs = torch.tensor([[2, 30], [4, 50], [6, 70], [8, 90]], dtype=torch.int32)
    found = sum_per_chunk(pairs, counts)
    assert found.tolist() == [[6, 80], [0, 0], [6, 70], [8, 90], [0, 0]]
    assert found.dtype == np.int64
    assert sum_per_chunk(torch.ones(0), np.zeros(2, np.int64)).tolist() == [0, 0]
    third = torch.full((4,), 1 / 3)  # in float64, of what float32 holds
    assert sum_per_chunk(third, counts).tolist()[:3] == [2 * float(third[0]), 0, float(third[0])]


@pytest.mark.parametrize("at_once", [1, 3 * 70, 10**9])
def test_losses_a_few_rows_at_a_time_in_float64(monkeypatch, at_once):
    """Logits of the size that language models have: ±30, where float32 sums over the vocabulary lose digits."""
    monkeypatch.setattr(logits_module, "LOGITS_AT_ONCE", at_once)
    generator = torch.Generator().manual_seed(3)
    logits, other = (7 * torch.randn(11, 70, generator=generator) for _ in range(2))
    target, p = torch.arange(11) * 5, torch.softmax(other, -1)
    next_token_nats, cross = cross_entropies(logits, target, p)
    log_q = logits.double().log_softmax(-1)
    torch.testing.assert_close(next_token_nats.double(), -log_q[torch.arange(11), target], rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(cross.double(), (p.double() * log_q).sum(1), rtol=1e-6, atol=1e-6)
    assert torch.equal(cross_entropies(logits, target)[0], next_token_nats)


# ---------------------------------------------------------------------------------------------- recomputed


@pytest.mark.parametrize("site", [SITE, "layers.2.mlp"])
@pytest.mark.parametrize("name", ["jumprelu", "gated", "topk"])
def test_every_number_recomputed_context_by_context(lm, text, site, name):
    """Dense SAE, whole forward passes, no groups, no padding, no resumption; sums in float64."""
    sae, mean = random_sae(lm, site, name), 0.1 * standard_normal(lm.width_at(site), seed=3).float()
    contexts = text.contexts
    first = lm.read([[lm.bos_id, *contexts.tokens[:40].tolist()]], [site])[site][0, 1:]
    rule = OutlierRule(mean, float((first - mean).norm(dim=1).median()))
    found = evaluate({"it": sae}, lm, text, site, mean, layer=layer("torch"), outliers=rule)["it"]
    m = metrics.measure(found.sums)
    per_document = {key: np.zeros(len(contexts.document_ids)) for key in ("tokens", "clean", "spliced")}
    xs, guesses, fs = [], [], []
    total = dict.fromkeys(("zero", "mean", "kl"), 0.0)
    for start, length, owner in zip(contexts.chunk_start, contexts.chunk_length, contexts.chunk_document, strict=True):
        row = [lm.bos_id, *contexts.tokens[start : start + length].tolist()]
        mask = lm.spliceable([row])[0]
        x = lm.read([row], [site])[site][0]
        f = sae.encode(x)
        xs.append(x[mask])
        fs.append(f[mask])
        guesses.append(sae.decode(f)[mask])
        ids, is_scored = torch.tensor([row]), mask[:-1]
        outcomes = {
            "clean": lm.logits([row]),
            "spliced": lm.splice([row], site, sae),
            "zero": lm.splice([row], site, torch.zeros_like),
            "mean": lm.splice([row], site, lambda x: mean.expand_as(x)),
        }
        cost = {
            key: next_token_nats(logits, ids)[0][is_scored].double().sum().item() for key, logits in outcomes.items()
        }
        for key in ("zero", "mean"):
            total[key] += cost[key]
        p, q = (outcomes[key][0, :-1][is_scored].double().log_softmax(-1) for key in ("clean", "spliced"))
        total["kl"] += (p.exp() * (p - q)).sum().item()
        for key, value in {"tokens": int(is_scored.sum()), "clean": cost["clean"], "spliced": cost["spliced"]}.items():
            per_document[key][owner] += value
    for key, values in per_document.items():
        np.testing.assert_allclose(found.documents[key], values, rtol=1e-5)
    tokens = per_document["tokens"].sum()
    x, guess, f = torch.cat(xs).double(), torch.cat(guesses).double(), torch.cat(fs)
    firing, near = (f > 0).sum(0), (x - mean).norm(dim=1) <= rule.norm
    assert 0.1 < near.double().mean() < 0.9
    wanted = {
        "ce_clean": per_document["clean"].sum() / tokens,
        "ce_spliced": per_document["spliced"].sum() / tokens,
        "delta_lm_loss": (per_document["spliced"] - per_document["clean"]).sum() / tokens,
        "ce_zero": total["zero"] / tokens,
        "ce_mean": total["mean"] / tokens,
        "kl": total["kl"] / tokens,
        "l0": (f > 0).sum().item() / len(f),
        "fvu": ((x - guess).square().sum() / (x - x.mean(0)).square().sum()).item(),
        "fvu_ordinary": ((x - guess)[near].square().sum() / (x[near] - x[near].mean(0)).square().sum()).item(),
        "outlier_variance": 1 - ((x[near] - x[near].mean(0)).square().sum() / (x - x.mean(0)).square().sum()).item(),
        "cosine": torch.cosine_similarity(x, guess).mean().item(),
        "shrinkage": (guess.square().sum() / (x * guess).sum()).item(),
        "above_10pct": int((10 * firing > len(f)).sum()),
        "above_1pct": int((100 * firing > len(f)).sum()),
        "never_fired": int((firing == 0).sum()),
    }
    for key, value in wanted.items():
        assert m[key] == pytest.approx(value, rel=2e-5, abs=1e-7), key
    assert tokens == text.tokens == found.sums.tokens.sum()
    assert len(f) == found.sums.rows.sum() > tokens
    np.testing.assert_allclose(found.sums.firing.sum(0), firing.numpy(), atol=1)
    np.testing.assert_allclose(found.outlier_firing, (f[~near] > 0).sum(0).numpy(), atol=1)
    assert found.sums.outlier_rows.sum() == (~near).sum()
    assert m["fvu"] > 0.01
    assert 0 < m["l0"] < WIDTH


def test_the_grouping_of_contexts_changes_no_metric(lm_folder):
    found = []
    for batch in (1, 3, 8):
        lm = LM.load(LMConfig(model=str(lm_folder("neox")), context=32, batch=batch))
        text = held_out(lm)
        sae = random_sae(lm, SITE)
        found.append(metrics.measure(evaluate({"it": sae}, lm, text, SITE, torch.zeros(sae.d))["it"].sums))
    for other in found[1:]:
        for key, value in found[0].items():
            assert other[key] == pytest.approx(value, rel=1e-5, abs=1e-6, nan_ok=True), key


def test_saes_measured_together_are_measured_alone(lm, text):
    saes = {name: random_sae(lm, SITE, name) for name in ("gated", "jumprelu", "topk")}
    mean = torch.zeros(lm.width_at(SITE))
    together = evaluate(saes, lm, text, SITE, mean)
    for name, sae in saes.items():
        alone = evaluate({name: sae}, lm, text, SITE, mean)[name]
        for ours, theirs in zip(together[name].sums, alone.sums, strict=True):
            assert np.array_equal(ours, theirs)


# ---------------------------------------------------------------------------------------------- which text


def test_whole_groups_are_scored_until_there_are_enough_tokens(lm, text):
    per_group = text.contexts.scored_per_group
    assert text.groups == text.contexts.num_groups > 3
    assert text.tokens == per_group.sum()
    some = held_out(lm, int(per_group[:2].sum()))
    assert (some.groups, some.tokens) == (2, per_group[:2].sum())
    more = held_out(lm, int(per_group[:2].sum()) + 1)
    assert more.groups == 3
    seen = {int(d) for group in range(2) for d in some.contexts.chunk_documents(group)}
    assert {i for i, cluster in enumerate(some.cluster) if cluster >= 0} == seen
    sae = identity(lm.width_at(SITE))
    found = evaluate({"it": sae}, lm, some, SITE, torch.zeros(sae.d))["it"]
    assert found.sums.tokens.sum() == some.tokens
    assert set(np.flatnonzero(found.documents["tokens"])) <= seen


def test_many_documents_share_clusters(lm, text, monkeypatch):
    monkeypatch.setattr(held_out_module, "MOST_CLUSTERS", 3)
    few = held_out(lm)
    assert (few.clusters, text.clusters) == (3, len(set(text.contexts.chunk_document)))
    sizes = np.bincount(few.cluster)
    assert sizes.max() - sizes.min() <= 1
    sae = random_sae(lm, SITE)
    one, other = (evaluate({"it": sae}, lm, it, SITE, torch.zeros(sae.d))["it"] for it in (few, text))
    assert one.sums.tokens.shape == (3,)
    for key, value in metrics.measure(other.sums).items():
        assert metrics.measure(one.sums)[key] == pytest.approx(value, rel=1e-9, nan_ok=True), key
    for key, values in other.documents.items():
        assert np.array_equal(one.documents[key], values)


def test_an_sae_of_another_width_is_refused(lm, text):
    with pytest.raises(DataError, match=f"mine takes activations of width 5; {SITE} has {lm.width_at(SITE)}"):
        evaluate({"mine": identity(5)}, lm, text, SITE, torch.zeros(5))


# ---------------------------------------------------------------------------------------------- evaluation.json


def test_the_document_holds_what_a_frontier_needs(lm, text):
    sae = random_sae(lm, SITE)
    measured = evaluate({"it": sae}, lm, text, SITE, torch.zeros(sae.d))["it"]
    weights = replicate_weights(text.clusters, 25)
    made = json.loads(to_json(evaluation_json(measured, text, weights, ["said before."])))
    assert made["schema"] == "jumpahead.evaluation/2"
    assert set(made["metrics"]) == set(metrics.METRICS)
    assert all(packed_length(values) == 25 for values in made["bootstrap"].values())
    assert set(made["bootstrap"]) == set(metrics.curve_metrics()) - {"f1"}
    documents = made["documents"]
    assert sum(documents["tokens"]) == made["text"]["tokens"] == text.tokens
    delta = (np.sum(documents["spliced"]) - np.sum(documents["clean"])) / text.tokens
    assert made["metrics"]["delta_lm_loss"] == pytest.approx(delta, rel=1e-9)
    assert made["text"]["documents"] == made["text"]["clusters"] == len(documents["identity"])
    assert all(name.endswith(".txt") for name in documents["identity"])
    error = ratio_standard_error(np.subtract(documents["spliced"], documents["clean"]), np.array(documents["tokens"]))
    assert made["standard_errors"]["delta_lm_loss"] == pytest.approx(error)
    assert made["notes"][0] == "said before."
    assert (error > 0.05 * abs(delta)) == any("standard error" in note for note in made["notes"])
    assert sum(made["histogram"]["counts"]) <= WIDTH


def test_a_loose_number_says_so(lm):
    text = held_out(lm, 40)
    sae = identity(lm.width_at(SITE))
    sae.params["b_dec"] += 1e-3
    measured = evaluate({"it": sae}, lm, text, SITE, torch.zeros(sae.d))["it"]
    made = evaluation_json(measured, text, replicate_weights(text.clusters, 20))
    assert any("more than 5 %" in note and "evaluate.tokens" in note for note in made["notes"])
