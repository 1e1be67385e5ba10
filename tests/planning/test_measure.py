"""Estimated times: the timed SAEs have the requested support, and totals follow closed forms."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from jumpahead import engine
from jumpahead.engine.kernels.torch.layer import TorchKernels
from jumpahead.planning import evaluation_time
from jumpahead.planning.evaluation_time import time_evaluation
from jumpahead.planning.measure import count_rows_read
from jumpahead.planning.step_time import (
    BIAS_SAMPLE_ROWS,
    SUPPORT_DECAY_STEPS,
    _time_sae,
    lower_biases,
    mean_step_seconds,
)
from jumpahead.planning.timing import TimedSAE
from jumpahead.sae.architectures import ARCHITECTURES
from jumpahead.sae.gradients import StepInputs
from jumpahead.sae.recipe import Setting, Shape, TrainConfig
from jumpahead.sae.support import AboveThreshold
from jumpahead.study.load import parse


def made(name: str, l0: float, d: int = 12, width: int = 96, recipe: str = "short"):
    kind, setting = ARCHITECTURES.get(name), Setting("l0", l0)
    config = TrainConfig(batch=64, tokens=6_400, recipe=recipe)
    return kind(kind.Options(), setting, kind.recipe_for(config, Shape(d, width, setting)))


@pytest.mark.parametrize("steps", [7, 60, 900])
def test_the_mean_step_is_that_of_an_exponentially_decaying_support(steps):
    each = 0.3 + (2.3 - 0.3) * np.exp(-(np.arange(steps) + 0.5) / SUPPORT_DECAY_STEPS)
    assert mean_step_seconds(2.3, 0.3, steps) == pytest.approx(each.mean(), rel=1e-4)
    assert mean_step_seconds(2.3, 0.3, 0) == 2.3


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("recipe", ["short", "paper"])
@pytest.mark.parametrize("name", ["jumprelu", "gated", "relu"])
def test_biases_are_lowered_to_the_requested_support(name, recipe, training):
    """In the paper's recipe nearly half of the features are active at first."""
    random = torch.Generator().manual_seed(3)
    arch = made(name, 5, recipe=recipe)
    x = torch.randn(50, 12, generator=random) / 12**0.5
    p = arch.initialise(12, 96, torch.Generator().manual_seed(4), x)
    if not training:
        p = arch.fold(p, 37.0)
        x = 37.0 * x
    assert lower_biases(arch, p, x, 3.5, training=training)
    selection = arch.selection(p, arch.derive(p), StepInputs(), training=training)
    assert isinstance(selection, AboveThreshold)
    assert int((x @ p["W_enc"].T + p["b_enc"] > selection.lower).sum()) == pytest.approx(3.5 * 50, abs=1)


def test_biases_of_topk_are_unchanged():
    arch, x = made("topk", 5), torch.randn(50, 12)
    p = arch.initialise(12, 96, torch.Generator().manual_seed(4), x)
    before = p["b_enc"].clone()
    assert not lower_biases(arch, p, x, 3.0, training=True)
    assert torch.equal(p["b_enc"], before)


@pytest.mark.parametrize("name", ARCHITECTURES.names())
@pytest.mark.parametrize("recipe", ["short", "paper"])
def test_the_timed_sae_has_the_requested_l0(name, recipe, monkeypatch):
    """On unscaled activations, here 37 times those of training."""
    monkeypatch.setattr(engine, "kernel_layer", lambda **_: TorchKernels())
    study = parse({
        "name": "x", "sae": {"width": 96}, "train": {"tokens": 6_400, "batch": 64, "recipe": recipe},
        "series": [{"architecture": name, "l0": [3]}],
    })  # fmt: skip
    x = 37.0 * torch.randn(500, 12, generator=torch.Generator().manual_seed(5)) / 12**0.5
    times, sae = _time_sae(study, study.series[0], study.series[0].settings[0], 96, x)
    assert min(times) > 0
    assert times.trained <= times.new
    l0 = (sae.encode(x[:BIAS_SAMPLE_ROWS]) > 0).sum(1).float().mean()
    assert float(l0) == pytest.approx(3, abs=0.05)


def test_evaluation_time_is_split_into_a_shared_part_and_one_per_sae(monkeypatch):
    """3 s per SAE to begin; a slow first group; then 5 s that are shared, 2 s for one SAE and 11 s for the other."""
    now = [100.0]
    monkeypatch.setattr(evaluation_time.time, "perf_counter", lambda: now[0])
    cost = {"one": 2.0, "other": 11.0}

    def evaluate(saes, progress):
        now[0] += 3.0 * len(saes)
        with progress.phase("evaluating", 1000, "tokens") as phase:
            for slow in (7.0, 1.0):
                now[0] += 5.0 * slow
                for one in saes.values():
                    now[0] += cost[one] * slow
                    phase.advance(10)

    timed = [TimedSAE("site", "one", 4.0), TimedSAE("site", "other", 0.5)]  # type: ignore[arg-type]
    times = time_evaluation(evaluate, timed)
    assert times == (3.0, 5.0, [2.0, 11.0])
    assert times.total(timed, 10.0) == 4.5 * 3.0 + 10.0 * (5.0 + 4.0 * 2.0 + 0.5 * 11.0)


def test_whole_blocks_are_read():
    """45 steps of 64 are 2,880 rows: two blocks of 1,500 per stream, and 200 + 2,880 for scale and start."""
    study = parse({
        "name": "x", "sae": {"width": 9}, "train": {"tokens": 2_900, "batch": 64}, "stream": {"seed": [1, 2]},
        "activations": {"scale_rows": 200}, "series": [{"architecture": "topk", "k": 3}],
    })  # fmt: skip
    assert count_rows_read(study, 1_500) == 200 + 2_880 + 2 * 2 * 1_500
