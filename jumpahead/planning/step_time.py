"""Training time, from timed steps of a new SAE and of one whose support is as small as after training.

Most of training does not look like its start: the support of a new SAE is larger, and the excess decays like
e^(−step/τ). So a step is timed twice: on the new SAE, and with the biases lowered until the support is as small as that
of an SAE trained to the requested L0. The mean over n steps is

    t̄ = t_trained + (t_new − t_trained)·(τ/n)·(1 − e^(−n/τ))

With a fixed λ the final L0 is unknown, and the new SAE stands for the trained one.
"""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, NamedTuple

from jumpahead.planning.timing import TimedSAE, time_call, time_second_call
from jumpahead.sae.architectures import ARCHITECTURES
from jumpahead.study.schema import Series, Study, sae_specs

if TYPE_CHECKING:
    from torch import Tensor

    from jumpahead.engine import Kernels, State
    from jumpahead.sae.architecture import Architecture
    from jumpahead.sae.parameters import Params
    from jumpahead.sae.recipe import Setting
    from jumpahead.sae.saved import SAE

SUPPORT_DECAY_STEPS = 50.0
"""τ: steps in which the excess of the support falls to 1/e, at the `short` recipe's learning rates. JumpReLU: 37 in the
demo (L0 32: 690 entries per token, 100 after 100 steps, 58 at the end), 51 to 53 on stories260K (L0 8: 103 entries per
token, 41 after 60 steps, 23 after 116, 12.8 at the end); docs/LOG.md, 2026-11-24."""
ENTRIES_PER_ACTIVE_FEATURE = 1.25
"""Entries of the trained support per active feature, for architectures whose thresholds have an STE window: measured
1.25 and 1.15 at L0 8 and 32 on stories260K (docs/LOG.md, 2026-11-26)."""
BIAS_SAMPLE_ROWS = 256
"""Number of activations that biases are lowered on."""


class TrainingTime(NamedTuple):
    """The time to train all SAEs of a study."""

    kernel_start: float
    """Seconds that the very first step takes longer than the next: kernels are loaded or compiled."""
    training: float
    """Seconds of all training steps of all SAEs."""
    timed: list[TimedSAE]
    """The timed SAEs: the smallest and the largest setting of each series, for every site and width."""


def time_training(study: Study, activations: Mapping[str, Tensor]) -> TrainingTime:
    """Return the time to train all SAEs, from a few steps of the extreme settings of each series.

    activations: float32 [n, d] at every site, unscaled. The extremes stand for the settings between them.
    """
    kernel_start, total, timed = 0.0, 0.0, []
    specs = sae_specs(study)
    for site, width, series in itertools.product(activations, study.sae.width, study.series):
        settings = sorted(series.settings, key=lambda setting: setting.value)
        extremes = list(dict.fromkeys((settings[0], settings[-1])))
        count = sum((spec.site, spec.width, spec.series.name) == (site, width, series.name) for spec in specs)
        for setting in extremes:
            times, sae = _time_sae(study, series, setting, width, activations[site])
            kernel_start = kernel_start or max(0.0, times.first - times.new)
            first = times.first if timed else times.new  # loading kernels is counted once, in kernel_start
            steps = study.train.steps * mean_step_seconds(times.new, times.trained, study.train.steps)
            total += count / len(extremes) * (first + steps)
            timed.append(TimedSAE(site, sae, count / len(extremes)))
    return TrainingTime(kernel_start, total, timed)


def mean_step_seconds(new: float, trained: float, steps: int) -> float:
    """Return the mean seconds of a step over the first `steps`, from those of a new SAE and of a trained one."""
    if steps == 0:
        return new
    return trained + (new - trained) * SUPPORT_DECAY_STEPS / steps * -math.expm1(-steps / SUPPORT_DECAY_STEPS)


class StepTimes(NamedTuple):
    """Seconds of one SAE's training steps; on a machine that trains several at once, each one's share."""

    first: float
    """Initialisation and the first step, alone on the machine."""
    new: float
    """A step of a new SAE."""
    trained: float
    """A step with the support of a trained SAE."""


