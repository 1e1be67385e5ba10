"""Schedules in closed form, and the paper's preset as the paper has it."""

from __future__ import annotations

import itertools
import math

import pytest
from pydantic import ValidationError

from jumpahead.errors import StudyError
from jumpahead.sae.architectures import ARCHITECTURES
from jumpahead.sae.recipe import (
    Recipe,
    Setting,
    Shape,
    TrainConfig,
    check_changes,
    digested,
    learning_rate,
    recipe,
    sparsity_warmup,
    wanted_l0,
)
from jumpahead.store import setting_text
from tests.engine.cases import some_recipe


def config(**changes):
    return TrainConfig.model_validate({"tokens": 3_000_000, "batch": 512, **changes})


def test_the_papers_preset_is_the_papers():
    """arXiv 2407.14435 appendix I, Gemma Scope (2408.05147) section 3.2."""
    r = recipe(config(recipe="paper"))
    assert r.lr == 7e-5
    assert (r.beta2, r.adam_epsilon) == (0.999, 1e-8)
    assert (r.lr_start, r.lr_warmup, r.lr_decay) == (0.1, 1_000, 0)  # cosine from 0.1·lr over 1,000 steps; no decay
    assert r.sparsity_warmup == 10_000
    assert (r.threshold_form, r.threshold_start, r.threshold_rate) == ("log", 0.001, 1.0)
    assert r.bandwidth == 0.001
    assert r.centre is False  # b_dec starts at zero
    assert r.dead_after == 10_000_000
    assert r.revival == 1.0  # nothing is done for dead features
    assert recipe(config(recipe="paper", tokens=10**9, batch=4096)) == r, "nothing depends on the length of the run"


def test_a_given_learning_rate_is_the_peak_in_both():
    for name in ("short", "paper"):
        assert recipe(config(recipe=name, lr=0.0123)).lr == 0.0123
        assert recipe(config(recipe=name, lr=0.0123))._replace(lr=0) == recipe(config(recipe=name))._replace(lr=0)


