"""The sparse step equals the dense step: `train_step` == `reference_step` for every architecture and kernel layer.

float64: many steps to 1e-10. float32: one step against float64 to 1e-5.
"""

from __future__ import annotations

import tracemalloc

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

import jumpahead.engine.kernels.numba.layer as numba_kernels
import jumpahead.engine.kernels.torch.layer as torch_kernels
from jumpahead.engine import dense_features, train_step
from jumpahead.engine.interface import State
from jumpahead.engine.kernels.numba import NumbaKernels
from jumpahead.engine.kernels.numba.matmul_backends import BACKENDS, is_accurate
from jumpahead.engine.reference import reference_step
from jumpahead.engine.state import make_step_inputs
from jumpahead.errors import DivergedError
from jumpahead.sae.gradients import StepInputs
from jumpahead.sae.recipe import learning_rate_at, sparsity_warmup_share
from jumpahead.sae.support import AboveThreshold
from tests.engine.cases import (
    CASES,
    LAYERS,
    PATHS,
    activations,
    assert_close,
    assert_same_bytes,
    clone,
    in_dtype,
    layer,
    one_per_architecture,
    one_per_options,
    random_state,
    standard_normal,
    untrained_state,
    with_current_moments,
)

cases = pytest.mark.parametrize("case", CASES, ids=lambda case: case.label)
layers = pytest.mark.parametrize("name", LAYERS)
MODULES = {"torch": torch_kernels, "numba": numba_kernels}


def set_path(path, monkeypatch):
    """Set the constants of dense_features.py that force a path."""
    for name, value in PATHS[path].items():
        monkeypatch.setattr(dense_features, name, value)


@pytest.fixture(params=list(PATHS))
def path(request, monkeypatch):
    """Run the test on every path, and return its name."""
    set_path(request.param, monkeypatch)
    return request.param


architectures = pytest.mark.parametrize("case", one_per_architecture(), ids=lambda case: case.architecture)
option_sets = pytest.mark.parametrize("case", one_per_options(), ids=lambda case: case.label)


# ---------------------------------------------------------------------------------------------- float64, many steps


@layers
@cases
def test_many_steps_equal_dense_autograd_with_dense_adam(case, name, path):
    d, width, tokens, steps = 11, 48, 24, 60 if path == "support" else 30
    num_dense = 0
    changes = {"threshold_decay": 2.5, "initial_l0_multiplier": 1.3, "l0_anneal_steps": 21}
    ours, kernels = untrained_state(case, d, width, dead_after_tokens=2 * tokens, **changes), layer(name)
    theirs, recipe = clone(ours), ours.arch.recipe
    had_dead = skipped = 0
    for i in range(steps):
        x = activations(tokens, d, seed=7 * i)
        lr, warmup = learning_rate_at(recipe, i, steps), sparsity_warmup_share(recipe, i)
        had_dead += bool((ours.tokens_since_fired >= (recipe.aux_after_tokens or recipe.dead_after_tokens)).any())
        num_dense += train_step(ours, x, lr, warmup, kernels).num_dense_features
        reference_step(theirs, x, lr, warmup)
        skipped += int((ours.last_touched < ours.steps_done).sum())
    theirs.last_touched[:] = theirs.steps_done  # dense: every row is up to date
    assert_close(ours, theirs, 1e-10)
    torch.testing.assert_close(ours.encoder.norms, ours.params["W_enc"].norm(dim=1), rtol=1e-12, atol=0)
    if case.is_topk or ours.arch.needs_dead_features:
        assert had_dead > steps / 4, "no feature was ever dead: their handling was not tested"
    if case.is_topk:
        assert skipped > 3 * steps, "no row was ever skipped: lazy Adam was not tested"
    wanted = {"support": [bool(recipe.aux_weight)], "products": [case.options.get("aux") != 0], "both": [False, True]}
    assert (num_dense > 0) in wanted[path], "the path was not taken"
    if case.setting.kind == "l0" and ours.controller is not None:
        assert ours.controller.penalty_scale != ours.arch.initial_penalty_scale


