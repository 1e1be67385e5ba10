"""Synthetic activations agree with their dictionary and its statistics."""

import hashlib
import itertools

import pytest
import torch
from pydantic import ValidationError

from jumpahead.activations.config import ActivationsConfig
from jumpahead.activations.moments import measure_moments
from jumpahead.activations.origins import ORIGINS
from jumpahead.activations.stream import Stream

SITES = ("layers.0.residual", "layers.3.mlp")


def make(**options):
    options = {"d": 24, "features": 100, "l0": 5.0, "groups": 40, "rows_per_group": 300, **options}
    return ORIGINS.get("synthetic").open(ActivationsConfig(sites=SITES, origin="synthetic", options=options))


def test_rows_are_sums_of_the_dictionary():
    data = make(noise=0.0)
    for site, x in data.rows(7).items():
        assert x.shape == (300, 24)
        expected = data.bias[site] + data.feature_activations(7)[site] @ data.dictionary[site]
        torch.testing.assert_close(x, expected)
        torch.testing.assert_close(data.dictionary[site].norm(dim=1), torch.ones(100))


def test_features_have_the_given_frequencies():
    data = make()
    truth = torch.cat([data.feature_activations(group)[SITES[1]] for group in range(40)])
    assert float((truth > 0).sum(1).float().mean()) == pytest.approx(5.0, rel=0.03)
    measured = (truth > 0).float().mean(0)
    torch.testing.assert_close(measured, data.frequency, rtol=0.25, atol=0.004)
    assert data.frequency[0] > 5 * data.frequency[99]
    assert float(truth[truth > 0].mean()) == pytest.approx(1.0, rel=0.02)
    assert float(truth[truth > 0].min()) >= 0.1


def test_noise_has_the_given_standard_deviation():
    data = make(noise=0.3)
    x = data.rows(2)[SITES[0]] - data.bias[SITES[0]] - data.feature_activations(2)[SITES[0]] @ data.dictionary[SITES[0]]
    assert float(x.std()) == pytest.approx(0.3, rel=0.05)


def test_a_group_is_a_function_of_seed_site_and_number_alone():
    one, again, other = make(), make(groups=80), make(seed=6)
    one.rows(3)
    assert all(torch.equal(x, again.rows(9)[site]) for site, x in one.rows(9).items())
    assert not torch.equal(one.rows(9)[SITES[0]], one.rows(8)[SITES[0]])
    assert not torch.equal(one.rows(9)[SITES[0]], one.rows(9)[SITES[1]])
    assert not torch.equal(one.rows(9)[SITES[0]], other.rows(9)[SITES[0]])
    assert not torch.equal(one.dictionary[SITES[0]], other.dictionary[SITES[0]])
    assert one.digest != other.digest


def test_the_stream_and_the_scale_accept_it():
    data = make()
    assert not ORIGINS.get("synthetic").needs_lm
    batches = list(itertools.islice(Stream(data, 128, seed=2).batches(5), 3))
    assert [x[SITES[1]].shape for x in batches] == [(128, 24)] * 3
    rms = measure_moments(data, 3000)[SITES[0]].rms
    x = torch.cat([data.rows(group)[SITES[0]] for group in range(40)])
    assert rms**2 == pytest.approx(float(x.square().sum(1).mean()), rel=0.05)


def family(**options):
    """Return 40 parents with three children each, on 60,000 rows."""
    return make(
        **{"features": 160, "child_probability": (0.1, 0.25, 0.4), "rows_per_group": 1500, "l0": 7.0, **options}
    )


def firing(data):
    return torch.cat([data.feature_activations(group)[SITES[0]] for group in range(40)]) > 0


def test_without_children_and_groups_the_bytes_are_what_they_were():
    data = make(seed=3)
    rows = hashlib.sha256(data.rows(5)[SITES[1]].numpy().tobytes()).hexdigest()
    assert rows[:16] == "fad8b7d3d4340184"
    assert data.digest[:16] == "a8c834cb94f6c5f4"


def test_children_are_active_with_their_parent_alone():
    data = family()
    active = firing(data)
    parents, children = active[:, :40], active[:, 40:].view(-1, 40, 3)
    assert not bool((children & ~parents[:, :, None]).any())
    given_parent = children.sum((0, 1)) / parents.sum()
    torch.testing.assert_close(given_parent, torch.tensor([0.1, 0.25, 0.4]), atol=0.01, rtol=0)
    assert float(active.sum(1).float().mean()) == pytest.approx(7.0, rel=0.03)
    torch.testing.assert_close(active.float().mean(0), data.frequency, atol=0.02, rtol=0.05)


def test_parents_of_a_group_are_active_together_and_as_often_as_without_groups():
    data = family(correlated_groups=8, group_correlation=0.6)
    active = firing(data).double()
    torch.testing.assert_close(active.mean(0).float(), data.frequency, atol=0.02, rtol=0.05)
    correlation = torch.corrcoef(active[:, :40].T)
    same = torch.arange(40)[:, None] % 8 == torch.arange(40) % 8
    assert float(correlation[same & ~torch.eye(40, dtype=torch.bool)].mean()) > 0.2
    assert float(correlation[~same].abs().max()) < 0.03
    assert not bool((active[:, 40:].view(-1, 40, 3) > active[:, :40, None]).any())
    held_out = data.held_out
    assert torch.equal(held_out.dictionary[SITES[0]], data.dictionary[SITES[0]])
    assert torch.equal(family().dictionary[SITES[0]], data.dictionary[SITES[0]])
    assert family().digest != data.digest


def test_features_are_whole_families():
    with pytest.raises(ValidationError, match="features must be a multiple of 4"):
        family(features=162)
