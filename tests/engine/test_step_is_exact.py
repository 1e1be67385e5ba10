"""The sparse step is the dense step: engine.step == reference.step for every architecture and kernel layer.

float64: many steps to 1e-10. float32: one step against float64, and supports bit for bit between layers.
"""

from __future__ import annotations

import tracemalloc
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

import jumpahead.engine.dense_features as dense_path
import jumpahead.engine.kernels.numba as cpu_kernels
import jumpahead.engine.kernels.torch.layer as plain_kernels
from jumpahead.engine import reference, step
from jumpahead.engine.batch_topk import select
from jumpahead.engine.kernels.numba import Compiled
from jumpahead.engine.kernels.numba.product import PRODUCTS, is_exact
from jumpahead.engine.step import State
from jumpahead.errors import DivergedError
from jumpahead.sae.base import DEAD, MAIN, Above, Knobs, Largest, LargestOfBatch
from jumpahead.sae.recipe import learning_rate, sparsity_warmup
from tests.engine.cases import (
    CASES,
    LAYERS,
    activations,
    assert_close,
    assert_same_bytes,
    clone,
    draw,
    in_dtype,
    layer,
    scrambled,
    settled,
    start,
)

cases = pytest.mark.parametrize("case", CASES, ids=lambda case: case.label)
layers = pytest.mark.parametrize("name", LAYERS)


PATHS: dict[str, dict[str, float]] = {
    "support": {"POPULAR": 1.0, "FEWEST": 10**9, "CROWDED": 0},
    "products": {"POPULAR": -1.0, "FEWEST": 1, "CROWDED": 10**9, "SIZE": 24 * 48, "KEPT": 0},
    "both": {"POPULAR": 0.2, "FEWEST": 1, "CROWDED": 3, "SIZE": 100},
}
"""All entries in the support; every feature through products, in small blocks whose tensors are made twice; mixed."""


def take(path, monkeypatch):
    for name, value in PATHS[path].items():
        monkeypatch.setattr(dense_path, name, value)


@pytest.fixture(params=list(PATHS))
def path(request, monkeypatch):
    take(request.param, monkeypatch)
    return request.param


def one_per_architecture(kind=None):
    """The first case of each architecture, or of each that takes a `kind` of setting."""
    found = {}
    for case in CASES:
        if kind in (None, case.setting.kind):
            found.setdefault(case.architecture, case)
    return list(found.values())


architectures = pytest.mark.parametrize("case", one_per_architecture(), ids=lambda case: case.architecture)


# ---------------------------------------------------------------------------------------------- float64, many steps


@layers
@cases
def test_many_steps_equal_dense_autograd_with_dense_adam(case, name, path):
    d, width, tokens, steps = 11, 48, 24, 60 if path == "support" else 30
    through = 0
    changes = {"threshold_pull": 2.5, "l0_start": 1.3, "l0_steps": 21}
    ours, kernels = start(case, d, width, dead_after=2 * tokens, **changes), layer(name)
    theirs, recipe = clone(ours), ours.arch.recipe
    had_dead = skipped = 0
    for i in range(steps):
        x = activations(tokens, d, seed=7 * i)
        lr, warmup = learning_rate(recipe, i, steps), sparsity_warmup(recipe, i)
        had_dead += bool((ours.silent >= recipe.dead_after).any())
        through += step(ours, x, lr, warmup, kernels).dense
        reference.step(theirs, x, lr, warmup)
        skipped += int((ours.last < ours.t).sum())
    theirs.last[:] = theirs.t  # dense: every row is up to date
    assert_close(ours, theirs, 1e-10)
    torch.testing.assert_close(ours.encoder.norms, ours.p["W_enc"].norm(dim=1), rtol=1e-12, atol=0)
    if case.keeps_largest or ours.arch.uses_dead:
        assert had_dead > steps / 4, "no feature was ever dead: what is done about them was not tested"
    if case.keeps_largest:
        assert skipped > 3 * steps, "no row was ever skipped: lazy Adam was not tested"
    wanted = {"support": [False], "products": [case.options.get("aux") != 0], "both": [False, True]}
    assert (through > 0) in wanted[path], "features went the other way"
    if case.setting.kind == "l0" and ours.control is not None:
        assert ours.control.price != ours.arch.first_price


