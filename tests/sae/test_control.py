"""The controller of λ: where it rests, which way it pulls, how fast it may move. No tuned gain is repeated here."""

from __future__ import annotations

import math

import pytest
import torch

from jumpahead.engine import fresh_state, kernel_layer, step
from jumpahead.sae.architectures import ARCHITECTURES
from jumpahead.sae.base import Architecture, Counts, Knobs
from jumpahead.sae.controller import SMOOTHING, Control
from jumpahead.sae.recipe import Setting, Shape, TrainConfig, wanted_l0
from tests.engine.cases import CASES, LAYERS, activations, layer, scrambled, start

TARGET = 16.0
GAIN, STEER = 0.07, 0.04
STEERED = [case for case in CASES if case.arch().controlled and type(case.arch()).steer is not Architecture.steer]


def test_it_rests_where_the_requested_l0_is_reached():
    at = Control(price=0.0037, l0=TARGET)
    assert at.after(TARGET, TARGET, GAIN) == at
    assert at.steering(TARGET, STEER) == 0


@pytest.mark.parametrize(("l0", "sign"), [(17.0, 1), (1000.0, 1), (15.0, -1), (0.5, -1), (0.0, -1)])
def test_too_many_active_features_raise_the_price_and_the_thresholds_too_few_lower_them(l0, sign):
    after = Control(0.0037, TARGET).after(l0, TARGET, GAIN)
    assert sign * (after.price - 0.0037) > 0
    assert sign * after.steering(TARGET, STEER) > 0
    assert sign * (after.l0 - TARGET) > 0


@pytest.mark.parametrize(("l0", "error"), [(1e6, 1), (100.0, 1), (1e-6, -1), (0.0, -1)])
def test_one_step_moves_at_most_by_its_gains(l0, error):
    after = Control(0.0037, l0).after(l0, TARGET, GAIN)
    assert after.price == pytest.approx(0.0037 * math.exp(error * GAIN), rel=1e-12)
    assert after.steering(TARGET, STEER) == pytest.approx(error * STEER, rel=1e-12)


def test_l0_is_smoothed_exponentially():
    at = Control(0.0037, 40.0)
    for i in range(1, 6):
        at = at.after(10.0, TARGET, GAIN)
        assert at.l0 == pytest.approx(10 + 30 * (1 - SMOOTHING) ** i, rel=1e-12)


def test_errors_of_the_same_size_in_both_directions_cancel():
    """As ratios: twice too many and half too few."""
    up = Control(0.002, 1.5 * TARGET).after(1.5 * TARGET, TARGET, GAIN).price
    down = Control(0.002, TARGET / 1.5).after(TARGET / 1.5, TARGET, GAIN).price
    assert up * down == pytest.approx(0.002**2, rel=1e-12)


@pytest.mark.parametrize("start", [0.02, 0.4, 3.0, 50.0])
@pytest.mark.parametrize("power", [1.5, 3.0])
def test_in_a_closed_loop_it_settles_at_the_target(start, power):
    """A plant whose L0 falls as a power of a threshold that both hands move."""
    at, log_theta, log_start = Control(0.001, TARGET), math.log(start), math.log(0.001)
    seen = []
    for _ in range(1500):
        l0 = TARGET * math.exp(-power * log_theta)
        at = at.after(l0, TARGET, GAIN)
        log_theta += at.steering(TARGET, STEER) + 0.002 * (math.log(at.price) - log_start - log_theta)
        seen.append(l0)
    assert sum(seen[-50:]) / 50 == pytest.approx(TARGET, rel=0.05)


@pytest.mark.parametrize("case", STEERED, ids=lambda case: case.label)
def test_steering_moves_l0_the_right_way(case):
    found = []
    for growth in (-0.2, 0.0, 0.2):
        state = scrambled(case, 12, 60, seed=4)
        state.arch.steer(state.p, growth)
        p = state.p
        pre = (activations(200, 12, 1) - p["b_dec"]) @ p["W_enc"].T + p["b_enc"]
        found.append((state.arch.activate_batch(p, pre, Knobs()) > 0).sum().item())
    assert found[0] > found[1]
    assert found[1] > found[2]


