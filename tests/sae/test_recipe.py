"""Schedules in closed form, and the paper's preset as the paper has it."""

from __future__ import annotations

import itertools
import math
from dataclasses import fields

import pytest

from jumpahead.sae.architectures import ARCHITECTURES
from jumpahead.sae.recipe import (
    Setting,
    Shape,
    TrainConfig,
    base_recipe,
    learning_rate_at,
    requested_l0_at,
    short_recipe_lr,
    sparsity_warmup_share,
)
from jumpahead.storage.layout import setting_text
from tests.engine.cases import quick_recipe


def config(**changes):
    return TrainConfig(**{"tokens": 3_000_000, "batch": 512, **changes})


def test_the_papers_preset_is_the_papers():
    """arXiv 2407.14435 appendix I, Gemma Scope (2408.05147) section 3.2."""
    r = base_recipe(config(recipe="paper"))
    assert r.lr == 7e-5
    assert (r.beta2, r.adam_epsilon) == (0.999, 1e-8)
    assert (r.lr_warmup_start, r.lr_warmup_steps, r.lr_decay_steps) == (
        0.1,
        1_000,
        0,
    )  # cosine from 0.1·lr over 1,000 steps; no decay
    assert r.sparsity_warmup_steps == 10_000
    assert (r.threshold_form, r.initial_threshold, r.threshold_lr_multiplier) == ("log", 0.001, 1.0)
    assert r.bandwidth == 0.001
    assert r.centre_b_dec is False  # b_dec starts at zero
    assert r.dead_after_tokens == 10_000_000
    assert r.dead_threshold_factor == 1.0  # nothing is done for dead features
    assert base_recipe(config(recipe="paper", tokens=10**9, batch=4096)) == r, (
        "nothing depends on the length of the run"
    )


def test_a_given_learning_rate_is_the_peak_in_both():
    for name in ("short", "paper"):
        assert base_recipe(config(recipe=name, lr=0.0123)).lr == 0.0123
        assert base_recipe(config(recipe=name, lr=0.0123))._replace(lr=0) == base_recipe(config(recipe=name))._replace(
            lr=0
        )


