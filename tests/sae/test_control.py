"""The controller of λ: its fixed point, its direction, its largest step. No tuned gain is repeated here."""

from __future__ import annotations

import math

import pytest
import torch

from jumpahead.engine import initial_state, kernel_layer, train_step
from jumpahead.sae.architecture import Architecture
from jumpahead.sae.architectures import ARCHITECTURES
from jumpahead.sae.controller import SMOOTHING, ControllerState
from jumpahead.sae.gradients import Counts, StepInputs
from jumpahead.sae.recipe import Setting, Shape, TrainConfig, requested_l0_at
from tests.engine.cases import CASES, LAYERS, activations, layer, random_state, untrained_state
from tests.sae.variants import architecture, one_per, parametrisation

TARGET = 16.0
GAIN, SHIFT_GAIN = 0.07, 0.04
CONTROLLED = [
    case
    for case in CASES
    if case.arch().is_controlled and type(case.arch()).shift_thresholds is not Architecture.shift_thresholds
]


def test_at_the_requested_l0_nothing_changes():
    at = ControllerState(penalty_scale=0.0037, l0=TARGET)
    assert at.updated(TARGET, TARGET, GAIN) == at
    assert at.threshold_shift(TARGET, SHIFT_GAIN) == 0


@pytest.mark.parametrize(("l0", "sign"), [(17.0, 1), (1000.0, 1), (15.0, -1), (0.5, -1), (0.0, -1)])
def test_too_many_active_features_raise_penalty_and_thresholds_too_few_lower_them(l0, sign):
    after = ControllerState(0.0037, TARGET).updated(l0, TARGET, GAIN)
    assert sign * (after.penalty_scale - 0.0037) > 0
    assert sign * after.threshold_shift(TARGET, SHIFT_GAIN) > 0
    assert sign * (after.l0 - TARGET) > 0


@pytest.mark.parametrize(("l0", "error"), [(1e6, 1), (100.0, 1), (1e-6, -1), (0.0, -1)])
def test_one_step_moves_at_most_by_its_gains(l0, error):
    after = ControllerState(0.0037, l0).updated(l0, TARGET, GAIN)
    assert after.penalty_scale == pytest.approx(0.0037 * math.exp(error * GAIN), rel=1e-12)
    assert after.threshold_shift(TARGET, SHIFT_GAIN) == pytest.approx(error * SHIFT_GAIN, rel=1e-12)


def test_l0_is_smoothed_exponentially():
    at = ControllerState(0.0037, 40.0)
    for i in range(1, 6):
        at = at.updated(10.0, TARGET, GAIN)
        assert at.l0 == pytest.approx(10 + 30 * (1 - SMOOTHING) ** i, rel=1e-12)


def test_errors_of_the_same_size_in_both_directions_cancel():
    """As ratios: twice too many and half too few."""
    up = ControllerState(0.002, 1.5 * TARGET).updated(1.5 * TARGET, TARGET, GAIN).penalty_scale
    down = ControllerState(0.002, TARGET / 1.5).updated(TARGET / 1.5, TARGET, GAIN).penalty_scale
    assert up * down == pytest.approx(0.002**2, rel=1e-12)


@pytest.mark.parametrize("start", [0.02, 50.0])
@pytest.mark.parametrize("power", [1.5, 3.0])
def test_in_a_closed_loop_it_converges_to_the_target(start, power):
    """A plant whose L0 falls as a power of a threshold that both actions move."""
    at, log_theta, log_start = ControllerState(0.001, TARGET), math.log(start), math.log(0.001)
    seen = []
    for _ in range(1500):
        l0 = TARGET * math.exp(-power * log_theta)
        at = at.updated(l0, TARGET, GAIN)
        log_theta += at.threshold_shift(TARGET, SHIFT_GAIN) + 0.002 * (
            math.log(at.penalty_scale) - log_start - log_theta
        )
        seen.append(l0)
    assert sum(seen[-50:]) / 50 == pytest.approx(TARGET, rel=0.05)


@one_per(parametrisation, CONTROLLED)
def test_shifting_thresholds_moves_l0_the_right_way(case):
    found = []
    for shift in (-0.2, 0.0, 0.2):
        state = random_state(case, 12, 60, seed=4)
        state.arch.shift_thresholds(state.params, shift)
        p = state.params
        pre = (activations(200, 12, 1) - p["b_dec"]) @ p["W_enc"].T + p["b_enc"]
        found.append((state.arch.activate_batch(p, pre, StepInputs()) > 0).sum().item())
    assert found[0] > found[1]
    assert found[1] > found[2]