MOMENTUM = list({case.architecture: case for case in reversed(CASES) if case.label.endswith("-momentum-l0")}.values())


@layers
@pytest.mark.parametrize("case", one_per_architecture("l0") + MOMENTUM, ids=lambda case: case.label)
def test_lazy_adam_equals_dense_adam_if_rows_are_rarely_touched(case, name):
    """With row momentum: the dense restatement of that algorithm (reference.py)."""
    d, width, tokens, steps = 8, 300, 2, 200
    case = case._replace(setting=case.setting._replace(value=2.0))
    ours, kernels = untrained_state(case, d, width, dead_after_tokens=10**9), layer(name)
    theirs, touched, gaps = clone(ours), 0, []
    for i in range(steps):
        x = activations(tokens, d, seed=5 * i)
        before = ours.last_touched.clone()
        train_step(ours, x, 0.003, 1.0, kernels)
        reference_step(theirs, x, 0.003, 1.0)
        now = ours.last_touched == ours.steps_done
        touched += int(now.sum())
        gaps.append((ours.steps_done - before[now & (before > 0)]).float())
    assert touched < 0.1 * width * steps
    assert torch.cat(gaps).max() > 50
    theirs.last_touched[:] = theirs.steps_done
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
def test_one_step_from_a_random_state_equals_autograd(name, case, shape, seed, bias, value, way):
    """Any shape; empty and full supports; dead features; k above the number of features; rows last touched long ago.

    Adam's ε is 1, so that a step is a smooth function of the gradient.
    """
    tokens, d, width = shape
    if case.setting.kind != "lambda":
        case = case._replace(setting=case.setting._replace(value=value))
    state = random_state(case, d, width, seed, bias=bias, adam_epsilon=1.0)
    state.support_share = standard_normal(width, seed=seed + 5).abs().float() * 0.2
    with pytest.MonkeyPatch.context() as patch:
        set_path(way, patch)
        assert_step_is_exact(state, activations(tokens, d, seed), name)


@layers
@option_sets
def test_an_empty_support_touches_no_row(case, name):
    """No feature fires: only b_dec moves, θ if ε > 2θ, and what revives dead features."""
    state = random_state(case, 5, 21, seed=4, bias=-100.0, adam_epsilon=1.0)
    if case.architecture == "jumprelu":
        state.params |= {key: t.abs() + 0.1 for key, t in state.params.items() if "threshold" in key}
    after = assert_step_is_exact(state, activations(9, 5, seed=2), name)
    step_inputs, v = make_step_inputs(state, 0.37), state.arch.derive(state.params)
    selection = state.arch.selection(state.params, v, step_inputs, training=True)
    is_idle = (
        selection.lower > -torch.inf if isinstance(selection, AboveThreshold) else torch.ones(21, dtype=torch.bool)
    )
    assert torch.equal(after.last_touched[is_idle], state.last_touched[is_idle])
    assert torch.equal(after.params["W_enc"][is_idle], state.params["W_enc"][is_idle])
    assert (after.last_touched[~is_idle] == after.steps_done).all()
    assert not torch.equal(after.params["b_dec"], state.params["b_dec"])


@layers
@architectures
def test_one_feature_active_on_every_token_and_no_other(case, name):
    state = random_state(case, 7, 19, seed=8, adam_epsilon=1.0)
    for key in ("b_enc", "b_mag"):
        if key in state.params:
            state.params[key][:], state.params[key][13] = -100.0, 6.0
    state.tokens_since_fired[:] = 0
    after = assert_step_is_exact(state, activations(30, 7, seed=3), name)
    assert after.tokens_since_fired.tolist() == [0 if j == 13 else 30 for j in range(19)]


