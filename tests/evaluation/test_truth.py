"""Matching of true features with an SAE's, and F1, against brute force and on SAEs whose F1 is known."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from jumpahead import metrics
from jumpahead.activations.config import ActivationsConfig
from jumpahead.activations.origins import ORIGINS
from jumpahead.engine import SparseFeatures
from jumpahead.evaluation.held_out import HeldOutRows
from jumpahead.evaluation.reconstruct import reconstruct
from jumpahead.evaluation.truth import assign_rows, match_features
from tests.evaluation.test_evaluate import hand_made


@pytest.mark.parametrize(("n", "m"), [(1, 3), (4, 4), (4, 7)])
def test_an_assignment_has_the_smallest_cost_of_all(n: int, m: int):
    rng = np.random.default_rng(7)
    for _ in range(25):
        cost = rng.integers(-5, 6, (n, m)) / 2
        chosen = assign_rows(cost)
        assert len(set(chosen)) == n
        least = min(sum(cost[range(n), columns]) for columns in itertools.permutations(range(m), n))
        assert cost[range(n), chosen].sum() == least


def test_permuted_directions_are_found_among_others_whatever_their_length():
    rng = torch.Generator().manual_seed(3)
    directions = torch.nn.functional.normalize(torch.randn(20, 6, generator=rng), dim=1)
    order = torch.randperm(20, generator=rng)
    decoder = torch.cat([torch.zeros(5, 6), 2.5 * directions[order]])
    assert match_features(directions, decoder).true_of.tolist() == [-1] * 5 + order.tolist()
    few = match_features(directions, decoder[5:12])
    assert few.true_of.tolist() == order[:7].tolist()
    assert few.true_features == 20


def test_counts_equal_those_of_dense_arrays():
    rng = torch.Generator().manual_seed(11)
    features, active = torch.rand(30, 9, generator=rng) < 0.3, torch.rand(30, 4, generator=rng) < 0.4
    chunk = torch.arange(30) // 13
    match = match_features(torch.eye(4), torch.eye(9)[:, [2, 7, 0, 5]])  # true feature 0 is feature 2, 1 is 7, …
    assert match.true_of.tolist() == [2, -1, 0, -1, -1, 3, -1, 1, -1]
    indptr = torch.cat([torch.zeros(1, dtype=torch.int64), features.sum(1).cumsum(0)])
    sparse = SparseFeatures(indptr, features.nonzero()[:, 1].int(), torch.ones(int(indptr[-1])))
    found = match.firing_counts(sparse, active, chunk, 3)
    matched = features[:, [2, 7, 0, 5]]
    for part in range(3):
        here = chunk == part
        assert found["true_firing"][part].tolist() == active[here].sum(0).tolist()
        assert found["matched_firing"][part].tolist() == matched[here].sum(0).tolist()
        assert found["both_firing"][part].tolist() == (matched & active)[here].sum(0).tolist()


def test_an_sae_with_half_of_the_true_directions_has_half_of_the_f1():
    """One feature at a time, so that x·d_j > 0.5·‖d_j‖² finds it exactly; features without a partner have F1 0."""
    options = {"d": 48, "features": 24, "l0": 1.0, "noise": 0.0, "groups": 4, "rows_per_group": 400, "seed": 5}
    config = ActivationsConfig(sites=("s",), origin="synthetic", options=options)
    data = ORIGINS.get("synthetic").open(config)
    directions, bias = data.dictionary["s"], data.bias["s"]  # type: ignore[attr-defined]
    encoder = torch.linalg.pinv(directions.double()).T.float()  # rows that are 1 on their direction, 0 on the others
    held_out = HeldOutRows.first_groups(data.held_out, 1600)  # type: ignore[arg-type]

    def f1(kept: list[int]) -> float:
        sae = hand_made(encoder[kept], directions[kept], bias, 0.05)
        sae.params["b_enc"] -= encoder[kept] @ bias
        return metrics.measure(reconstruct({"it": sae}, held_out, "s")["it"].sums)["f1"]

    assert f1(list(range(24))) == 1.0
    assert f1(list(range(0, 24, 2))) == 0.5