@layers
@pytest.mark.parametrize("case", one_per_architecture("l0"), ids=lambda case: case.architecture)
def test_lazy_adam_equals_dense_adam_where_most_rows_are_untouched_most_of_the_time(case, name):
    d, width, tokens, steps = 8, 300, 2, 200
    case = case._replace(setting=case.setting._replace(value=2.0))
    ours, kernels = start(case, d, width, dead_after=10**9), layer(name)
    theirs, touched, gaps = clone(ours), 0, []
    for i in range(steps):
        x = activations(tokens, d, seed=5 * i)
        before = ours.last.clone()
        step(ours, x, 0.003, 1.0, kernels)
        reference.step(theirs, x, 0.003, 1.0)
        now = ours.last == ours.t
        touched += int(now.sum())
        gaps.append((ours.t - before[now & (before > 0)]).float())
    assert touched < 0.1 * width * steps
    assert torch.cat(gaps).max() > 50
    theirs.last[:] = theirs.t
    assert_close(ours, theirs, 1e-9)


# ---------------------------------------------------------------------------------------------- float64, one step

SHAPES = st.tuples(st.integers(1, 40), st.integers(1, 33), st.integers(2, 70))


@layers
@settings(max_examples=120, deadline=None, derandomize=True, database=None)
@given(
    case=st.sampled_from(CASES),
    shape=SHAPES,
    seed=st.integers(0, 10**6),
    bias=st.sampled_from([0.0, 0.0, 0.0, -0.5, 1.0, 4.0, -100.0]),
    value=st.sampled_from([1.0, 2.0, 5.0, 69.0]),
    way=st.sampled_from(list(PATHS)),
)
def test_one_step_from_anywhere_equals_autograd(name, case, shape, seed, bias, value, way):
    """Any shape; empty and full supports; dead features; k above the number of features; rows last touched long ago.

    Adam's ε is 1 here, so that a step is a smooth function of the gradient, signs and all.
    """
    tokens, d, width = shape
    if case.setting.kind != "lambda":
        case = case._replace(setting=case.setting._replace(value=value))
    state = scrambled(case, d, width, seed, bias=bias, adam_epsilon=1.0)
    state.share = draw(width, seed=seed + 5).abs().float() * 0.2
    with pytest.MonkeyPatch.context() as patch:
        take(way, patch)
        assert_step_is_exact(state, activations(tokens, d, seed), name)


@layers
@cases
def test_an_empty_support(case, name):
    """No feature fires: only b_dec moves (and with ε > 2θ, θ itself), and what draws dead features back."""
    state = scrambled(case, 5, 21, seed=4, bias=-100.0, adam_epsilon=1.0)
    if case.architecture == "jumprelu":
        state.p |= {key: t.abs() + 0.1 for key, t in state.p.items() if "threshold" in key}
    after = assert_step_is_exact(state, activations(9, 5, seed=2), name)
    knobs, v = step.__globals__["knobs_of"](state, 0.37), state.arch.derive(state.p)
    selection = state.arch.selection(state.p, v, knobs, training=True)
    idle = selection.lower > -torch.inf if isinstance(selection, Above) else torch.ones(21, dtype=torch.bool)
    assert torch.equal(after.last[idle], state.last[idle])
    assert torch.equal(after.p["W_enc"][idle], state.p["W_enc"][idle])
    assert (after.last[~idle] == after.t).all()
    assert not torch.equal(after.p["b_dec"], state.p["b_dec"])


@layers
@architectures
def test_a_feature_on_every_token_and_all_others_off(case, name):
    state = scrambled(case, 7, 19, seed=8, adam_epsilon=1.0)
    for key in ("b_enc", "b_mag"):
        if key in state.p:
            state.p[key][:], state.p[key][13] = -100.0, 6.0
    state.silent[:] = 0
    after = assert_step_is_exact(state, activations(30, 7, seed=3), name)
    assert after.silent.tolist() == [0 if j == 13 else 30 for j in range(19)], "tokens since each feature fired"


