"""Predicted times: what is timed is what it says, and what is made of that follows closed forms."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from jumpahead import engine
from jumpahead.engine.kernels.torch.layer import Plain
from jumpahead.planning import measure
from jumpahead.sae.architectures import ARCHITECTURES
from jumpahead.sae.base import Above, Knobs
from jumpahead.sae.recipe import Setting, Shape, TrainConfig
from jumpahead.study.schema import parse


def made(name: str, l0: float, d: int = 12, width: int = 96, recipe: str = "short"):
    kind, setting = ARCHITECTURES.get(name), Setting("l0", l0)
    config = TrainConfig.model_validate({"batch": 64, "tokens": 6_400, "recipe": recipe})
    return kind(kind.Options(), setting, kind.recipe_for(config, Shape(d, width, setting)))


@pytest.mark.parametrize("steps", [7, 60, 900])
def test_the_mean_of_steps_is_that_of_a_support_that_decays(steps):
    each = 0.3 + (2.3 - 0.3) * np.exp(-(np.arange(steps) + 0.5) / measure.TAU)
    assert measure.mean_step(2.3, 0.3, steps) == pytest.approx(each.mean(), rel=1e-4)
    assert measure.mean_step(2.3, 0.3, 0) == 2.3


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("recipe", ["short", "paper"])
@pytest.mark.parametrize("name", ["jumprelu", "gated", "relu"])
def test_biases_are_lowered_to_the_support_asked_for(name, recipe, training):
    """In the paper's recipe nearly half of the features are on at first."""
    random = torch.Generator().manual_seed(3)
    arch = made(name, 5, recipe=recipe)
    x = torch.randn(50, 12, generator=random) / 12**0.5
    p = arch.initialise(12, 96, torch.Generator().manual_seed(4), x)
    if not training:
        p = arch.fold(p, 37.0)
        x = 37.0 * x
    assert measure.lower_biases(arch, p, x, 3.5, training=training)
    selection = arch.selection(p, arch.derive(p), Knobs(), training=training)
    assert isinstance(selection, Above)
    assert int((x @ p["W_enc"].T + p["b_enc"] > selection.lower).sum()) == pytest.approx(3.5 * 50, abs=1)


def test_what_selects_a_number_is_left_alone():
    arch, x = made("topk", 5), torch.randn(50, 12)
    p = arch.initialise(12, 96, torch.Generator().manual_seed(4), x)
    before = p["b_enc"].clone()
    assert not measure.lower_biases(arch, p, x, 3.0, training=True)
    assert torch.equal(p["b_enc"], before)


@pytest.mark.parametrize("name", ARCHITECTURES.names())
@pytest.mark.parametrize("recipe", ["short", "paper"])
def test_an_sae_that_is_evaluated_has_the_l0_asked_for(name, recipe, monkeypatch):
    """On activations in the LM's own unit, here 37 times that of training."""
    monkeypatch.setattr(engine, "kernel_layer", lambda **_: Plain())
    study = parse({
        "name": "x", "sae": {"width": 96}, "train": {"tokens": 6_400, "batch": 64, "recipe": recipe},
        "series": [{"architecture": name, "l0": [3]}],
    })  # fmt: skip
    x = 37.0 * torch.randn(500, 12, generator=torch.Generator().manual_seed(5)) / 12**0.5
    begun, fresh, settled, found = measure._one(study, study.series[0], study.series[0].settings[0], 96, x)
    assert min(begun, fresh, settled) > 0
    assert settled <= fresh
    l0 = (found.encode(x[: measure.ROWS]) > 0).sum(1).float().mean()
    assert float(l0) == pytest.approx(3, abs=0.05)


def test_a_lap_is_split_into_what_saes_share_and_what_each_takes(monkeypatch):
    """3 s per SAE to begin; a slow first group; then 5 s that are shared, 2 s for one SAE and 11 s for the other."""
    now = [100.0]
    monkeypatch.setattr(measure.time, "perf_counter", lambda: now[0])
    cost = {"one": 2.0, "other": 11.0}

    def evaluate(saes, watch):
        now[0] += 3.0 * len(saes)
        with watch.phase("evaluating", 1000, "tokens") as phase:
            for slow in (7.0, 1.0):
                now[0] += 5.0 * slow
                for one in saes.values():
                    now[0] += cost[one] * slow
                    phase.advance(10)

    tried = [measure.Tried("site", "one", 4.0), measure.Tried("site", "other", 0.5)]  # type: ignore[arg-type]
    laps = measure.lap_times(evaluate, tried)
    assert laps == (3.0, 5.0, [2.0, 11.0])
    assert laps.total(tried, 10.0) == 4.5 * 3.0 + 10.0 * (5.0 + 4.0 * 2.0 + 0.5 * 11.0)


def test_whole_blocks_are_read():
    """45 steps of 64 are 2,880 rows: two blocks of 1,500 for each of two streams, after 200 for the scale and all for
    the start."""
    study = parse({
        "name": "x", "sae": {"width": 9}, "train": {"tokens": 2_900, "batch": 64}, "stream": {"seed": [1, 2]},
        "activations": {"scale_rows": 200}, "series": [{"architecture": "topk", "k": 3}],
    })  # fmt: skip
    assert measure._rows_read(study, 1_500) == 200 + 2_880 + 2 * 2 * 1_500