@pytest.mark.parametrize("steps", [1, 2, 10, 500, 50_000])
def test_the_short_recipe_fits_any_length(steps):
    r = base_recipe(config(tokens=steps * 512))
    assert 1 <= r.lr_warmup_steps <= max(1, steps)
    assert 0 <= r.lr_decay_steps <= steps - r.lr_warmup_steps + 1
    assert 1 <= r.sparsity_warmup_steps <= max(1, steps)
    assert r.dead_after_tokens >= 512
    for i in range(0, steps, max(1, steps // 50)):
        assert 0 < learning_rate_at(r, i, steps) <= r.lr
        assert 0 < sparsity_warmup_share(r, i) <= 1


SHAPE = Shape(96, 512, Setting("l0", 24.0))


@pytest.mark.parametrize("name", ARCHITECTURES.names())
def test_a_given_rate_and_a_series_own_changes_take_precedence(name):
    kind = ARCHITECTURES.get(name)
    assert kind.recipe_for(config(lr=0.0123), SHAPE).lr == 0.0123
    assert kind.recipe_for(config(lr=0.0123), SHAPE, {"lr": 0.045}).lr == 0.045
    changed = kind.recipe_for(config(), SHAPE, {"bandwidth_share": 0.7, "beta2": 0.95})
    assert changed == kind.recipe_for(config(), SHAPE)._replace(bandwidth_share=0.7, beta2=0.95)
    papers = kind.recipe_for(config(recipe="paper"), SHAPE)._replace(integral_gain=0.05, proportional_gain=0.05)
    own = kind.paper_recipe(base_recipe(config(recipe="paper")), config(recipe="paper"), SHAPE)
    assert papers == own, "the paper's is the paper's, but for the controller, which no paper has"
    assert kind.recipe_for(config(recipe="paper", lr=0.0123), SHAPE).lr == 0.0123


def test_anthropics_preset_is_its_own():
    """Thresholds and bandwidth for activations of norm √d, here 12: 0.1 and 2 there."""
    given = config(recipe="paper", tokens=10**6, batch=1000)
    found = ARCHITECTURES.get("anthropic").recipe_for(given, Shape(144, 512, Setting("lambda", 0.07)))
    assert (found.lr, found.lr_decay_steps, found.sparsity_warmup_steps) == (2e-4, 200, 1000)
    assert (found.initial_threshold, found.bandwidth) == pytest.approx((0.1 / 12, 2 / 12))
    assert found.adam_epsilon == base_recipe(given).adam_epsilon


@pytest.mark.parametrize("name", ["jumprelu", "relu"])
def test_the_short_rate_follows_d_l0_and_budget(name):
    """Half the rate at 4 times d and at 16 times the tokens; the paper's, about, at its budget. Without momentum also
    half the rate at 16 times the L0; with momentum 1.1 times that rate at L0 16, and 1/√2 at 16 times the L0."""
    kind, first = ARCHITECTURES.get(name), ARCHITECTURES.get(name).recipe_for(config(), SHAPE).lr
    assert kind.recipe_for(config(), SHAPE._replace(d=4 * 96)).lr == pytest.approx(first / 2)
    of_l0 = [kind.recipe_for(config(), SHAPE._replace(setting=Setting("l0", l0))).lr for l0 in (1.5, 16.0)]
    by_rule = short_recipe_lr(kind.base_lr, SHAPE._replace(setting=Setting("l0", 16.0)), config().tokens)
    assert of_l0 == pytest.approx([2**0.5 * first, 1.1 * by_rule] if kind.has_momentum else [2 * first, by_rule])
    assert kind.recipe_for(config(), SHAPE._replace(width=4096)).lr == first
    assert kind.recipe_for(config(), SHAPE._replace(setting=Setting("lambda", 0.3))).lr == first, "as at L0 = d/4"
    assert kind.recipe_for(config(tokens=48_000_000), SHAPE).lr == pytest.approx(first / 2)
    papers = kind.recipe_for(config(tokens=8 * 10**9), Shape(3584, 2**17, Setting("l0", 50.0))).lr
    assert 0.5 < papers / 7e-5 < 2.5


def test_controller_gains_grow_with_the_learning_rate_where_there_is_a_controller():
    """d = 64, 2e6 tokens: lr 0.064/8 at L0 16, 16/9 of the reference rate whatever the L0; at d = 256 the own gains."""
    small, large = (Shape(d, 512, Setting("l0", 4.0)) for d in (64, 256))
    for kind in map(ARCHITECTURES.get, ARCHITECTURES.names()):
        integral, proportional = kind.controller_gains
        recipes = [kind.recipe_for(config(tokens=2_000_000), shape) for shape in (small, large)]
        gains = [(one.integral_gain, one.proportional_gain) for one in recipes]
        own = (integral, kind.recipe_for(config(), large).proportional_gain)
        assert gains[1] == own
        factor = 16 / 9 if "lambda" in kind.settings else 1.0
        if kind.has_momentum and factor > 1:  # at L0 4, 1.1·4^⅛ instead of 4^¼
            factor *= 1.1 * 4**-0.125
        assert gains[0] == pytest.approx([factor * gain for gain in own])
        assert own[1] in (0.0, proportional), "Gated has no proportional action"
        highest = kind.recipe_for(config(lr=2.0), small).integral_gain
        assert highest == pytest.approx(3 * integral if factor > 1 else integral)
        assert kind.recipe_for(config(), large, {"lr": 2.0}) == kind.recipe_for(config(lr=2.0), large)
        fixed = small._replace(setting=Setting("lambda", 0.3))
        assert kind.recipe_for(config(), fixed).integral_gain == integral
        assert kind.recipe_for(config(recipe="paper"), small).integral_gain == integral


def test_learning_rate_in_closed_form():
    """Cosine from 0.1·lr over 40 steps, constant, linear to zero over the last 50 of 200."""
    r = quick_recipe(lr=0.03, lr_warmup_start=0.1, lr_warmup_steps=40, lr_decay_steps=50)
    rate = [learning_rate_at(r, i, 200) for i in range(200)]
    assert rate[0] == pytest.approx(0.003)
    assert rate[10] == pytest.approx(0.003 + 0.027 * (1 - math.cos(math.pi / 4)) / 2)
    assert rate[20] == pytest.approx(0.0165)
    assert rate[40] == rate[100] == rate[150] == 0.03
    assert rate[151] == pytest.approx(0.03 * 49 / 50)
    assert rate[175] == pytest.approx(0.015)
    assert rate[199] == pytest.approx(0.03 / 50)
    assert all(a <= b for a, b in itertools.pairwise(rate[:41]))


def test_without_decay_the_rate_stays():
    r = quick_recipe(lr=0.03, lr_warmup_steps=4, lr_decay_steps=0)
    assert {learning_rate_at(r, i, 200) for i in range(4, 200)} == {0.03}


def test_lambda_rises_linearly():
    r = quick_recipe(sparsity_warmup_steps=8)
    assert [sparsity_warmup_share(r, i) for i in range(10)] == [
        1 / 8,
        2 / 8,
        3 / 8,
        4 / 8,
        5 / 8,
        6 / 8,
        7 / 8,
        1,
        1,
        1,
    ]


def test_the_requested_l0_falls_by_the_same_factor_in_every_step():
    """From four times the requested L0 to it in 20 steps: twice of it half-way."""
    r, setting = quick_recipe(initial_l0_multiplier=4.0, l0_anneal_steps=20), Setting("l0", 6.0)
    requested = [requested_l0_at(r, setting, i) for i in range(40)]
    assert requested[0] == 24.0
    assert requested[10] == pytest.approx(12.0)
    assert [b / a for a, b in itertools.pairwise(requested[:21])] == pytest.approx([4 ** (-1 / 20)] * 20)
    assert set(requested[20:]) == {6.0}
    assert {requested_l0_at(quick_recipe(), setting, i) for i in range(40)} == {6.0}


def test_steps_are_whole_batches():
    assert config(tokens=5_000, batch=512).steps == 9
    assert config(tokens=511, batch=512).steps == 0


def test_settings_have_names_for_folders_and_for_people():
    assert (setting_text(Setting("l0", 16.0)), Setting("l0", 16.0).label) == ("l0-16", "l0 = 16")
    assert (setting_text(Setting("lambda", 0.0006)), Setting("lambda", 0.0006).label) == ("lambda-0.0006", "λ = 0.0006")
    assert (setting_text(Setting("k", 32)), Setting("k", 32).label) == ("k-32", "k = 32")


@pytest.mark.parametrize("name", ARCHITECTURES.names())
def test_momentum_comes_with_a_remedy_for_dead_features(name):
    """AuxK in every fourth step on features silent for 16·M/L0 tokens and two batches at least; else resampling."""
    kind = ARCHITECTURES.get(name)
    wide = SHAPE._replace(width=8192, setting=Setting("l0", 4.0))
    found, narrow = (kind.recipe_for(config(tokens=30_000_000), wide._replace(width=width)) for width in (8192, 96))
    rare = kind.recipe_for(config(tokens=10_000_000), wide)  # features fire 4,883 times on average
    assert (rare.beta1, rare.beta2, rare.aux_weight, rare.bias_lr_multiplier) == (0, 0.98, 0, 1)
    assert kind.recipe_for(config(recipe="paper"), SHAPE).beta1 == 0
    if not kind.has_momentum:
        assert (found.beta1, found.beta2, found.aux_weight) == (0, 0.98, 0)
        return
    assert (found.beta1, found.beta2) == (0.9, 0.95)
    if found.aux_weight > 0 or "aux" in {field.name for field in fields(kind.Options)}:
        assert (found.aux_every, found.aux_after_tokens, narrow.aux_after_tokens) == (4, 32_768, 2 * config().batch)
    else:
        assert found.resample_every > 0