@layers
@pytest.mark.parametrize("raw", [False, True])
def test_thresholds_near_zero_take_rectified_zeros_into_the_window(name, raw):
    """ε > 2θ in the paper's preset: K((0 − θ)/ε) = 1, so inactive features get a threshold gradient on all tokens."""
    case = next(c for c in CASES if c.architecture == "jumprelu" and c.setting.kind == "lambda")
    case = case._replace(changes={"bandwidth": 0.04, "threshold_form": "raw" if raw else "log"})
    state = random_state(case, 6, 17, seed=5, adam_epsilon=1.0)
    key = "threshold" if raw else "log_threshold"
    theta = torch.linspace(0.001, 0.05, 17, dtype=torch.float64)  # ε = 2θ in the middle
    state.params[key] = theta if raw else theta.log()
    state.params["b_enc"][::2] -= 100.0  # half of them never fire
    state.second_moments[key][:] = 0.0
    after = assert_step_is_exact(state, activations(12, 6, seed=6), name)
    moved = after.second_moments[key] > 0
    off = torch.arange(17) % 2 == 0
    assert torch.equal(moved[off], (theta < 0.02)[off])
    assert torch.equal(after.last_touched[off], state.last_touched[off]), (
        "a threshold's gradient alone must not touch a row"
    )


@layers
def test_auxk_with_fewer_dead_features_than_k_aux(name):
    case = next(c for c in CASES if c.options.get("k_aux") == 500)
    state = random_state(case, 6, 40, seed=3, adam_epsilon=1.0)
    state.tokens_since_fired[:] = 0
    state.tokens_since_fired[[4, 17]] = 10**7
    after = assert_step_is_exact(state, activations(15, 6, seed=1), name)
    assert not torch.equal(after.params["W_dec"][[4, 17]], state.params["W_dec"][[4, 17]])


def test_auxk_of_a_threshold_architecture_takes_turns_if_many_features_are_dead(monkeypatch):
    """Every fourth step; at most five features at once, and every dead one within the turns."""
    case = next(c for c in CASES if c.label == "jumprelu-auxk-l0")._replace(changes={"aux_weight": 0.7, "aux_every": 4})
    state = random_state(case, 6, 40, seed=3, dead_after_tokens=1000)
    monkeypatch.setattr("jumpahead.engine.state.MAX_DEAD_FEATURES", 5)
    state.tokens_since_fired = torch.where(torch.arange(40) % 3 == 0, 1000, 999)  # 14 of 40: three turns
    seen = []
    for state.steps_done in range(12):
        dead = make_step_inputs(state, 1.0).dead
        assert (dead is None) == (state.steps_done % 4 != 0)
        seen += [] if dead is None else [dead]
    assert max(int(dead.sum()) for dead in seen) <= 5
    assert torch.equal(torch.stack(seen).sum(0), (state.tokens_since_fired == 1000).long())


@layers
@option_sets
def test_every_rule_call_gets_the_counts_of_the_whole_batch(case, name, path, monkeypatch):
    """The support and every dense block get the same counts, complete before the first call."""
    state = random_state(case, 7, 60, seed=5)
    state.support_share = standard_normal(60, seed=6).abs().float() * 0.3
    state.tokens_since_fired[:] = 0
    state.tokens_since_fired[[4, 17]] = 10**7  # AuxK's block
    x, original, counts_seen = activations(19, 7, seed=7), type(state.arch).entry_gradients, []
    on = dense_activations(state, x) > 0

    def entry_gradients(self, entries, values, p, v, step_inputs, counts):
        active = None if counts.active is None else counts.active.clone()
        counts_seen.append((counts.tokens, counts.fired.clone(), active))
        return original(self, entries, values, p, v, step_inputs, counts)

    monkeypatch.setattr(type(state.arch), "entry_gradients", entry_gradients)
    train_step(state, x, 0.01, 0.7, layer(name))
    assert len(counts_seen) > 1 or path == "support" or case.options.get("aux") == 0
    for tokens, fired, active in counts_seen:
        assert tokens == 19
        assert torch.equal(fired, on.sum(0).double())
        assert active is None or torch.equal(active, on.sum(1).double())
        assert (active is not None) == state.arch.needs_token_counts