@pytest.mark.parametrize("form", ["log", "raw"])
def test_the_penalty_scale_is_in_units_of_the_squared_median_threshold(form):
    """λ = c·(median θ)² of JumpReLU: thrice the thresholds, nine times the λ."""
    case = next(one for one in CASES if one.architecture == "jumprelu" and one.setting.kind == "l0")
    state = random_state(case._replace(changes={"threshold_form": form}), 6, 21, seed=2)
    median = state.arch.derive(state.params)["theta"].sort().values[10]
    state.controller = ControllerState(0.37, TARGET)
    assert float(state.sparsity_coefficient) == pytest.approx(0.37 * median.item() ** 2, rel=1e-12)
    state.arch.shift_thresholds(state.params, math.log(3))
    assert float(state.sparsity_coefficient) == pytest.approx(9 * 0.37 * median.item() ** 2, rel=1e-12)


@one_per(lambda case: (*parametrisation(case), "frequency_scale" in case.options))
def test_decay_takes_the_same_share_of_every_distance_to_the_median(case):
    """The distance to where the sparsity term wants a feature, where that is not the same for all."""
    state = random_state(case, 6, 21, seed=2, threshold_decay=2.5)
    arch, p, counts = state.arch, state.params, Counts(50, torch.arange(21.0, dtype=torch.float64))
    before = {name: tensor.clone() for name, tensor in p.items()}
    share, vector = 2.5 * arch.trained_vectors[arch.sparsity_parameter] * 0.03, before[arch.sparsity_parameter]
    offset = torch.zeros(21, dtype=torch.float64)
    if "frequency_scale" in case.options and arch.sparsity_parameter == "log_threshold":
        offset = (1 + 2 * counts.fired / 50 / case.options["frequency_scale"]).sqrt().log()
    target = (vector - offset).median() + offset
    arch.decay_thresholds(p, 0.03, counts)
    torch.testing.assert_close(p[arch.sparsity_parameter] - target, (1 - share) * (vector - target), rtol=0, atol=1e-12)
    assert all(torch.equal(p[name], tensor) for name, tensor in before.items() if name != arch.sparsity_parameter)
    arch.decay_thresholds(p, 1e9, counts)
    torch.testing.assert_close(
        p[arch.sparsity_parameter] - p[arch.sparsity_parameter][0], offset - offset[0], rtol=0, atol=1e-12
    )
    alone = random_state(case, 6, 21, seed=2)
    alone.arch.decay_thresholds(alone.params, 0.03, counts)
    assert torch.equal(alone.params[arch.sparsity_parameter], vector)


LARGEST = [case for case in CASES if case.is_topk and case.options.get("aux") == 0.0]


@pytest.mark.parametrize("name", LAYERS)
@one_per(architecture, LARGEST)
def test_a_step_keeps_the_annealed_k(case, name):
    """k = 4 or 5 from three times of it in 8 steps: as many features as `requested_l0` says, on every token."""
    found, wanted = [], []
    state, made = untrained_state(case, 12, 60, initial_l0_multiplier=3.0, l0_anneal_steps=8), layer(name)
    for i in range(11):
        requested = requested_l0_at(state.arch.recipe, case.setting, i)
        wanted.append(round(requested) if case.architecture == "topk" else round(requested * 40) / 40)
        found.append(train_step(state, activations(40, 12, i), 1e-4, 0.37, made).l0)
    assert found == pytest.approx(wanted, rel=1e-12)
    assert found[0] == pytest.approx(3 * found[-1])


@pytest.mark.parametrize("form", ["log", "raw"])
def test_thresholds_of_dead_features_alone_shrink_until_they_fire(form):
    case = next(case for case in CASES if case.architecture == "jumprelu")._replace(changes={"threshold_form": form})
    state = random_state(case, 6, 20, seed=2, dead_threshold_factor=0.9)
    before = state.arch.derive(state.params)["theta"].clone()
    dead = torch.arange(20) % 3 == 0
    state.arch.revive_dead(state.params, dead)
    wanted = torch.where(dead, 0.9 * before, before)
    torch.testing.assert_close(state.arch.derive(state.params)["theta"], wanted, rtol=1e-6, atol=0)


def test_under_the_papers_preset_a_requested_l0_leaves_lambda_in_proportion_to_the_thresholds():
    """It starts with half the features on and thresholds near zero, a hundred times too low."""
    data = [activations(256, 16, i, torch.float32) for i in range(20)]
    kind = ARCHITECTURES.get("jumprelu")
    setting = Setting("l0", 4.0)
    papers = kind.recipe_for(TrainConfig(recipe="paper"), Shape(16, 64, setting))
    state = initial_state(kind(kind.Options(), setting, papers), 16, 64, 0, torch.cat(data))
    for i in range(400):
        l0 = train_step(state, data[i % 20], 1e-4, 1.0, kernel_layer("torch")).l0
    assert l0 == pytest.approx(4.0, rel=0.1)
    assert 0.3 < state.controller.penalty_scale < 3