@layers
@pytest.mark.parametrize("raw", [False, True])
def test_thresholds_near_zero_take_rectified_zeros_into_the_window(name, raw):
    """ε > 2θ in the paper's preset: K((0 − θ)/ε) = 1, so a feature that is off gets a threshold gradient everywhere."""
    case = next(c for c in CASES if c.architecture == "jumprelu" and c.setting.kind == "lambda")
    case = case._replace(changes={"bandwidth": 0.04, "threshold_form": "raw" if raw else "log"})
    state = scrambled(case, 6, 17, seed=5, adam_epsilon=1.0)
    key = "threshold" if raw else "log_threshold"
    theta = torch.linspace(0.001, 0.05, 17, dtype=torch.float64)  # ε = 2θ in the middle
    state.p[key] = theta if raw else theta.log()
    state.p["b_enc"][::2] -= 100.0  # half of them never fire
    state.v[key][:] = 0.0
    after = assert_step_is_exact(state, activations(12, 6, seed=6), name)
    moved = after.v[key] > 0
    off = torch.arange(17) % 2 == 0
    assert torch.equal(moved[off], (theta < 0.02)[off])
    assert torch.equal(after.last[off], state.last[off]), "a threshold's gradient alone must not touch a row"


@layers
def test_more_dead_features_wanted_than_there_are(name):
    case = next(c for c in CASES if c.options.get("k_aux") == 500)
    state = scrambled(case, 6, 40, seed=3, adam_epsilon=1.0)
    state.silent[:] = 0
    state.silent[[4, 17]] = 10**7
    after = assert_step_is_exact(state, activations(15, 6, seed=1), name)
    assert not torch.equal(after.p["W_dec"][[4, 17]], state.p["W_dec"][[4, 17]])


@layers
@cases
def test_a_rule_hears_what_fired_in_the_whole_batch(case, name, path, monkeypatch):
    """The same counts for the support and for every block, complete before the first is asked."""
    state = scrambled(case, 7, 60, seed=5)
    state.share = draw(60, seed=6).abs().float() * 0.3
    state.silent[:] = 0
    state.silent[[4, 17]] = 10**7  # AuxK's block
    x, own, heard = activations(19, 7, seed=7), type(state.arch).rule, []
    on = features(state, x) > 0

    def rule(self, entries, values, p, v, knobs, counts):
        heard.append((counts.tokens, counts.fired.clone(), None if counts.active is None else counts.active.clone()))
        return own(self, entries, values, p, v, knobs, counts)

    monkeypatch.setattr(type(state.arch), "rule", rule)
    step(state, x, 0.01, 0.7, layer(name))
    assert len(heard) > 1 or path == "support" or case.options.get("aux") == 0
    for tokens, fired, active in heard:
        assert tokens == 19
        assert torch.equal(fired, on.sum(0).double())
        assert active is None or torch.equal(active, on.sum(1).double())
        assert (active is not None) == state.arch.uses_active


# ---------------------------------------------------------------------------------------------- the support

NAMES = {"plain": plain_kernels, "cpu": cpu_kernels}
DTYPES = [torch.float32, torch.float64]


def support_of(name, x, w, b, selection):
    kernels = layer(name) if isinstance(name, str) else name
    centred = kernels.centre(x, torch.zeros(x.shape[1], dtype=x.dtype))
    return select(centred, kernels.encoder(w), b, selection, kernels).support


def dense(support, width, values=None):
    """Bits of `part` (1 where there is one part), [B, M]; π with `values`."""
    out = torch.zeros(len(support.indptr) - 1, width, dtype=torch.float64)
    entries = (support.part if support.part is not None else torch.ones(len(support.pre))) if values is None else values
    out[support.token.long(), support.feature.long()] = entries.double()
    return out


def check_layout(support, tokens, width):
    """colptr, feature and token; indptr and order walk the same entries by token, then by feature."""
    token, feature, order = support.token.long(), support.feature.long(), support.order.long()
    assert support.colptr[0] == 0
    assert support.colptr[-1] == len(token) == len(support.pre) == len(order)
    assert torch.equal(feature, torch.arange(width).repeat_interleave(support.colptr.diff()))
    assert bool(((feature * tokens + token).diff() > 0).all()), "entries ascend by feature, then by token, once each"
    assert torch.equal(token[order], torch.arange(tokens).repeat_interleave(support.indptr.diff()))
    assert bool(((token * width + feature)[order].diff() > 0).all())


