"""Mean and size of activations: what makes them a unit, robustly, and when they cannot be one."""

import numpy as np
import pytest
import torch

from jumpahead.activations.base import Activations
from jumpahead.activations.moments import MANTISSA_BITS, measure_moments, rounding_variance
from jumpahead.errors import DataError
from tests.activations.origins.test_live import SITES, contexts, documents, live  # noqa: F401 - fixtures

SITE = "layers.0.mlp"


class Rows(Activations):
    """Given rows, in groups of 500."""

    rows_per_group: np.ndarray

    def __init__(self, x):
        self.x, self.dtype, self.widths = x.split(500), x.dtype, {SITE: x.shape[1]}
        self.rows_per_group = np.array([len(group) for group in self.x])

    @classmethod
    def open(cls, config, **_):
        raise NotImplementedError

    def rows(self, group):
        return {SITE: self.x[group]}


def normal(n, d, seed=0):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_the_published_unit_makes_the_mean_square_norm_1_and_the_centred_one_the_mean_0_too(live):  # noqa: F811
    found = measure_moments(live, live.total_rows)
    for site, width in live.widths.items():
        x = torch.cat([live.rows(group)[site] for group in range(len(live.rows_per_group))]).double()
        assert found[site].rms ** 2 == pytest.approx(float(x.square().sum(1).mean()), rel=1e-12)
        torch.testing.assert_close(found[site].mean, x.mean(0).float())
        assert found[site].mean.shape == (width,)
        z, limited = found[site].unit("centred", 0.0).apply(x)
        assert float(z.square().sum(1).mean()) == pytest.approx(1, rel=1e-6)
        assert float(z.mean(0).norm()) < 1e-6
        assert limited is None
        z, _ = found[site].unit("published", 10.0).apply(x)
        assert torch.equal(z, x * (1 / found[site].rms))


def test_moments_are_of_whole_groups_from_the_first(live):  # noqa: F811
    few = measure_moments(live, 1)
    x = live.rows(0)["layers.1.mlp"].double()
    assert few["layers.1.mlp"].rms ** 2 == pytest.approx(float(x.square().sum(1).mean()), rel=1e-12)


@pytest.mark.parametrize("gamma", [0.0, 1e2, 1e4])
def test_a_large_mean_costs_no_digits(gamma):
    """E‖x‖² − ‖E x‖² of float32 sums would lose 2·log10(γ) digits of the variance: all of them from 3e3 on."""
    x = (normal(20_000, 12) * 1.7 + gamma * normal(1, 12, 7)).float()
    found = measure_moments(Rows(x), 20_000)[SITE].by_limit[0]
    centred = x.double() - x.double().mean(0)
    assert found.spread**2 == pytest.approx(float(centred.square().sum(1).mean()), rel=1e-9)
    torch.testing.assert_close(found.mean, x.double().mean(0).float(), rtol=1e-7, atol=1e-6)


def test_few_long_rows_do_not_decide_the_unit():
    """0.2 % of the rows, 1000 times as long and on one side: they hold all of the variance."""
    x = (3 * normal(20_000, 12) + 40.0).float()
    long = torch.arange(7, 20_000, 500)
    ordinary = torch.ones(20_000, dtype=torch.bool).index_fill_(0, long, False)
    x[long] = 40.0 + 3000 * (normal(len(long), 12, 3).float().abs() + 1)
    found = measure_moments(Rows(x), 20_000, [4.0])[SITE]
    right = x[ordinary].double()
    spread = float((right - right.mean(0)).square().sum(1).mean().sqrt())
    assert found.by_limit[0].spread > 20 * spread
    for limit in (4.0, 10.0):
        unit = found.unit("centred", limit)
        z, limited = unit.apply(x)
        assert int(limited) == len(long)
        assert unit.scale == pytest.approx(spread, rel=0.002)
        assert float((unit.mean - right.mean(0)).norm()) < 0.003 * spread
        assert float(z.square().sum(1).mean()) == pytest.approx(1, rel=0.01)
        torch.testing.assert_close(z[long].norm(dim=1), torch.full((len(long),), unit.median_norm))
        assert float(z[ordinary].norm(dim=1).median()) == pytest.approx(unit.median_norm, rel=0.01)
        assert torch.equal(z[ordinary], ((x - unit.mean) * (1 / unit.scale))[ordinary]), "ordinary rows keep their bits"
        direction = torch.nn.functional.cosine_similarity(z[long], x[long] - unit.mean)
        assert float(direction.min()) > 1 - 1e-6


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_the_rounding_variance_is_that_of_rounding(dtype):
    x = 100 * normal(4000, 8) + 300
    rounded = x.to(dtype)
    error = (rounded.double() - x).square().sum(1).mean()
    assert rounding_variance(rounded, dtype) == pytest.approx(float(error), rel=0.1)
    assert torch.finfo(dtype).eps == 2.0 ** -MANTISSA_BITS[dtype]


REFUSED = {
    "bfloat16": (1e4, torch.bfloat16, "than bfloat16 can hold beside their mean: set activations.dtype = 'float32'"),
    "constant": (3e3, torch.bfloat16, "than bfloat16 can hold beside their mean: set activations.dtype = 'float32'"),
    "float16": (6e3, torch.float16, "than float16 can hold beside their mean: set activations.dtype = 'float32'"),
    "float32": (1e7, torch.float32, "than float32 can hold beside their mean: subtract their mean before you give"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_activations_that_their_dtype_flattens_are_refused(name):
    mean, dtype, says = REFUSED[name]
    x = ((1e-3 if name == "constant" else 1.0) * normal(3000, 8) + mean).to(dtype)
    with pytest.raises(DataError, match=f"^the activations at layers.0.mlp vary less {says}"):
        measure_moments(Rows(x), 3000)


def test_activations_that_were_computed_in_a_coarse_dtype_are_refused():
    x = (normal(3000, 8) + 10_016).bfloat16().float()  # halfway between 9984 and 10,048
    with pytest.raises(DataError, match="and they were computed in bfloat16: compute them in float32"):
        measure_moments(Rows(x), 3000)
    with pytest.raises(DataError, match=r"are all equal \(3000 rows\): nothing can be learned there"):
        measure_moments(Rows(torch.full((3000, 8), 0.1)), 3000)


@pytest.mark.parametrize(("dtype", "gamma"), [(torch.bfloat16, 20.0), (torch.float16, 150.0), (torch.float32, 3e4)])
def test_a_dtype_that_holds_99_percent_of_the_variance_is_accepted(dtype, gamma):
    x = (normal(3000, 8) + gamma).to(dtype)
    (found,) = measure_moments(Rows(x), 3000).values()
    torch.testing.assert_close(found.mean, x.double().mean(0).float())


def test_activations_that_are_all_zero_are_refused():
    with pytest.raises(DataError, match=r"activations at layers\.0\.mlp are all zero \(10 rows\)"):
        measure_moments(Rows(torch.zeros(10, 7)), 100)