@layers
@option_sets
def test_dense_products_select_the_same_entries_as_the_support(case, name, monkeypatch):
    """In float32, with bounds equal to values of entries: the same entries, and the same step up to rounding."""
    d, width, tokens = 32, 256, 96
    state = random_state(case, d, width, seed=21, dtype=torch.float32, adam_epsilon=1.0)
    x = activations(tokens, d, 22, torch.float32)
    if case.architecture == "jumprelu":  # 256 entries are at their threshold, or one rounding away
        p, at = state.params, (torch.arange(width) % tokens, torch.arange(width))
        own = layer("torch").canonical_preactivations(x - p["b_dec"], p["W_enc"], p["b_enc"], *at).abs() + 0.0
        p |= {"threshold": own} if "threshold" in p else {"log_threshold": own.log()}
    found = {}
    for way in PATHS:
        set_path(way, monkeypatch)
        found[way] = clone(state), layer(name)
        result = train_step(found[way][0], x, 0.01, 0.7, found[way][1])
        found[way] = found[way][0], result
    for way in ("products", "both"):
        assert torch.equal(found[way][0].support_share, found["support"][0].support_share)
        assert torch.equal(found[way][0].tokens_since_fired, found["support"][0].tokens_since_fired)
        assert found[way][1].l0 == found["support"][1].l0
        assert found[way][1].support_size == found["support"][1].support_size
        assert_close(in_dtype(found[way][0], torch.float64), in_dtype(found["support"][0], torch.float64), 1e-5)


@layers
@cases
def test_one_float32_step_is_the_float64_step_to_1e_5(case, name):
    state = random_state(case, 32, 128, seed=12, dtype=torch.float32, adam_epsilon=1.0)
    x = activations(64, 32, 13, torch.float32)
    wide = in_dtype(state, torch.float64)
    train_step(state, x, 0.3, 0.7, layer(name))
    wide.second_moments = with_current_moments(wide).second_moments
    reference_step(wide, x.double(), 0.3, 0.7)
    wide.last_touched[:] = wide.steps_done
    assert_close(in_dtype(state, torch.float64), wide, 1e-5)


# ---------------------------------------------------------------------------------------------- invariants


@layers
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf"), 1e30, 1e12])
@architectures
def test_a_batch_that_is_not_finite_changes_no_tensor(case, name, bad):
    """Neither does one so large that only the squares of its gradients are not finite."""
    state = random_state(case, 9, 40, seed=2, dtype=torch.float32)
    before = clone(state)
    x = activations(16, 9, 3, torch.float32)
    x[5, 4] = bad
    with pytest.raises(DivergedError):
        train_step(state, x, 0.01, 1.0, layer(name))
    assert_same_bytes(state, before)
    x[5, 4] = 0.0
    train_step(state, x, 0.01, 1.0, layer(name))  # training can continue
    assert state.steps_done == before.steps_done + 1


@layers
@architectures
def test_the_number_of_threads_changes_no_bit(case, name):
    """The shapes exceed torch's limits for splitting sums."""
    found = []
    threads = torch.get_num_threads()
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            state, kernels = untrained_state(case, 96, 1500, torch.float32, dead_after_tokens=600), layer(name)
            for i in range(3):
                train_step(state, activations(700, 96, i, torch.float32), 0.01, 1.0, kernels)
            found.append(state)
    finally:
        torch.set_num_threads(threads)
    assert_same_bytes(*found)


@cases
def test_the_choice_of_encoder_product_changes_no_bit(case):
    found = []
    for product in filter(is_accurate, BACKENDS):
        state, kernels = untrained_state(case, 24, 200, torch.float32), NumbaKernels(product)
        for i in range(4):
            train_step(state, activations(96, 24, i, torch.float32), 0.01, 1.0, kernels)
        found.append(state)
    assert len(found) > 1
    for other in found[1:]:
        assert_same_bytes(other, found[0])


class LargestTensor(TorchDispatchMode):
    """Records the largest tensor that any torch operation returns while `is_recording`."""

    def __init__(self):
        super().__init__()
        self.numel, self.operation, self.is_recording = 0, None, True

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, tuple | list) else (out,):
            if self.is_recording and isinstance(tensor, torch.Tensor) and tensor.numel() > self.numel:
                self.numel, self.operation = tensor.numel(), str(func)
        return out