def _time_sae(study: Study, series: Series, setting: Setting, width: int, x: Tensor) -> tuple[StepTimes, SAE]:
    """Return the step times of an SAE, and the SAE with its biases lowered to the requested L0. x [n, d]: unscaled."""
    from jumpahead.engine import initial_state, kernel_layer, synchronize, train_step
    from jumpahead.pipeline.resources import SAMPLE_ROWS
    from jumpahead.sae.recipe import Shape
    from jumpahead.sae.saved import SAE
    from jumpahead.sae.unit import Unit
    from jumpahead.training.devices import training_device

    centred = x - x.mean(0)
    unit = Unit(float(centred.square().sum(1).mean().sqrt()), x.mean(0)).to(training_device(study.train))
    scaled, _ = unit.apply(x.to(training_device(study.train)))
    kind, layer = ARCHITECTURES.get(series.architecture), kernel_layer(device=scaled.device)
    recipe = kind.recipe_for(study.train, Shape(x.shape[1], width, setting), series.recipe)
    arch = kind(kind.Options(**series.options), setting, recipe)
    batch = scaled.repeat(-(-study.train.batch // len(scaled)), 1)[: study.train.batch]
    sample = scaled.repeat(-(-SAMPLE_ROWS // len(scaled)), 1)[:SAMPLE_ROWS]

    def run_steps(state: State, count: int) -> None:
        for _ in range(count):
            train_step(state, batch, recipe.lr * 1e-3, 1.0, layer)  # a small rate, so that the support stays as it is
        synchronize(state, layer)

    def initialise() -> State:
        state = initial_state(arch, x.shape[1], width, 0, sample)
        run_steps(state, 1)
        return state

    first, state = time_call(initialise)
    new = trained = time_call(lambda: run_steps(state, 2))[0] / 2
    if setting.kind == "l0":
        has_window = arch.thresholds(arch.derive(state.params)) is not None
        entries = setting.value * (ENTRIES_PER_ACTIVE_FEATURE if has_window else 1.0)
        if lower_biases(arch, state.params, scaled[:BIAS_SAMPLE_ROWS] - state.params["b_dec"], entries, training=True):
            run_steps(state, 1)
            trained = min(new, time_call(lambda: run_steps(state, 2))[0] / 2)
    params = unit.fold(arch, {name: tensor.cpu() for name, tensor in state.params.items()})
    if setting.kind == "l0":
        lower_biases(arch, params, centred[:BIAS_SAMPLE_ROWS].cpu(), setting.value, training=False)
    share = _concurrency_share(state, run_steps, layer, len(sae_specs(study)))
    return StepTimes(first, share * new, share * trained), SAE(arch, params, {})


def _concurrency_share(state: State, run_steps: Callable[[State, int], None], layer: Kernels, saes: int) -> float:
    """Return the time per SAE of a step when several SAEs train concurrently, relative to a step of one alone."""
    concurrent = layer.max_concurrent(saes)
    if concurrent == 1:
        return 1.0
    copies = [copy.deepcopy(state) for _ in range(concurrent)]
    together = time_second_call(lambda: layer.run_concurrently(copies, lambda one: run_steps(one, 2)))
    return together / concurrent / time_second_call(lambda: run_steps(state, 2))


def lower_biases(arch: Architecture, p: Params, x: Tensor, entries: float, *, training: bool) -> bool:
    """Shift b_enc in place, by one value for all features, until the support has `entries` entries per row.

    x [n, d]: activations from which b_dec is subtracted in training, and b_pre in a saved SAE. Returns False if the
    architecture selects a fixed number of entries, or if no finite shift does it.
    """
    import torch

    from jumpahead.sae.gradients import StepInputs
    from jumpahead.sae.support import AboveThreshold

    selection = arch.selection(p, arch.derive(p), StepInputs(), training=training)
    if not isinstance(selection, AboveThreshold):
        return False
    margin = (x @ p["W_enc"].T + p["b_enc"] - selection.lower).flatten()
    count = min(len(margin) - 1, max(1, round(entries * len(x))))
    edge = margin.topk(count + 1).values[-1]  # the support is what lies above
    if bool(torch.isfinite(edge)):
        p["b_enc"] -= edge
    return bool(torch.isfinite(edge))
