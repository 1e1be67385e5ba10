"""Bias-likeness: a constant feature has 1, and losses are those of whole forward passes with the feature changed."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from jumpahead.engine import SparseEncoder
from jumpahead.features.bias import BiasLikeness, measure_bias_likeness, most_frequent
from jumpahead.features.collect import FeatureActivity, collect
from jumpahead.lm.losses import next_token_nats
from tests.evaluation.test_evaluate import SITE, hand_made, held_out, lm, random_sae  # noqa: F401 - fixture


@pytest.fixture(scope="module")
def text(lm):  # noqa: F811
    return held_out(lm)


def measured(lm, text, sae, features, tokens=10**6):  # noqa: F811
    activity = collect({"x": sae}, lm, text, SITE).activity["x"]
    return activity, measure_bias_likeness(SparseEncoder(sae), activity, features, lm, text, SITE, tokens)


def test_a_constant_feature_is_a_bias(lm, text):  # noqa: F811
    """Its activation is 3 whatever x is, so its mean is its value: Δloss(mean) = 0."""
    d = lm.width_at(SITE)
    sae = hand_made(torch.zeros(2, d), torch.eye(d)[:2] * 8, torch.zeros(d), 0.5)
    sae.params["b_enc"][0] = 3.0
    activity, (found,) = measured(lm, text, sae, [0])
    assert activity.count[0] == text.contexts.rows_per_group[: text.groups].sum()
    assert found.mean == 0
    assert found.tokens == text.tokens
    assert found.zeroed != 0
    forced = found._replace(zeroed=abs(found.zeroed), zeroed_se=0.0)
    assert forced.value == 1


def test_losses_are_those_of_whole_forward_passes(lm, text):  # noqa: F811
    sae = random_sae(lm, SITE)
    activity = collect({"x": sae}, lm, text, SITE).activity["x"]
    feature = most_frequent(activity, 1)[0]
    (found,) = measure_bias_likeness(SparseEncoder(sae), activity, [feature], lm, text, SITE, 10**6)
    average = float(activity.total[feature] / activity.count[feature])
    contexts, changes = text.contexts, {"zeroed": [], "mean": []}
    for group in range(text.groups):
        ids, spliced = contexts.ids(group), torch.from_numpy(contexts.trained_mask(group))
        scored = torch.from_numpy(contexts.scored_mask(group))
        x = lm.read(ids, [SITE])[SITE]
        f = sae.encode(x)[..., feature]
        fires = (f > 0) & spliced
        clean = next_token_nats(lm.logits(ids), torch.from_numpy(ids))
        for name, change in (("zeroed", -f), ("mean", average - f)):
            new = x + torch.where(fires, change, 0)[..., None] * sae.params["W_dec"][feature]
            nats = next_token_nats(lm.splice(ids, SITE, new, mask=spliced), torch.from_numpy(ids))
            changes[name] += (nats - clean)[(fires & scored)[:, :-1]].tolist()
    assert found.tokens == len(changes["zeroed"]) > 5
    assert found.zeroed == pytest.approx(np.mean(changes["zeroed"]), abs=1e-5)
    assert found.mean == pytest.approx(np.mean(changes["mean"]), abs=1e-5)
    se = np.std(changes["zeroed"]) / np.sqrt(len(changes["zeroed"]))
    assert found.zeroed_se == pytest.approx(se, rel=1e-3)


def test_a_share_of_the_tokens_is_enough(lm, text):  # noqa: F811
    sae = random_sae(lm, SITE)
    frequent = most_frequent(collect({"x": sae}, lm, text, SITE).activity["x"], 2)
    activity, all_of_it = measured(lm, text, sae, frequent)
    _, part = measured(lm, text, sae, frequent, tokens=40)
    assert all(0 <= few.tokens < many.tokens for few, many in zip(part, all_of_it, strict=True))
    assert activity.count[frequent[0]] >= all_of_it[0].tokens


def test_what_cannot_be_told_is_not_given():
    assert BiasLikeness(1, 100, zeroed=0.2, mean=0.05, zeroed_se=0.01).value == pytest.approx(0.75)
    assert BiasLikeness(1, 100, zeroed=0.2, mean=0.05, zeroed_se=0.15).value is None
    assert BiasLikeness(1, 100, zeroed=-0.2, mean=0.05, zeroed_se=0.01).value is None
    assert BiasLikeness(1, 0, 0.0, 0.0, 0.0).value is None


def test_the_most_frequent_come_first_and_the_dead_never():
    activity = FeatureActivity(5)
    activity.count[:] = [3, 0, 9, 3, 1]
    assert most_frequent(activity, 3) == [2, 0, 3]
    assert most_frequent(activity, 9) == [2, 0, 3, 4]