def dyadic(tokens, d, width, seed, dtype, levels=3):
    """x, W_enc and b_enc whose products and sums are exact in every order, so that ties are real ties."""
    random = np.random.default_rng(seed)

    def some(*shape):
        return torch.from_numpy(random.integers(-levels, levels + 1, shape) / 8.0).to(dtype)

    return some(tokens, d), some(width, d), some(width)


@layers
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("k", [1, 3, 17, 60, 200])
def test_of_equal_preactivations_the_lower_feature_is_kept(name, dtype, k):
    """Duplicate encoder rows; a small range of exact values makes many more ties. As the dense `activate` decides."""
    x, w, b = dyadic(31, 5, 60, seed=k, dtype=dtype, levels=2)
    w[30:], b[30:] = w[:30], b[:30]
    arch = next(c for c in CASES if c.architecture == "topk").arch()
    arch.setting = arch.setting._replace(value=float(k))
    pre = x @ w.T + b
    wanted = arch.activate({}, pre)
    found = support_of(name, x, w, b, Largest(k))
    check_layout(found, 31, 60)
    assert torch.equal(dense(found, 60, found.pre), wanted.double())
    assert torch.equal(dense(found, 60), (wanted > 0).double()), "entries that are not positive are not kept"
    ties = (wanted[:, :30] > 0) & (wanted[:, 30:] == 0) & (pre[:, 30:] > 0)
    assert ties.any() or k >= 60, "no tie was decided by the index"


@layers
@pytest.mark.parametrize("dtype", DTYPES)
def test_ties_among_dead_features_too(name, dtype):
    x, w, b = dyadic(25, 4, 48, seed=9, dtype=dtype, levels=2)
    w[24:], b[24:] = w[:24], b[:24]
    dead = torch.arange(48) % 3 == 0
    found = support_of(name, x, w, b, Largest(4, dead, 3))
    check_layout(found, 25, 48)
    pre = x @ w.T + b
    arch = next(c for c in CASES if c.architecture == "topk").arch()
    arch.setting = arch.setting._replace(value=4.0)
    main = arch.activate({}, pre) > 0
    arch.setting = arch.setting._replace(value=3.0)
    among = arch.activate({}, pre.masked_fill(~dead, -torch.inf)) > 0
    assert (main & among).any()
    assert torch.equal(dense(found, 48), (MAIN * main.double() + DEAD * among.double()))


@layers
@pytest.mark.parametrize("dtype", DTYPES)
def test_entries_exactly_at_the_bound_are_out(name, dtype):
    x, w, b = dyadic(40, 6, 64, seed=2, dtype=dtype)
    pre = x @ w.T + b
    lower = pre[torch.arange(64) % 40, torch.arange(64)].clone()  # each bound is some entry's own value
    lower[[5, 50]] = -torch.inf
    found = support_of(name, x, w, b, Above(lower))
    check_layout(found, 40, 64)
    assert torch.equal(dense(found, 64), (pre > lower).double())
    assert (pre == lower).sum() >= 62


@layers
@pytest.mark.parametrize("selection", ["above", "largest", "dead"])
def test_slots_overflow_into_a_second_pass_and_never_silently(name, selection):
    """600 features and a room of 256 (above) or k + 64 (largest): everything ties or everything is kept."""
    x, w, b = dyadic(7, 3, 600, seed=1, dtype=torch.float32, levels=1)
    w[:], b[:] = w[0], 1.0  # one value per token: 600 ties
    chosen = {
        "above": Above(torch.full((600,), -5.0)),
        "largest": Largest(2),
        "dead": Largest(2, torch.arange(600) >= 90, 3),
    }[selection]
    kernels = layer(name)
    for _ in range(2):  # the second time with the room that was made
        found = support_of(kernels, x, w, b, chosen)
        check_layout(found, 7, 600)
        on = (x @ w[0] + 1.0) > 0
        count = {"above": 600, "largest": 2, "dead": 5}[selection]
        kept = on | (selection == "above")
        assert found.indptr.diff().tolist() == [count if it else 0 for it in kept]
    if selection == "dead":
        assert found.feature[found.order[:5].long()].tolist() == [0, 1, 90, 91, 92]