class RecordedKernels:
    """A kernel layer whose `find_support` is recorded only with `include_support`."""

    def __init__(self, kernels, largest, include_support):
        self.kernels, self.largest, self.include_support = kernels, largest, include_support

    def find_support(self, *args):
        self.largest.is_recording = self.include_support
        found = self.kernels.find_support(*args)
        self.largest.is_recording = True
        tracemalloc.reset_peak()
        self.base = tracemalloc.get_traced_memory()[0]
        return found

    def __getattr__(self, name):
        return getattr(self.kernels, name)


@layers
@architectures
@pytest.mark.parametrize("include_support", [False, True])
def test_no_tensor_of_tokens_times_features_exists(case, name, include_support, monkeypatch):
    """None after step 1; with small blocks none in step 1 either. numpy's arrays count too."""
    tokens, d, width = 192, 4, 6000
    if include_support:
        monkeypatch.setattr(MODULES[name], "BLOCK_ENTRIES", 2**15)
    state = untrained_state(case, d, width, torch.float32, dead_after_tokens=10**9)
    x = activations(tokens, d, 1, torch.float32)
    with torch.no_grad():
        train_step(state, x, 0.01, 1.0, layer(name))  # compilation by numba is not counted
    largest = LargestTensor()
    with largest:
        torch.zeros(1).add(1)  # neither are the imports of torch's first dispatch
    kernels = RecordedKernels(layer(name), largest, include_support)
    tracemalloc.start()
    try:
        with largest:
            train_step(state, x, 0.01, 1.0, kernels)
        peak = tracemalloc.get_traced_memory()[1] - kernels.base
    finally:
        tracemalloc.stop()
    assert largest.numel < tokens * width / 5, f"{largest.operation} made {largest.numel} elements"
    assert peak < 4 * tokens * width / 5
    assert largest.numel >= width * d, "nothing was recorded"


# ---------------------------------------------------------------------------------------------- helpers


def dense_activations(state: State, x):
    """Return the features f [B, M] of a state in training, computed densely."""
    p = state.params
    pre = (x - p["b_dec"]) @ p["W_enc"].T + p["b_enc"]
    return state.arch.activate_batch(p, pre, StepInputs())


def assert_step_is_exact(state: State, x, name: str) -> State:
    """Assert that one step equals the dense one to 1e-10 and records the rows it touched; return the new state."""
    ours, theirs = clone(state), with_current_moments(state)
    result = train_step(ours, x, 0.3, 0.37, layer(name))
    p, f = state.params, dense_activations(state, x)
    error = (x - f @ p["W_dec"] - p["b_dec"]).square().sum().item() / len(x)
    assert (result.squared_error, result.l0) == pytest.approx((error, (f > 0).sum().item() / len(x)), rel=1e-12)
    assert result.support_size >= result.l0
    before = {key: theirs.params[key].clone() for key in ("W_enc", "W_dec")}
    step_inputs = make_step_inputs(state, 0.37)
    without_penalty = state.arch.loss(theirs.params, x, step_inputs._replace(sparsity_coefficient=0.0)).item()
    loss = reference_step(theirs, x, 0.3, 0.37)
    assert result.penalty == pytest.approx(loss - without_penalty, rel=1e-9, abs=1e-11 * loss)
    theirs.last_touched[:] = theirs.steps_done
    assert_close(ours, theirs, 1e-10)
    untouched = ours.last_touched < ours.steps_done
    assert torch.equal(ours.last_touched[untouched], state.last_touched[untouched])
    for key, old in before.items():
        assert torch.equal(ours.params[key][untouched], old[untouched])
        assert torch.equal(ours.second_moments[key][untouched], state.second_moments[key][untouched])
    torch.testing.assert_close(ours.encoder.norms, ours.params["W_enc"].norm(dim=1), rtol=1e-12, atol=0)
    return ours
