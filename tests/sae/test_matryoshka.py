"""Nested reconstructions: by hand, and where they must be those of BatchTopK."""

from __future__ import annotations

import pytest
import torch

from jumpahead.engine import train_step
from jumpahead.errors import StudyError
from jumpahead.sae.architecture import Architecture
from jumpahead.sae.architectures import ARCHITECTURES
from jumpahead.sae.gradients import StepInputs
from jumpahead.sae.recipe import Setting
from jumpahead.study.load import parse
from tests.engine.cases import (
    LAYERS,
    Case,
    activations,
    assert_close,
    assert_same_bytes,
    clone,
    layer,
    quick_recipe,
    random_state,
)


def made(k: float = 3.0, **options) -> Architecture:
    kind = ARCHITECTURES.get("matryoshka")
    return kind(kind.Options(**options), Setting("k", k), quick_recipe())


def test_the_groups_are_the_papers_by_default():
    assert made().group_ends(65_536) == [2_048, 6_144, 14_336, 30_720, 65_536]
    group = made().derive({"W_enc": torch.zeros(32, 1)})["group"]
    assert group.bincount().tolist() == [1, 2, 4, 8, 17]
    assert bool((group.diff() >= 0).all())


def test_no_prefix_is_empty():
    assert made().group_ends(3) == [1, 1, 1, 1, 3]


def test_the_loss_by_hand():
    """Four features that read off x; of the eight entries the four largest are kept: three of the first token's and one
    of the second's. Groups end after one, two and four features.

    x − x̂_g of the first token: (0, 1, 2, 0.7), (0, 0, 2, 0.7), (0, 0, 0, 0.7); of the second (0, 0.5, 0, 0.1) thrice.
    """
    arch = made(2.0, groups=(0.25, 0.25, 0.5), weights=(0.5, 2.0, 3.0))
    x = torch.tensor([[3.0, 1.0, 2.0, 0.7], [4.0, 0.5, 0.0, 0.1]], dtype=torch.float64)
    p = {"W_enc": torch.eye(4).double(), "W_dec": torch.eye(4).double()}
    p |= {name: torch.zeros(4).double() for name in ("b_enc", "b_dec", "threshold")}
    wanted = (0.5 * 5.49 + 2 * 4.49 + 3 * 0.49) / 2 + (0.5 + 2 + 3) * 0.26 / 2
    assert arch.loss(p, x, StepInputs()).item() == pytest.approx(wanted, rel=1e-12)


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("aux", [0.0, 0.21])
def test_one_group_is_batchtopk_to_the_bit(name, aux):
    found = []
    for architecture, options in (("batchtopk", {}), ("matryoshka", {"groups": (1.0,)})):
        state = random_state(Case(architecture, {"aux": aux, **options}, Setting("k", 3.0), {}, ""), 7, 40, seed=4)
        for i in range(3):
            train_step(state, activations(30, 7, i), 0.01, 1.0, layer(name))
        found.append(state)
    assert_same_bytes(*found)


@pytest.mark.parametrize("name", LAYERS)
def test_where_only_all_features_count_it_is_batchtopk(name):
    """A missing or doubled term of an inner reconstruction would show."""
    options = {"aux": 0.21, "groups": (0.2, 0.5, 0.3), "weights": (0.0, 0.0, 1.0)}
    found = []
    for architecture, own in (("batchtopk", {"aux": 0.21}), ("matryoshka", options)):
        state = random_state(Case(architecture, own, Setting("k", 3.0), {}, ""), 7, 40, seed=4)
        for i in range(3):
            train_step(state, activations(30, 7, i), 0.01, 1.0, layer(name))
        found.append(state)
    assert_close(*found, 1e-10)


def test_features_of_the_last_group_do_not_hear_the_inner_errors():
    """A weight of the first prefix moves the first group's rows alone (and b_dec)."""
    before = random_state(
        Case("matryoshka", {"aux": 0.0, "groups": (0.25, 0.75)}, Setting("k", 3.0), {}, ""), 7, 40, seed=4
    )
    after = []
    for weights in ((1.0, 1.0), (2.5, 1.0)):
        state = clone(before)
        state.arch = made(aux=0.0, groups=(0.25, 0.75), weights=weights)
        train_step(state, activations(30, 7, 1), 0.01, 1.0, layer("torch"))
        after.append(state.params["W_dec"])
    assert torch.equal(after[0][10:], after[1][10:])
    assert not torch.equal(after[0][:10], after[1][:10])


OBJECTIONS = [
    ({"groups": [0.5, 0.4]}, "groups are shares of the width: positive, together 1 instead of 0.9"),
    ({"groups": [1.5, -0.5]}, "groups are shares of the width: positive, together 1 instead of 1"),
    ({"groups": [0.5, 0.5], "weights": [1.0]}, "weights has 1 numbers for 2 groups: give one for each"),
    ({"groups": [0.5, 0.5], "weights": [1.0, 0.0]}, "weights are finite and at least 0, and the last"),
    ({"groups": [0.5, 0.5], "weights": [-1.0, 1.0]}, "weights are finite and at least 0, and the last"),
]


def series(options):
    one = {"architecture": "matryoshka", "l0": [3.5], "options": options}
    return parse({"name": "x", "sae": {"width": 96}, "train": {"tokens": 6_400}, "series": [one]}).series[0]


@pytest.mark.parametrize(("options", "sentence"), OBJECTIONS)
def test_groups_and_weights_that_make_no_sense_are_refused(options, sentence):
    with pytest.raises(StudyError, match=sentence):
        series(options)


def test_groups_come_from_a_study():
    found = series({"groups": [0.125, 0.875]})
    assert found.options["groups"] == (0.125, 0.875)
    assert found.options["weights"] is None
