"""Selections of `tests.engine.cases.CASES`, for tests whose code does not depend on everything that a case varies."""

from __future__ import annotations

from collections.abc import Callable, Hashable

import pytest

from tests.engine.cases import CASES, Case


def one_per(key: Callable[[Case], Hashable], cases: list[Case] = CASES) -> pytest.MarkDecorator:
    """Return the parametrisation `case` over the first of `cases` for each value of `key`."""
    first = list({key(case): case for case in reversed(cases)}.values())[::-1]
    return pytest.mark.parametrize("case", first, ids=lambda case: case.label)


def architecture(case: Case) -> Hashable:
    """Return the architecture: for code that all its options share."""
    return case.architecture


def options(case: Case) -> Hashable:
    """Return the architecture and its options."""
    return case.architecture, str(case.options)


def parametrisation(case: Case) -> Hashable:
    """Return what decides the parameters' names, initial values and folding."""
    return case.architecture, str(case.changes), case.arch().decoder_norm


def loss_terms(case: Case) -> Hashable:
    """Return what decides the loss and its gradients: everything but the kind of setting."""
    return case.architecture, str(case.options), str(case.changes)
