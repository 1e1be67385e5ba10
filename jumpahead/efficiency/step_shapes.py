"""The shapes of the training steps to measure, from command-line options or a study. Does not import torch."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple

from jumpahead.errors import StudyError
from jumpahead.lm.model_shape import read_model_shape
from jumpahead.lm.sites import parse_site
from jumpahead.study.schema import Study


class StepShape(NamedTuple):
    """The size of a training step."""

    d: int
    """Dimension of an activation."""
    width: int
    """Number of features."""
    batch: int
    """Tokens per step."""
    l0: float
    """Active features per token."""

    @property
    def label(self) -> str:
        """Return the shape as text: `d = 256, width 4,096, batch 2,048, L0 = 32`."""
        return f"d = {self.d:,}, width {self.width:,}, batch {self.batch:,}, L0 = {self.l0:g}"


class ShapeDefaults(NamedTuple):
    """Values for the options that the user does not give; `d` is None if it is unknown."""

    d: int | None = 256
    widths: Sequence[int] = (4096,)
    batch: int = 2048
    l0s: Sequence[float] = (32.0,)
    threads: int | None = None


DEMO_DEFAULTS = ShapeDefaults()


def shape_grid(
    defaults: ShapeDefaults = DEMO_DEFAULTS,
    d: int | None = None,
    widths: Sequence[int] = (),
    batch: int | None = None,
    l0s: Sequence[float] = (),
) -> list[StepShape]:
    """Return a shape for every combination of width and L0, without duplicates; `defaults` fills in missing options.

    Raises StudyError if the dimension is unknown or an L0 is not below its width.
    """
    d = d or defaults.d
    if d is None:
        raise StudyError("The dimension of the study's activations is unknown on this machine. Give it with --d.")
    found = [
        StepShape(d, width, batch or defaults.batch, l0)
        for width, l0 in itertools.product(widths or defaults.widths, l0s or defaults.l0s)
    ]
    for shape in found:
        if not 1 <= shape.l0 < shape.width:
            raise StudyError(f"{shape.label} cannot be measured: --l0 must be at least 1 and less than --width.")
    return list(dict.fromkeys(found))


def defaults_from_study(study: Study) -> ShapeDefaults:
    """Return the dimension of a study's first site, its widths, batch, threads, and the median of its L0 and k."""
    if study.activations.origin == "synthetic":
        d = study.activations.options.get("d")
    else:
        model = read_model_shape(study.lm)
        d = model.width_at(parse_site(study.activations.sites[0])) if model else None
    given = [values for one in study.series for kind, values in one.settings_by_kind.items() if kind != "lambda"]
    requested = sorted({float(value) for values in given for value in values})
    l0s = requested[len(requested) // 2 : len(requested) // 2 + 1] or DEMO_DEFAULTS.l0s
    return ShapeDefaults(d, study.sae.width, study.train.batch, l0s, study.train.threads)


def parse_numbers(text: str | None, option: str) -> list[float]:
    """Parse comma-separated numbers such as `16,32,64`, each at least 1. Returns [] for None."""
    found = []
    for part in text.split(",") if text is not None else []:
        try:
            value = float(part.replace("_", ""))
        except ValueError:
            value = math.nan
        if not 1 <= value < math.inf:
            raise StudyError(f"{option} {text}: give comma-separated numbers of at least 1, such as {option} 16,32,64.")
        found.append(value)
    return found


def parse_integers(text: str | None, option: str) -> list[int]:
    """Parse comma-separated integers such as `4096,8192`, each at least 1. Returns [] for None."""
    found = parse_numbers(text, option)
    if any(value != int(value) for value in found):
        raise StudyError(f"{option} {text}: give integers.")
    return [int(value) for value in found]
