"""Step 1: the support is exact and has the same bits for every kernel layer and encoder product; ties go to the lower
feature."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import jumpahead.engine.kernels.numba.layer as numba_kernels
import jumpahead.engine.kernels.torch.layer as torch_kernels
from jumpahead.engine.batch_topk import select_support
from jumpahead.engine.kernels.numba import NumbaKernels
from jumpahead.engine.kernels.numba.matmul_backends import BACKENDS, is_accurate
from jumpahead.engine.state import make_step_inputs
from jumpahead.sae.support import DEAD, MAIN, AboveThreshold, TopKOfBatch, TopKPerToken
from tests.engine.cases import (
    CASES,
    LAYERS,
    activations,
    in_dtype,
    layer,
    one_per_architecture,
    random_state,
    standard_normal,
)
from tests.engine.supports import (
    assert_layout,
    data_with_exact_sums,
    data_with_large_rounding,
    support_of,
    to_dense,
)

cases = pytest.mark.parametrize("case", CASES, ids=lambda case: case.label)
layers = pytest.mark.parametrize("name", LAYERS)


architectures = pytest.mark.parametrize("case", one_per_architecture(), ids=lambda case: case.architecture)


MODULES = {"torch": torch_kernels, "numba": numba_kernels}
DTYPES = [torch.float32, torch.float64]


@layers
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("k", [1, 3, 17, 60, 200])
def test_ties_go_to_the_lower_feature(name, dtype, k):
    """Duplicate encoder rows and a small range of exact values make many ties. Compared with the dense `activate`."""
    x, w, b = data_with_exact_sums(31, 5, 60, seed=k, dtype=dtype, levels=2)
    w[30:], b[30:] = w[:30], b[:30]
    arch = next(c for c in CASES if c.architecture == "topk").arch()
    arch.setting = arch.setting._replace(value=float(k))
    pre = x @ w.T + b
    wanted = arch.activate({}, pre)
    found = support_of(name, x, w, b, TopKPerToken(k))
    assert_layout(found, 31, 60)
    assert torch.equal(to_dense(found, 60, found.pre), wanted.double())
    assert torch.equal(to_dense(found, 60), (wanted > 0).double()), "entries that are not positive are not kept"
    ties = (wanted[:, :30] > 0) & (wanted[:, 30:] == 0) & (pre[:, 30:] > 0)
    assert ties.any() or k >= 60, "no tie was decided by the index"


@layers
@pytest.mark.parametrize("dtype", DTYPES)
def test_ties_among_dead_features(name, dtype):
    x, w, b = data_with_exact_sums(25, 4, 48, seed=9, dtype=dtype, levels=2)
    w[24:], b[24:] = w[:24], b[:24]
    dead = torch.arange(48) % 3 == 0
    found = support_of(name, x, w, b, TopKPerToken(4, dead, 3))
    assert_layout(found, 25, 48)
    pre = x @ w.T + b
    arch = next(c for c in CASES if c.architecture == "topk").arch()
    arch.setting = arch.setting._replace(value=4.0)
    main = arch.activate({}, pre) > 0
    arch.setting = arch.setting._replace(value=3.0)
    among = arch.activate({}, pre.masked_fill(~dead, -torch.inf)) > 0
    assert (main & among).any()
    assert torch.equal(to_dense(found, 48), (MAIN * main.double() + DEAD * among.double()))


@layers
@pytest.mark.parametrize("dtype", DTYPES)
def test_entries_equal_to_the_lower_bound_are_excluded(name, dtype):
    x, w, b = data_with_exact_sums(40, 6, 64, seed=2, dtype=dtype)
    pre = x @ w.T + b
    lower = pre[torch.arange(64) % 40, torch.arange(64)].clone()  # each bound is some entry's own value
    lower[[5, 50]] = -torch.inf
    found = support_of(name, x, w, b, AboveThreshold(lower))
    assert_layout(found, 40, 64)
    assert torch.equal(to_dense(found, 64), (pre > lower).double())
    assert (pre == lower).sum() >= 62


@layers
@pytest.mark.parametrize("selection", ["above", "largest", "dead"])
def test_full_buffers_are_grown_and_lose_no_entry(name, selection):
    """600 features, more than the initial buffers hold: all entries tie, or all are kept."""
    x, w, b = data_with_exact_sums(7, 3, 600, seed=1, dtype=torch.float32, levels=1)
    w[:], b[:] = w[0], 1.0  # one value per token: 600 ties
    chosen = {
        "above": AboveThreshold(torch.full((600,), -5.0)),
        "largest": TopKPerToken(2),
        "dead": TopKPerToken(2, torch.arange(600) >= 90, 3),
    }[selection]
    kernels = layer(name)
    for _ in range(2):  # the second time with the grown buffers
        found = support_of(kernels, x, w, b, chosen)
        assert_layout(found, 7, 600)
        on = (x @ w[0] + 1.0) > 0
        count = {"above": 600, "largest": 2, "dead": 5}[selection]
        kept = on | (selection == "above")
        assert found.indptr.diff().tolist() == [count if it else 0 for it in kept]
    if selection == "dead":
        assert found.feature[found.order[:5].long()].tolist() == [0, 1, 90, 91, 92]


@layers
@pytest.mark.parametrize("kind", ["above", "largest"])
def test_the_block_size_changes_no_bit(name, kind, monkeypatch):
    x, w, b = (
        standard_normal(20, 9, seed=1).float(),
        standard_normal(333, 9, seed=2).float(),
        standard_normal(333, seed=3).float(),
    )
    chosen = (
        AboveThreshold(1 + standard_normal(333, seed=4).float())
        if kind == "above"
        else TopKPerToken(6, standard_normal(333, seed=5) > 0, 4)
    )
    whole = support_of(name, x, w, b, chosen)
    monkeypatch.setattr(MODULES[name], "BLOCK_ENTRIES", 20 * 48)
    monkeypatch.setattr(torch_kernels, "GATHER_ENTRIES", 70)
    for found, wanted in zip(support_of(name, x, w, b, chosen), whole, strict=True):
        assert (found is None and wanted is None) or torch.equal(found, wanted)


@pytest.mark.parametrize("selection", ["above", "largest", "dead"])
@pytest.mark.parametrize("seed", range(4))
def test_error_bounds_include_the_rounding_of_the_output(selection, seed):
    """Rows that bfloat16 represents exactly, sums that it does not: only the output of the product is rounded."""
    random = np.random.default_rng(seed)
    tokens, d, width = 70, 48, 300
    x, w = (torch.from_numpy(random.integers(-100, 101, (n, d))).float() / 64 for n in (tokens, width))
    b = torch.from_numpy(random.integers(-80_000, 80_001, width)).float() / 4096
    # Biases differ, so that products of different size, rounded differently, compete for one token.
    assert torch.equal(x.bfloat16().float(), x)
    assert torch.equal(w.bfloat16().float(), w)
    product = x.double() @ w.double().T
    pre = product + b.double()
    assert torch.equal(pre.float().double(), pre), "float32 holds the sums"
    assert not torch.equal(product.bfloat16().double(), product), "bfloat16 does not"
    lower = pre[torch.arange(width) % tokens, torch.arange(width)].float() - 2.0**-13
    dead = torch.arange(width) % 3 > 0
    chosen = {"above": AboveThreshold(lower), "largest": TopKPerToken(9), "dead": TopKPerToken(9, dead, 7)}[selection]
    for library in filter(is_accurate, BACKENDS):
        found = support_of(NumbaKernels(library), x, w, b, chosen)
        wanted = support_of("torch", x, w, b, chosen)
        for ours, theirs in zip(found, wanted, strict=True):
            assert (ours is None and theirs is None) or torch.equal(ours, theirs), library.name
    assert torch.equal(
        to_dense(wanted, width) > 0,
        bounds_and_selection(chosen, pre)[1] if selection == "above" else expected_topk(chosen, pre),
    )


def expected_topk(chosen, pre):
    """Return which entries are among the largest, [B, M] bool; ties go to the lower feature. pre [B, M]: exact π."""

    def largest(some, k):
        order = torch.sort(some, dim=1, descending=True, stable=True).indices[:, :k]
        return torch.zeros_like(some, dtype=torch.bool).scatter(1, order, True) & (some > 0)

    found = largest(pre, chosen.k)
    return found if chosen.dead is None else found | largest(pre.masked_fill(~chosen.dead, -torch.inf), chosen.k_dead)


@pytest.mark.parametrize("kind", ["ordinary", "constant", "massive", "cancelling", "bias", "tiny"])
@pytest.mark.parametrize("selection", ["above", "largest"])
def test_screening_never_loses_an_entry(kind, selection):
    """The support holds every entry whose exact π exceeds its bound by more than one float32 rounding, and no other.

    Bounds are the values of entries, so screening with too small an error bound loses some. Layers and products agree
    in every bit.
    """
    x, w, b = data_with_large_rounding(kind)
    pre = x.double() @ w.double().T + b.double()
    width, k = len(w), 9
    lower = pre[torch.arange(width) % len(x), torch.arange(width)].float()
    chosen = AboveThreshold(lower) if selection == "above" else TopKPerToken(k)
    found = {name: support_of(name, x, w, b, chosen) for name in LAYERS}
    found |= {p.name: support_of(NumbaKernels(p), x, w, b, chosen) for p in BACKENDS if is_accurate(p)}
    if kind == "cancelling":  # float64's rounding shows in a float32 here, and layers add in different orders
        plain = found.pop("torch")
        assert_selects_all_clear_entries(plain, pre, lower if selection == "above" else k)
    for one in found.values():
        for ours, theirs in zip(one, found["numba"], strict=True):
            assert (ours is None and theirs is None) or torch.equal(ours, theirs)
    assert_selects_all_clear_entries(found["numba"], pre, lower if selection == "above" else k)


def assert_selects_all_clear_entries(support, pre, rule):
    """Assert that the support is right wherever rounding cannot decide. rule: bounds [M], or k. pre [B, M]: exact π."""
    width = pre.shape[1]
    if isinstance(rule, torch.Tensor):
        bound = rule.double().expand_as(pre)
    else:
        order = pre.sort(dim=1, descending=True).values
        middle = (order[:, rule - 1 : rule] + order[:, rule : rule + 1]) / 2
        bound = middle.clamp_min(0.0).expand_as(pre)
    is_clear = (pre - bound).abs() > 2.0**-23 * pre.abs() + 1e-37
    is_selected = to_dense(support, width) > 0
    assert is_clear.double().mean() > 0.9
    assert torch.equal(is_selected[is_clear], (pre > bound)[is_clear])
    exact = to_dense(support, width, support.pre)
    assert (exact - pre)[is_selected].abs().max() <= 2.0**-23 * pre.abs().max(), "π at the entries is the canonical one"


@cases
def test_float32_supports_are_equal_between_layers_and_equal_float64s(case):
    """Equal in every bit between layers; equal to float64's unless π is within a float32 rounding of its bound."""
    d, width, tokens = 32, 256, 128
    state = random_state(case, d, width, seed=6, dtype=torch.float32)
    x = activations(tokens, d, 11, torch.float32)
    p, arch = state.params, state.arch
    v = arch.derive(p)
    step_inputs = make_step_inputs(state, 1.0)
    selection = arch.selection(p, v, step_inputs, training=True)
    found = []
    for name in LAYERS:
        kernels = layer(name)
        centred = kernels.centre_input(x, p["b_dec"])
        found.append(
            select_support(centred, kernels.prepare_encoder(p["W_enc"]), p["b_enc"], selection, kernels).support
        )
    for ours, theirs in zip(*found, strict=True):
        assert (ours is None and theirs is None) or torch.equal(ours, theirs)
    assert_layout(found[0], tokens, width)
    wide = in_dtype(state, torch.float64)
    pre = (x - p["b_dec"]).double() @ wide.params["W_enc"].T + wide.params["b_enc"]
    bound, wanted = bounds_and_selection(selection, pre)
    near = (pre - bound).abs() <= 2.0**-23 * pre.abs()
    print(f"{case.label}: {near.double().mean():.2g} of all entries lie within rounding of their bound")
    assert near.double().mean() <= 1e-4
    assert torch.equal((to_dense(found[0], width) > 0)[~near], wanted[~near])


def bounds_and_selection(selection, pre):
    """Return the bound that decides each entry and whether it is selected, [B, M] each, in float64."""
    if isinstance(selection, AboveThreshold):
        lower = selection.lower.double().expand_as(pre)
        return lower, pre > lower

    def largest(some, k):
        ordered = some.sort(dim=1, descending=True).values
        last, first = ordered[:, k - 1 : k], ordered[:, k : k + 1]  # the last that is in, the first that is out
        bound = ((last + first) / 2).clamp_min(0.0) if k < some.shape[1] else torch.zeros(len(some), 1)
        return bound.expand_as(some), some > bound

    if isinstance(selection, TopKOfBatch):
        bound, chosen = (one.view(pre.shape) for one in largest(pre.reshape(1, -1), selection.count(len(pre))))
    else:
        bound, chosen = largest(pre, selection.k)
    if selection.dead is None:
        return bound, chosen
    _, also = largest(pre.masked_fill(~selection.dead, -torch.inf), selection.k_dead)
    return bound, chosen | also