@pytest.mark.parametrize("steps", [1, 2, 10, 500, 50_000])
def test_the_short_recipe_fits_any_length(steps):
    r = recipe(config(tokens=steps * 512))
    assert 1 <= r.lr_warmup <= max(1, steps)
    assert 0 <= r.lr_decay <= steps - r.lr_warmup + 1
    assert 1 <= r.sparsity_warmup <= max(1, steps)
    assert r.dead_after >= 512
    for i in range(0, steps, max(1, steps // 50)):
        assert 0 < learning_rate(r, i, steps) <= r.lr
        assert 0 < sparsity_warmup(r, i) <= 1


SHAPE = Shape(96, 512, Setting("l0", 24.0))


@pytest.mark.parametrize("name", ARCHITECTURES.names())
def test_a_given_rate_and_a_series_own_changes_win_over_what_an_architecture_does_best_with(name):
    kind = ARCHITECTURES.get(name)
    assert kind.recipe_for(config(lr=0.0123), SHAPE).lr == 0.0123
    assert kind.recipe_for(config(lr=0.0123), SHAPE, {"lr": 0.045}).lr == 0.045
    changed = kind.recipe_for(config(), SHAPE, {"bandwidth_share": 0.7, "beta2": 0.95})
    assert changed == kind.recipe_for(config(), SHAPE)._replace(bandwidth_share=0.7, beta2=0.95)
    papers = kind.recipe_for(config(recipe="paper"), SHAPE)._replace(control_gain=0.05, steering=0.05)
    own = kind.published(recipe(config(recipe="paper")), config(recipe="paper"), SHAPE)
    assert papers == own, "the paper's is the paper's, but for the controller, which is ours"
    assert kind.recipe_for(config(recipe="paper", lr=0.0123), SHAPE).lr == 0.0123


def test_anthropics_preset_is_its_own():
    """Thresholds and bandwidth for activations of norm √d, here 12: 0.1 and 2 there."""
    asked = config(recipe="paper", tokens=10**6, batch=1000)
    found = ARCHITECTURES.get("anthropic").recipe_for(asked, Shape(144, 512, Setting("lambda", 0.07)))
    assert (found.lr, found.lr_decay, found.sparsity_warmup) == (2e-4, 200, 1000)
    assert (found.threshold_start, found.bandwidth) == pytest.approx((0.1 / 12, 2 / 12))
    assert found.adam_epsilon == recipe(asked).adam_epsilon


@pytest.mark.parametrize("wrong", [{"l0_start": 0.0}, {"l0_start": -2.0}, {"l0_steps": -3}, {"threshold_pull": -0.5}])
def test_what_would_ask_for_no_l0_is_refused(wrong):
    with pytest.raises(StudyError, match="'l0_start' must be positive, 'l0_steps' and 'threshold_pull' not negative"):
        check_changes(wrong)


@pytest.mark.parametrize("name", ARCHITECTURES.names())
def test_the_short_rate_follows_d_l0_and_budget(name):
    """Half the rate at 4 times d, at 16 times the L0 and at 16 times the tokens; the paper's, about, at its budget."""
    kind, first = ARCHITECTURES.get(name), ARCHITECTURES.get(name).recipe_for(config(), SHAPE).lr
    assert kind.recipe_for(config(), SHAPE._replace(d=4 * 96)).lr == pytest.approx(first / 2)
    assert kind.recipe_for(config(), SHAPE._replace(setting=Setting("l0", 1.5))).lr == pytest.approx(2 * first)
    assert kind.recipe_for(config(), SHAPE._replace(width=4096)).lr == first
    assert kind.recipe_for(config(), SHAPE._replace(setting=Setting("lambda", 0.3))).lr == first, "as at L0 = d/4"
    assert kind.recipe_for(config(tokens=48_000_000), SHAPE).lr == pytest.approx(first / 2)
    papers = kind.recipe_for(config(tokens=8 * 10**9), Shape(3584, 2**17, Setting("l0", 50.0))).lr
    assert 0.5 < papers / 7e-5 < 2.5


def test_hands_follow_the_learning_rate_where_there_are_any():
    """d = 64, 2e6 tokens: 0.064/8 at L0 16, 16/9 of the steady rate whatever the L0; at d = 256 their own."""
    small, large = (Shape(d, 512, Setting("l0", 4.0)) for d in (64, 256))
    for kind in map(ARCHITECTURES.get, ARCHITECTURES.names()):
        (g, h), rules = kind.hands, [kind.recipe_for(config(tokens=2_000_000), shape) for shape in (small, large)]
        hands = [(one.control_gain, one.steering) for one in rules]
        held = (g, kind.recipe_for(config(), large).steering)
        assert hands[1] == held
        quicker = 16 / 9 if "lambda" in kind.settings else 1.0
        assert hands[0] == pytest.approx([quicker * hand for hand in held])
        assert held[1] in (0.0, h), "Gated has no quick hand"
        assert kind.recipe_for(config(lr=2.0), small).control_gain == pytest.approx(3 * g if quicker > 1 else g)
        assert kind.recipe_for(config(), large, {"lr": 2.0}) == kind.recipe_for(config(lr=2.0), large)
        fixed = small._replace(setting=Setting("lambda", 0.3))
        assert kind.recipe_for(config(), fixed).control_gain == g
        assert kind.recipe_for(config(recipe="paper"), small).control_gain == g


def test_learning_rate_in_closed_form():
    """Cosine from 0.1·lr over 40 steps, constant, linear to zero over the last 50 of 200."""
    r = some_recipe(lr=0.03, lr_start=0.1, lr_warmup=40, lr_decay=50)
    rate = [learning_rate(r, i, 200) for i in range(200)]
    assert rate[0] == pytest.approx(0.003)
    assert rate[10] == pytest.approx(0.003 + 0.027 * (1 - math.cos(math.pi / 4)) / 2)
    assert rate[20] == pytest.approx(0.0165)
    assert rate[40] == rate[100] == rate[150] == 0.03
    assert rate[151] == pytest.approx(0.03 * 49 / 50)
    assert rate[175] == pytest.approx(0.015)
    assert rate[199] == pytest.approx(0.03 / 50)
    assert all(a <= b for a, b in itertools.pairwise(rate[:41]))


def test_without_decay_the_rate_stays():
    r = some_recipe(lr=0.03, lr_warmup=4, lr_decay=0)
    assert {learning_rate(r, i, 200) for i in range(4, 200)} == {0.03}


def test_lambda_rises_linearly():
    r = some_recipe(sparsity_warmup=8)
    assert [sparsity_warmup(r, i) for i in range(10)] == [1 / 8, 2 / 8, 3 / 8, 4 / 8, 5 / 8, 6 / 8, 7 / 8, 1, 1, 1]


def test_what_is_asked_for_falls_by_the_same_factor_in_every_step():
    """From four times the requested L0 to it in 20 steps: twice of it half-way."""
    r, setting = some_recipe(l0_start=4.0, l0_steps=20), Setting("l0", 6.0)
    asked = [wanted_l0(r, setting, i) for i in range(40)]
    assert asked[0] == 24.0
    assert asked[10] == pytest.approx(12.0)
    assert [b / a for a, b in itertools.pairwise(asked[:21])] == pytest.approx([4 ** (-1 / 20)] * 20)
    assert set(asked[20:]) == {6.0}
    assert {wanted_l0(some_recipe(), setting, i) for i in range(40)} == {6.0}


def test_a_new_hyper_parameter_at_its_default_leaves_digests_as_they_were():
    r = recipe(config())
    new = {name: value for name, value in r._asdict().items() if name not in digested(r)}
    assert new == {"threshold_pull": 0.0, "l0_start": 1.0, "l0_steps": 0} == {k: Recipe._field_defaults[k] for k in new}
    assert digested(r._replace(threshold_pull=3.5))["threshold_pull"] == 3.5


def test_steps_are_whole_batches():
    assert config(tokens=5_000, batch=512).steps == 9
    assert config(tokens=511, batch=512).steps == 0


@pytest.mark.parametrize("wrong", [{"tokens": 0}, {"batch": -1}, {"lr": 0.0}, {"recipe": "long"}, {"wings": 2}])
def test_nonsense_is_refused(wrong):
    with pytest.raises(ValidationError):
        config(**wrong)


def test_settings_have_names_for_folders_and_for_people():
    assert (setting_text(Setting("l0", 16.0)), Setting("l0", 16.0).label) == ("l0-16", "l0 = 16")
    assert (setting_text(Setting("lambda", 0.0006)), Setting("lambda", 0.0006).label) == ("lambda-0.0006", "λ = 0.0006")
    assert (setting_text(Setting("k", 32)), Setting("k", 32).label) == ("k-32", "k = 32")
