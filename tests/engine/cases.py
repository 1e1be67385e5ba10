"""Every registered architecture at small shapes: the table that conformance, exactness and training tests run over.

    B tokens · d dimensions · M features.  Constants are not 1, so that a missing or a doubled factor shows.

A new file in jumpahead/sae/ is in this table at once, with its default options and every kind of setting it takes;
`OPTIONS` adds variants worth a run of their own.
"""

from __future__ import annotations

import copy
from typing import Any, NamedTuple

import torch
from torch import Tensor

from jumpahead.engine import Kernels, State, fresh_state, kernel_layer
from jumpahead.sae.architectures import ARCHITECTURES
from jumpahead.sae.auxk import WithAuxK
from jumpahead.sae.base import Architecture
from jumpahead.sae.recipe import Recipe, Setting, TrainConfig, recipe

OPTIONS: dict[str, list[dict[str, Any]]] = {
    "anthropic": [
        {"pre_activation": 0.31},
        {"pre_activation": 0.0, "scale": 1.7},
        {"pre_activation": 0.23, "pre_activation_of": "all", "ste": "threshold"},
    ],
    "batchtopk": [{"aux": 0.0}, {"aux": 0.21}, {"aux": 0.13, "k_aux": 500}],
    "gated": [{"norm": "ri-l1"}, {"norm": "l1"}],
    "jumprelu": [
        {},
        {"frequency_scale": 0.07},
        {"target": "batch", "target_weight": 0.6},
        {"target": "token", "target_weight": 0.3},
    ],
    "matryoshka": [
        {"aux": 0.0, "groups": (0.4, 0.6)},
        {"aux": 0.21},
        {"aux": 0.13, "k_aux": 500, "groups": (0.3, 0.2, 0.5), "weights": (0.7, 0.0, 1.9)},
    ],
    "topk": [{"aux": 0.0}, {"aux": 0.21}, {"aux": 0.13, "k_aux": 500}],
}
RECIPES: dict[str, dict[str, dict[str, Any]]] = {
    "anthropic": {
        "": {},
        # windows that reach below zero, as in its preset
        "raw": {"threshold_form": "raw", "threshold_start": 0.07, "bandwidth": 0.19},
    },
    "jumprelu": {
        "": {},
        "raw": {"threshold_form": "raw", "threshold_start": 0.07},
        # ε > 2θ at first: rectified zeros fall into the window, every token of a feature is in its support.
        "paper": {"threshold_start": 0.011, "bandwidth": 0.03, "centre": False},
    },
}
VALUES = {"l0": 4.0, "lambda": 0.006, "k": 5.0}
LAYERS = ("plain", "cpu")


class Case(NamedTuple):
    """One architecture with options, a setting and changes to the recipe."""

    architecture: str
    options: dict[str, Any]
    setting: Setting
    changes: dict[str, Any]
    """Of the recipe."""
    label: str

    def arch(self, **changes: Any) -> Architecture:
        """An instance, with more changes to the recipe."""
        kind = ARCHITECTURES.get(self.architecture)
        return kind(kind.Options(**self.options), self.setting, some_recipe(**self.changes, **changes))

    @property
    def keeps_largest(self) -> bool:
        """Whether it keeps the largest π, and has AuxK."""
        return issubclass(ARCHITECTURES.get(self.architecture), WithAuxK)

    @property
    def start_l0(self) -> float:
        return self.setting.value


def some_recipe(**changes: Any) -> Recipe:
    """A recipe in which everything happens within 60 steps; nothing here follows the tuned constants."""
    fixed: dict[str, Any] = {
        "lr": 0.004, "lr_start": 0.1, "lr_warmup": 7, "lr_decay": 13, "sparsity_warmup": 11, "beta2": 0.98,
        "adam_epsilon": 1e-8, "threshold_form": "log", "threshold_rate": 3.0, "threshold_start": None,
        "bandwidth": None, "bandwidth_share": 0.9, "centre": True, "dead_after": 150, "revival": 0.97,
    }  # fmt: skip
    return recipe(TrainConfig.model_validate({}))._replace(**{**fixed, **changes})


def all_cases() -> list[Case]:
    """Every architecture × options × recipe × kind of setting that goes with the options."""
    found = []
    for name in ARCHITECTURES.names():
        architecture = ARCHITECTURES.get(name)
        for options in OPTIONS.get(name, [{}]):
            kinds = [kind for kind in architecture.settings if not architecture.Options(**options).objection(kind)]
            for title, changes in RECIPES.get(name, {"": {}}).items():
                for kind in kinds:
                    words = [name, *(f"{key}={value}" for key, value in options.items()), title, kind]
                    setting = Setting(kind, VALUES[kind])
                    found.append(Case(name, options, setting, changes, "-".join(word for word in words if word)))
    return found


CASES = all_cases()


def layer(name: str) -> Kernels:
    """A fresh kernel layer: no slots kept from another test."""
    return kernel_layer(name)