@layers
@pytest.mark.parametrize("kind", ["above", "largest"])
def test_chunks_of_features_give_the_same_support(name, kind, monkeypatch):
    x, w, b = draw(20, 9, seed=1).float(), draw(333, 9, seed=2).float(), draw(333, seed=3).float()
    chosen = Above(1 + draw(333, seed=4).float()) if kind == "above" else Largest(6, draw(333, seed=5) > 0, 4)
    whole = support_of(name, x, w, b, chosen)
    monkeypatch.setattr(NAMES[name], "CHUNK", 20 * 48)
    monkeypatch.setattr(plain_kernels, "GATHER", 70)
    for found, wanted in zip(support_of(name, x, w, b, chosen), whole, strict=True):
        assert (found is None and wanted is None) or torch.equal(found, wanted)


@pytest.mark.parametrize("selection", ["above", "largest", "dead"])
@pytest.mark.parametrize("seed", range(4))
def test_rounding_of_the_products_own_output_is_in_every_bound(selection, seed):
    """Rows that bfloat16 holds exactly, sums that it does not: nothing is lost but in what the product writes."""
    random = np.random.default_rng(seed)
    tokens, d, width = 70, 48, 300
    x, w = (torch.from_numpy(random.integers(-100, 101, (n, d))).float() / 64 for n in (tokens, width))
    b = torch.from_numpy(random.integers(-80_000, 80_001, width)).float() / 4096
    # Biases differ, so that features of one token compete with products of different size, rounded differently.
    assert torch.equal(x.bfloat16().float(), x)
    assert torch.equal(w.bfloat16().float(), w)
    product = x.double() @ w.double().T
    pre = product + b.double()
    assert torch.equal(pre.float().double(), pre), "float32 holds the sums"
    assert not torch.equal(product.bfloat16().double(), product), "bfloat16 does not"
    lower = pre[torch.arange(width) % tokens, torch.arange(width)].float() - 2.0**-13
    dead = torch.arange(width) % 3 > 0
    chosen = {"above": Above(lower), "largest": Largest(9), "dead": Largest(9, dead, 7)}[selection]
    for library in filter(is_exact, PRODUCTS):
        found = support_of(Compiled(library), x, w, b, chosen)
        wanted = support_of("plain", x, w, b, chosen)
        for ours, theirs in zip(found, wanted, strict=True):
            assert (ours is None and theirs is None) or torch.equal(ours, theirs), library.name
    assert torch.equal(
        dense(wanted, width) > 0, boundary(chosen, pre)[1] if selection == "above" else wanted_by(chosen, pre)
    )


def wanted_by(chosen, pre):
    """Who is among the largest, ties to the lower feature. pre [B, M]: exact π."""

    def largest(some, k):
        order = torch.sort(some, dim=1, descending=True, stable=True).indices[:, :k]
        return torch.zeros_like(some, dtype=torch.bool).scatter(1, order, True) & (some > 0)

    found = largest(pre, chosen.k)
    return found if chosen.dead is None else found | largest(pre.masked_fill(~chosen.dead, -torch.inf), chosen.k_dead)


class Data(NamedTuple):
    x: Any
    w: Any
    b: Any