@pytest.mark.parametrize("form", ["log", "raw"])
def test_the_price_is_in_units_of_the_squared_median_threshold(form):
    """λ = price·(median θ)² of JumpReLU: thrice the thresholds, nine times the λ."""
    case = next(one for one in CASES if one.architecture == "jumprelu" and one.setting.kind == "l0")
    state = scrambled(case._replace(changes={"threshold_form": form}), 6, 21, seed=2)
    median = state.arch.derive(state.p)["theta"].sort().values[10]
    state.control = Control(0.37, TARGET)
    assert float(state.sparsity) == pytest.approx(0.37 * median.item() ** 2, rel=1e-12)
    state.arch.steer(state.p, math.log(3))
    assert float(state.sparsity) == pytest.approx(9 * 0.37 * median.item() ** 2, rel=1e-12)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.label)
def test_decay_takes_the_same_share_of_every_distance_to_the_median(case):
    """The distance to where the sparsity term wants a feature, where that is not the same for all."""
    state = scrambled(case, 6, 21, seed=2, threshold_pull=2.5)
    arch, p, counts = state.arch, state.p, Counts(50, torch.arange(21.0, dtype=torch.float64))
    before = {name: tensor.clone() for name, tensor in p.items()}
    share, gate = 2.5 * arch.trained[arch.gate] * 0.03, before[arch.gate]
    apart = torch.zeros(21, dtype=torch.float64)
    if "frequency_scale" in case.options and arch.gate == "log_threshold":
        apart = (1 + 2 * counts.fired / 50 / case.options["frequency_scale"]).sqrt().log()
    middle = (gate - apart).median() + apart
    arch.decay(p, 0.03, counts)
    torch.testing.assert_close(p[arch.gate] - middle, (1 - share) * (gate - middle), rtol=0, atol=1e-12)
    assert all(torch.equal(p[name], tensor) for name, tensor in before.items() if name != arch.gate)
    arch.decay(p, 1e9, counts)
    torch.testing.assert_close(p[arch.gate] - p[arch.gate][0], apart - apart[0], rtol=0, atol=1e-12)
    alone = scrambled(case, 6, 21, seed=2)
    alone.arch.decay(alone.p, 0.03, counts)
    assert torch.equal(alone.p[arch.gate], gate)


KEPT = [case for case in CASES if case.keeps_largest and case.options.get("aux") == 0.0]


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("case", KEPT, ids=lambda case: case.label)
def test_a_falling_request_is_what_a_step_keeps(case, name):
    """k = 4 or 5 from three times of it in 8 steps: as many features as `wanted_l0` says, on every token."""
    found, wanted = [], []
    state, made = start(case, 12, 60, l0_start=3.0, l0_steps=8), layer(name)
    for i in range(11):
        asked = wanted_l0(state.arch.recipe, case.setting, i)
        wanted.append(round(asked) if case.architecture == "topk" else round(asked * 40) / 40)
        found.append(step(state, activations(40, 12, i), 1e-4, 0.37, made).l0)
    assert found == pytest.approx(wanted, rel=1e-12)
    assert found[0] == pytest.approx(3 * found[-1])


@pytest.mark.parametrize("form", ["log", "raw"])
def test_thresholds_of_dead_features_alone_shrink_until_they_fire(form):
    case = next(case for case in CASES if case.architecture == "jumprelu")._replace(changes={"threshold_form": form})
    state = scrambled(case, 6, 20, seed=2, revival=0.9)
    before = state.arch.derive(state.p)["theta"].clone()
    dead = torch.arange(20) % 3 == 0
    state.arch.revive(state.p, dead)
    wanted = torch.where(dead, 0.9 * before, before)
    torch.testing.assert_close(state.arch.derive(state.p)["theta"], wanted, rtol=1e-6, atol=0)


def test_under_the_papers_preset_a_requested_l0_leaves_lambda_in_proportion_to_the_thresholds():
    """It starts with half the features on and thresholds near zero, a hundred times too low."""
    data = [activations(256, 16, i, torch.float32) for i in range(20)]
    kind = ARCHITECTURES.get("jumprelu")
    setting = Setting("l0", 4.0)
    papers = kind.recipe_for(TrainConfig.model_validate({"recipe": "paper"}), Shape(16, 64, setting))
    state = fresh_state(kind(kind.Options(), setting, papers), 16, 64, 0, torch.cat(data))
    for i in range(400):
        l0 = step(state, data[i % 20], 1e-4, 1.0, kernel_layer("plain")).l0
    assert l0 == pytest.approx(4.0, rel=0.1)
    assert 0.3 < state.control.price < 3