def draw(*shape: int, seed: int, dtype: torch.dtype = torch.float64) -> Tensor:
    """Standard normal numbers, the same in both precisions up to rounding."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def activations(n: int, d: int, seed: int, dtype: torch.dtype = torch.float64, dictionary_seed: int = 99) -> Tensor:
    """[n, d] sparse sums of 2·d directions plus a mean and noise, with E‖x‖² about 1."""
    directions = draw(2 * d, d, seed=dictionary_seed) / d**0.5
    size = draw(n, 2 * d, seed=seed)
    active = (draw(n, 2 * d, seed=seed + 1) > 1.3).double()
    x = (active * size.abs()) @ directions + 0.4 * draw(d, seed=dictionary_seed + 1) / d**0.5
    x = x + 0.05 * draw(n, d, seed=seed + 2) / d**0.5
    return (0.6 * x).to(dtype)


def start(case: Case, d: int, width: int, dtype: torch.dtype = torch.float64, seed: int = 3, **changes: Any) -> State:
    """An untrained SAE."""
    return fresh_state(case.arch(**changes), d, width, seed, activations(256, d, 1000, dtype))


def scrambled(
    case: Case, d: int, width: int, seed: int, dtype: torch.dtype = torch.float64, bias: float = 0.0, **changes: Any
) -> State:
    """An SAE in the middle of training with random everything: weights, moments, who was touched when, who is dead.

    bias: added to b_enc and b_mag; −100 switches every feature off.
    """
    state = start(case, d, width, torch.float64, **changes)
    random = iter(range(seed * 1000, seed * 1000 + 100))
    p, v = state.p, state.v
    for name, tensor in p.items():
        p[name] = tensor + 0.25 * draw(*tensor.shape, seed=next(random)) / (d**0.5 if tensor.dim() == 2 else 2.0)
    for name in ("threshold", "b_enc", "b_mag"):
        if name in p:
            p[name] = p[name].abs() + 1e-4 if name == "threshold" else p[name] + bias
    p["W_dec"] *= (0.3 + draw(width, 1, seed=next(random)).abs()) / p["W_dec"].norm(dim=1, keepdim=True)
    if state.arch.decoder_norm == "unit":
        p["W_dec"] /= p["W_dec"].norm(dim=1, keepdim=True)
    for name, tensor in v.items():
        v[name] = 1e-4 * draw(*tensor.shape, seed=next(random)).square()
    state.t = 17
    state.last = (draw(width, seed=next(random)).abs() * 7).clamp_max(17).int()
    dead_after = state.arch.recipe.dead_after
    state.silent = (draw(width, seed=next(random)).abs() * 1.5 * dead_after).long()
    return in_dtype(state, dtype)


def in_dtype(state: State, dtype: torch.dtype) -> State:
    """A copy in another precision."""
    state = clone(state)
    state.p = {name: tensor.to(dtype).contiguous() for name, tensor in state.p.items()}
    state.v = {name: tensor.to(dtype).contiguous() for name, tensor in state.v.items()}
    state.encoder = None
    return state


def clone(state: State) -> State:
    """A copy that shares no memory."""
    return copy.deepcopy(state)


def settled(state: State) -> State:
    """A copy whose second moments are decayed up to now, as dense Adam keeps them."""
    state = clone(state)
    decay = state.arch.recipe.beta2 ** (state.t - state.last.double())
    for name in ("W_enc", "W_dec"):
        state.v[name] = state.v[name] * decay[:, None].to(state.v[name].dtype)
    state.last[:] = state.t
    return state


def tensors(state: State) -> dict[str, Tensor]:
    """Every tensor of a state, by name."""
    found = {f"p.{name}": tensor for name, tensor in state.p.items()}
    found |= {f"v.{name}": tensor for name, tensor in state.v.items()}
    return found | {"last": state.last, "silent": state.silent, "share": state.share}


def assert_close(found: State, wanted: State, tolerance: float) -> None:
    """Same parameters, moments (both settled) and counters; |difference| ≤ tolerance·max(1, |value|)."""
    assert (found.t, found.control is None) == (wanted.t, wanted.control is None)
    if found.control is not None and wanted.control is not None:
        assert abs(found.control.price / wanted.control.price - 1) < tolerance
        assert abs(found.control.l0 - wanted.control.l0) < tolerance * 100
    assert torch.equal(found.silent, wanted.silent)
    found, wanted = settled(found), settled(wanted)
    for kind, ours, theirs in [("p", found.p, wanted.p), ("v", found.v, wanted.v)]:
        assert set(ours) == set(theirs)
        for name, tensor in ours.items():
            gap = (tensor.double() - theirs[name].double()).abs() / theirs[name].double().abs().clamp_min(1.0)
            assert gap.max() <= tolerance, f"{kind}.{name} is off by {gap.max():.3g}"


def assert_same_bytes(found: State, wanted: State) -> None:
    """Bitwise equal in every tensor, counter and the controller."""
    assert (found.t, found.control) == (wanted.t, wanted.control)
    ours, theirs = tensors(found), tensors(wanted)
    assert set(ours) == set(theirs)
    for name, tensor in ours.items():
        assert tensor.dtype == theirs[name].dtype, name
        assert torch.equal(tensor, theirs[name]), f"{name} differs"
