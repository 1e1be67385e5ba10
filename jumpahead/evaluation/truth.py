"""Compare the features of an SAE with the true features that synthetic activations are made of.

Each true feature is matched with one feature of the SAE, so that the sum of cosines between true directions and decoder
rows is largest. A true feature is found if the two are active on the same rows: `metrics.METRICS["f1"]`.

    F, M      number of true features, number of features of the SAE
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from jumpahead.engine import SparseFeatures


class FeatureMatch(NamedTuple):
    """A one-to-one match of true features with features of an SAE."""

    true_of: Tensor
    """int64 [M]: the true feature that each feature of the SAE is matched with; −1 if none."""
    true_features: int
    """F."""

    def firing_counts(
        self, features: SparseFeatures, active: Tensor, row_chunk: Tensor, chunks: int
    ) -> dict[str, np.ndarray]:
        """Return the fields `true_firing`, `matched_firing` and `both_firing` of `metric_sums.Sums`, int64 [chunks, F].

        features: the SAE's features on n rows. active: bool [n, F], the true features that are active. row_chunk:
        int64 [n], the chunk of each row.
        """

        def count(row: Tensor, true_feature: Tensor) -> np.ndarray:
            """Return the number of entries per chunk and true feature."""
            index = row_chunk[row] * self.true_features + true_feature
            return torch.bincount(index, minlength=chunks * self.true_features).view(chunks, -1).numpy()

        rows = torch.arange(len(active)).repeat_interleave(features.indptr.diff().cpu())
        found = self.true_of[features.feature.long().cpu()]
        rows, found = rows[found >= 0], found[found >= 0]
        both = active[rows, found]
        return {
            "true_firing": count(*active.nonzero(as_tuple=True)),
            "matched_firing": count(rows, found),
            "both_firing": count(rows[both], found[both]),
        }


def match_features(directions: Tensor, w_dec: Tensor) -> FeatureMatch:
    """Return the match of true directions [F, d] (unit rows) with decoder rows [M, d] by cosine.

    min(F, M) features are matched. Decoder rows of zeros have cosine 0 with every direction.
    """
    rows = w_dec.detach().cpu().double()
    cosines = directions.double() @ (rows / rows.norm(dim=1, keepdim=True).clamp_min(1e-30)).T
    is_wide = cosines.shape[0] <= cosines.shape[1]
    chosen = torch.from_numpy(assign_rows(-(cosines if is_wide else cosines.T).numpy()))
    true_of = torch.full((len(rows),), -1)
    if is_wide:
        true_of[chosen] = torch.arange(len(chosen))
    else:
        true_of = chosen
    return FeatureMatch(true_of, len(directions))


def assign_rows(cost: np.ndarray) -> np.ndarray:
    """Return the column of every row of cost [n, m], n ≤ m, int64 [n]: distinct columns with the smallest total cost.

    The shortest augmenting path algorithm (Jonker and Volgenant 1987; Crouse 2016): rows are assigned one by one,
    each along the shortest path from it to a free column in the graph of reduced costs. At most n²·m operations.
    """
    n, m = cost.shape
    row_potential, column_potential = np.zeros(n), np.zeros(m)
    column_of, row_of = np.full(n, -1), np.full(m, -1)
    for first in range(n):
        distance, previous = np.full(m, np.inf), np.full(m, -1)
        is_open, visited = np.ones(m, bool), [first]
        row, shortest = first, 0.0
        while True:
            reach = shortest + cost[row] - row_potential[row] - column_potential
            is_nearer = is_open & (reach < distance)
            distance[is_nearer], previous[is_nearer] = reach[is_nearer], row
            column = int(np.where(is_open, distance, np.inf).argmin())
            shortest, is_open[column] = distance[column], False
            if row_of[column] < 0:
                break
            row = int(row_of[column])
            visited.append(row)
        row_potential[first] += shortest
        others = visited[1:]
        row_potential[others] += shortest - distance[column_of[others]]
        column_potential[~is_open] -= shortest - distance[~is_open]
        while True:
            row = int(previous[column])
            row_of[column] = row
            column_of[row], column = column, column_of[row]
            if row == first:
                break
    return column_of
