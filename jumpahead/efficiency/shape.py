"""The shape of a step: the user's numbers, or those of a study. No torch."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple

from jumpahead.errors import StudyError
from jumpahead.lm.model_shape import outline
from jumpahead.lm.sites import parse_site
from jumpahead.study.schema import Study


class Shape(NamedTuple):
    """What is measured."""

    d: int
    """Dimensions of an activation."""
    width: int
    """Features."""
    batch: int
    """Tokens per step."""
    l0: float
    """Active features per token."""

    @property
    def label(self) -> str:
        """`d = 256, width 4,096, batch 2,048, L0 = 32`."""
        return f"d = {self.d:,}, width {self.width:,}, batch {self.batch:,}, L0 = {self.l0:g}"


class Known(NamedTuple):
    """What is measured where the user says nothing else."""

    d: int | None = 256
    widths: Sequence[int] = (4096,)
    batch: int = 2048
    l0s: Sequence[float] = (32.0,)
    threads: int | None = None


DEMO = Known()


def shapes(
    known: Known = DEMO,
    d: int | None = None,
    widths: Sequence[int] = (),
    batch: int | None = None,
    l0s: Sequence[float] = (),
) -> list[Shape]:
    """Every width with every L0, each once; what is not given is as `known`."""
    size = d or known.d
    if size is None:
        raise StudyError("The width of the study's activations is not known on this machine: give it with --d.")
    found = [
        Shape(size, width, batch or known.batch, l0)
        for width, l0 in itertools.product(widths or known.widths, l0s or known.l0s)
    ]
    for shape in found:
        if not 1 <= shape.l0 < shape.width:
            raise StudyError(f"{shape.label} cannot be measured: --l0 must be at least 1 and less than --width.")
    return list(dict.fromkeys(found))


def of_study(study: Study) -> Known:
    """A study's first site, its widths, batch and threads, and the middle one of the L0 (or k) that its series have."""
    if study.activations.origin == "synthetic":
        d = study.activations.options.get("d")
    else:
        model = outline(study.lm)
        d = model.width_at(parse_site(study.activations.sites[0])) if model else None
    given = [values for one in study.series for kind, values in one.given.items() if kind != "lambda"]
    asked = sorted({float(value) for values in given for value in values})
    l0s = asked[len(asked) // 2 : len(asked) // 2 + 1] or DEMO.l0s
    return Known(d, study.sae.width, study.train.batch, l0s, study.train.threads)


def numbers(text: str | None, option: str) -> list[float]:
    """`16,32,64` as numbers, each at least 1; empty for None."""
    found = []
    for part in text.split(",") if text is not None else []:
        try:
            value = float(part.replace("_", ""))
        except ValueError:
            value = math.nan
        if not 1 <= value < math.inf:
            raise StudyError(f"{option} {text}: give numbers with commas between them, such as {option} 16,32,64.")
        found.append(value)
    return found


def whole_numbers(text: str | None, option: str) -> list[int]:
    """`4096,8192` as whole numbers."""
    found = numbers(text, option)
    if any(value != int(value) for value in found):
        raise StudyError(f"{option} {text}: give whole numbers.")
    return [int(value) for value in found]