def adversarial(kind, tokens=48, d=40, width=210):
    """float32 data on which a careless bound fails."""
    x, w = draw(tokens, d, seed=1).float(), draw(width, d, seed=2).float() / d**0.5
    b, half = 0.1 * draw(width, seed=3).float(), d // 2
    if kind == "constant":  # the worst there is: every rounding of a sum goes the same way
        x[:] = (1 + (torch.arange(tokens) // 8)[:, None] * 0.137) * (1 + 1e-6 * draw(tokens, 1, seed=4).float())
        w[:] = 1 + 0.5 * draw(width, 1, seed=5).float().abs().clamp_max(1.0)
        w[:30] = 1.9 * (1 + 3e-6 * draw(30, 1, seed=6).float())
        b[:] = 0.0
    if kind == "massive":
        x[:, 3] = 1e4 * (1 + 0.1 * draw(tokens, seed=5).float())
        w[:, 3] *= 1e-3
    if kind == "cancelling":  # large partial sums, small π
        x[:, :half], w[:, :half] = x[:, :half].abs(), w[:, :half].abs()
        x[:, half:], w[:, half:] = x[:, :half], -w[:, :half] * (1 + 1e-6 * draw(width, half, seed=6).float())
        b[:] = 0.0
    if kind == "bias":
        b = 3e3 * draw(width, seed=7).float()
    if kind == "tiny":
        x, w = x * 1e-15, w * 1e-15
        b = b * 1e-30
    return Data(x, w, b)


@pytest.mark.parametrize("kind", ["ordinary", "constant", "massive", "cancelling", "bias", "tiny"])
@pytest.mark.parametrize("selection", ["above", "largest"])
def test_screening_never_loses_an_entry(kind, selection):
    """Every entry whose exact π clears its bound by more than the last bit of a float32 is in, and no other.

    Bounds are set at entries' own values, so a screen with too little slack loses some; layers and products agree to
    the bit.
    """
    x, w, b = adversarial(kind)
    pre = x.double() @ w.double().T + b.double()
    width, k = len(w), 9
    lower = pre[torch.arange(width) % len(x), torch.arange(width)].float()
    chosen = Above(lower) if selection == "above" else Largest(k)
    found = {name: support_of(name, x, w, b, chosen) for name in LAYERS}
    found |= {p.name: support_of(Compiled(p), x, w, b, chosen) for p in PRODUCTS if is_exact(p)}
    if kind == "cancelling":  # float64's own rounding shows in a float32 here, and layers add in different orders
        plain = found.pop("plain")
        assert_selects_what_is_sure(plain, pre, lower if selection == "above" else k)
    for one in found.values():
        for ours, theirs in zip(one, found["cpu"], strict=True):
            assert (ours is None and theirs is None) or torch.equal(ours, theirs)
    assert_selects_what_is_sure(found["cpu"], pre, lower if selection == "above" else k)


def assert_selects_what_is_sure(support, pre, rule):
    """rule: bounds [M], or k. pre [B, M]: exact π."""
    width = pre.shape[1]
    if isinstance(rule, torch.Tensor):
        bound = rule.double().expand_as(pre)
    else:
        order = pre.sort(dim=1, descending=True).values
        middle = (order[:, rule - 1 : rule] + order[:, rule : rule + 1]) / 2
        bound = middle.clamp_min(0.0).expand_as(pre)
    sure = (pre - bound).abs() > 2.0**-23 * pre.abs() + 1e-37
    inside = dense(support, width) > 0
    assert sure.double().mean() > 0.9
    assert torch.equal(inside[sure], (pre > bound)[sure])
    exact = dense(support, width, support.pre)
    assert (exact - pre)[inside].abs().max() <= 2.0**-23 * pre.abs().max(), "π at the entries is the canonical one"


@cases
def test_in_float32_both_layers_have_the_same_support_which_is_float64s(case):
    """Bit for bit between layers; equal to float64's wherever π is further from its bound than a float32's rounding."""
    d, width, tokens = 32, 256, 128
    state = scrambled(case, d, width, seed=6, dtype=torch.float32)
    x = activations(tokens, d, 11, torch.float32)
    p, arch = state.p, state.arch
    v = arch.derive(p)
    knobs = step.__globals__["knobs_of"](state, 1.0)
    selection = arch.selection(p, v, knobs, training=True)
    found = []
    for name in LAYERS:
        kernels = layer(name)
        centred = kernels.centre(x, p["b_dec"])
        found.append(select(centred, kernels.encoder(p["W_enc"]), p["b_enc"], selection, kernels).support)
    for ours, theirs in zip(*found, strict=True):
        assert (ours is None and theirs is None) or torch.equal(ours, theirs)
    check_layout(found[0], tokens, width)
    wide = in_dtype(state, torch.float64)
    pre = (x - p["b_dec"]).double() @ wide.p["W_enc"].T + wide.p["b_enc"]
    bound, wanted = boundary(selection, pre)
    near = (pre - bound).abs() <= 2.0**-23 * pre.abs()
    print(f"{case.label}: {near.double().mean():.2g} of all entries lie within rounding of their bound")
    assert near.double().mean() <= 1e-4
    assert torch.equal((dense(found[0], width) > 0)[~near], wanted[~near])


def boundary(selection, pre):
    """In float64: what decides each entry, and whether it is selected."""
    if isinstance(selection, Above):
        lower = selection.lower.double().expand_as(pre)
        return lower, pre > lower

    def largest(some, k):
        ordered = some.sort(dim=1, descending=True).values
        last, first = ordered[:, k - 1 : k], ordered[:, k : k + 1]  # the last that is in, the first that is out
        bound = ((last + first) / 2).clamp_min(0.0) if k < some.shape[1] else torch.zeros(len(some), 1)
        return bound.expand_as(some), some > bound

    if isinstance(selection, LargestOfBatch):
        bound, chosen = (one.view(pre.shape) for one in largest(pre.reshape(1, -1), selection.count(len(pre))))
    else:
        bound, chosen = largest(pre, selection.k)
    if selection.dead is None:
        return bound, chosen
    _, also = largest(pre.masked_fill(~selection.dead, -torch.inf), selection.k_dead)
    return bound, chosen | also


@layers
@cases
def test_products_decide_like_the_support(case, name, monkeypatch):
    """In float32, at bounds that are entries' own values: the same entries, and the same step but for rounding."""
    d, width, tokens = 32, 256, 96
    state = scrambled(case, d, width, seed=21, dtype=torch.float32, adam_epsilon=1.0)
    x = activations(tokens, d, 22, torch.float32)
    if case.architecture == "jumprelu":  # 256 entries sit exactly at their threshold, or one rounding away
        p, at = state.p, (torch.arange(width) % tokens, torch.arange(width))
        own = layer("plain").canonical(x - p["b_dec"], p["W_enc"], p["b_enc"], *at).abs() + 0.0
        p |= {"threshold": own} if "threshold" in p else {"log_threshold": own.log()}
    found = {}
    for way in PATHS:
        take(way, monkeypatch)
        found[way] = clone(state), layer(name)
        result = step(found[way][0], x, 0.01, 0.7, found[way][1])
        found[way] = found[way][0], result
    for way in ("products", "both"):
        assert torch.equal(found[way][0].share, found["support"][0].share)
        assert torch.equal(found[way][0].silent, found["support"][0].silent)
        assert found[way][1].l0 == found["support"][1].l0
        assert found[way][1].entries == found["support"][1].entries
        assert_close(in_dtype(found[way][0], torch.float64), in_dtype(found["support"][0], torch.float64), 1e-5)


@layers
@cases
def test_one_float32_step_is_the_float64_step_to_1e_5(case, name):
    state = scrambled(case, 32, 128, seed=12, dtype=torch.float32, adam_epsilon=1.0)
    x = activations(64, 32, 13, torch.float32)
    wide = in_dtype(state, torch.float64)
    step(state, x, 0.3, 0.7, layer(name))
    wide.v = settled(wide).v
    reference.step(wide, x.double(), 0.3, 0.7)
    wide.last[:] = wide.t
    assert_close(in_dtype(state, torch.float64), wide, 1e-5)


# ---------------------------------------------------------------------------------------------- what must not happen


@layers
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf"), 1e30, 1e12])
@architectures
def test_a_batch_that_is_not_finite_leaves_every_tensor_untouched(case, name, bad):
    """Nor one so large that only the squares of its gradients are not finite."""
    state = scrambled(case, 9, 40, seed=2, dtype=torch.float32)
    before = clone(state)
    x = activations(16, 9, 3, torch.float32)
    x[5, 4] = bad
    with pytest.raises(DivergedError):
        step(state, x, 0.01, 1.0, layer(name))
    assert_same_bytes(state, before)
    x[5, 4] = 0.0
    step(state, x, 0.01, 1.0, layer(name))  # and it can go on
    assert state.t == before.t + 1


@layers
@architectures
def test_the_number_of_threads_changes_no_bit(case, name):
    """Shapes above torch's own limits for splitting sums."""
    found = []
    threads = torch.get_num_threads()
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            state, kernels = start(case, 96, 1500, torch.float32, dead_after=600), layer(name)
            for i in range(3):
                step(state, activations(700, 96, i, torch.float32), 0.01, 1.0, kernels)
            found.append(state)
    finally:
        torch.set_num_threads(threads)
    assert_same_bytes(*found)


@cases
def test_the_choice_of_encoder_product_changes_no_bit(case):
    found = []
    for product in filter(is_exact, PRODUCTS):
        state, kernels = start(case, 24, 200, torch.float32), Compiled(product)
        for i in range(4):
            step(state, activations(96, 24, i, torch.float32), 0.01, 1.0, kernels)
        found.append(state)
    assert len(found) > 1
    for other in found[1:]:
        assert_same_bytes(other, found[0])


class Watch(TorchDispatchMode):
    """Remembers the largest tensor that any torch operation returns while it looks."""

    def __init__(self):
        super().__init__()
        self.largest, self.where, self.looking = 0, None, True

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, tuple | list) else (out,):
            if self.looking and isinstance(tensor, torch.Tensor) and tensor.numel() > self.largest:
                self.largest, self.where = tensor.numel(), str(func)
        return out


class Watched:
    """A kernel layer whose `support` is not looked at (or is, with `all`)."""

    def __init__(self, kernels, watch, everything):
        self.kernels, self.watch, self.everything = kernels, watch, everything

    def support(self, *args):
        self.watch.looking = self.everything
        found = self.kernels.support(*args)
        self.watch.looking = True
        tracemalloc.reset_peak()
        self.base = tracemalloc.get_traced_memory()[0]
        return found

    def __getattr__(self, name):
        return getattr(self.kernels, name)


@layers
@architectures
@pytest.mark.parametrize("everything", [False, True])
def test_no_tensor_of_tokens_times_features_exists(case, name, everything, monkeypatch):
    """After the support, none; with small chunks not even while the support is found. numpy's arrays count too."""
    tokens, d, width = 192, 4, 6000
    if everything:
        monkeypatch.setattr(NAMES[name], "CHUNK", 2**15)
    state = start(case, d, width, torch.float32, dead_after=10**9)
    x = activations(tokens, d, 1, torch.float32)
    with torch.no_grad():
        step(state, x, 0.01, 1.0, layer(name))  # what numba compiles is not counted
    watch = Watch()
    with watch:
        torch.zeros(1).add(1)  # what torch imports for its first dispatch is not counted either
    kernels = Watched(layer(name), watch, everything)
    tracemalloc.start()
    try:
        with watch:
            step(state, x, 0.01, 1.0, kernels)
        peak = tracemalloc.get_traced_memory()[1] - kernels.base
    finally:
        tracemalloc.stop()
    assert watch.largest < tokens * width / 5, f"{watch.where} made {watch.largest} elements"
    assert peak < 4 * tokens * width / 5
    assert watch.largest >= width * d, "nothing was looked at"


# ---------------------------------------------------------------------------------------------- helpers


def features(state: State, x):
    """f of a state in training, dense: [B, M]."""
    p = state.p
    pre = (x - p["b_dec"]) @ p["W_enc"].T + p["b_enc"]
    return state.arch.activate_batch(p, pre, Knobs())


def assert_step_is_exact(state: State, x, name: str) -> State:
    """One step of the layer from `state` equals the dense one to 1e-10, and says which rows it touched."""
    ours, theirs = clone(state), settled(state)
    result = step(ours, x, 0.3, 0.37, layer(name))
    p, f = state.p, features(state, x)
    error = (x - f @ p["W_dec"] - p["b_dec"]).square().sum().item() / len(x)
    assert (result.error, result.l0) == pytest.approx((error, (f > 0).sum().item() / len(x)), rel=1e-12)
    assert result.entries >= result.l0
    before = {key: theirs.p[key].clone() for key in ("W_enc", "W_dec")}
    knobs = step.__globals__["knobs_of"](state, 0.37)
    free = state.arch.loss(theirs.p, x, knobs._replace(sparsity=0.0)).item()
    loss = reference.step(theirs, x, 0.3, 0.37)
    assert result.penalty == pytest.approx(loss - free, rel=1e-9, abs=1e-11 * loss)
    theirs.last[:] = theirs.t
    assert_close(ours, theirs, 1e-10)
    untouched = ours.last < ours.t
    assert torch.equal(ours.last[untouched], state.last[untouched])
    for key, old in before.items():
        assert torch.equal(ours.p[key][untouched], old[untouched])
        assert torch.equal(ours.v[key][untouched], state.v[key][untouched])
    torch.testing.assert_close(ours.encoder.norms, ours.p["W_enc"].norm(dim=1), rtol=1e-12, atol=0)
    return ours
