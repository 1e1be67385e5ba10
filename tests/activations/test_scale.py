"""Scale and mean of activations: the mean square norm becomes 1."""

import numpy as np
import pytest
import torch

from jumpahead.activations.base import Activations
from jumpahead.activations.scale import measure_scale
from jumpahead.errors import DataError
from tests.activations.origins.test_live import SITES, contexts, documents, live  # noqa: F401 - fixtures


def test_the_scale_makes_the_mean_square_norm_1(live):  # noqa: F811
    unit = measure_scale(live, live.total_rows)
    for site, width in live.widths.items():
        x = torch.cat([live.rows(group)[site] for group in range(len(live.rows_per_group))]).double()
        assert pytest.approx(float(x.square().sum(1).mean()), rel=1e-12) == unit[site].C ** 2
        assert float((x / unit[site].C).square().sum(1).mean()) == pytest.approx(1, rel=1e-12)
        torch.testing.assert_close(unit[site].mean, x.mean(0).float())
        assert unit[site].mean.shape == (width,)


def test_the_scale_takes_whole_groups_from_the_first(live):  # noqa: F811
    few = measure_scale(live, 1)
    x = live.rows(0)["layers.1.mlp"].double()
    assert pytest.approx(float(x.square().sum(1).mean()), rel=1e-12) == few["layers.1.mlp"].C ** 2


def test_activations_that_are_all_zero_are_refused():
    class Dead(Activations):
        widths = {"layers.0.mlp": 7}  # noqa: RUF012
        rows_per_group = np.array([5, 5])

        @classmethod
        def open(cls, config, **_):
            return cls()

        def rows(self, group):
            return {"layers.0.mlp": torch.zeros(5, 7)}

    with pytest.raises(DataError, match=r"activations at layers\.0\.mlp are all zero \(10 rows\)"):
        measure_scale(Dead(), 100)
