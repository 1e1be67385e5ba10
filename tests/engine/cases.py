"""Cases: every registered architecture at small shapes, for the conformance, exactness and training tests.

    B tokens · d dimensions · M features.  Constants are not 1, so that a missing or doubled factor shows.

A new file in jumpahead/sae/architectures/ is included at once, with its default options and every kind of setting it
takes; `OPTIONS` adds variants.
"""

from __future__ import annotations

import copy
from typing import Any, NamedTuple

import torch
from torch import Tensor

from jumpahead.engine import Kernels, State, initial_state, kernel_layer
from jumpahead.sae.architecture import Architecture
from jumpahead.sae.architectures import ARCHITECTURES
from jumpahead.sae.auxk import WithAuxK
from jumpahead.sae.recipe import Recipe, Setting, TrainConfig, base_recipe

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
        "momentum": {"beta1": 0.87, "beta2": 0.93, "bias_lr_multiplier": 0.3},
        # windows that reach below zero, as in its preset
        "raw": {"threshold_form": "raw", "initial_threshold": 0.07, "bandwidth": 0.19},
    },
    "gated": {"": {}, "momentum": {"beta1": 0.87, "beta2": 0.93, "bias_lr_multiplier": 0.3}},
    "jumprelu": {
        "": {},
        "momentum": {"beta1": 0.87, "beta2": 0.93, "bias_lr_multiplier": 0.3},
        "auxk": {"aux_weight": 0.7, "aux_every": 2, "aux_after_tokens": 41, "beta1": 0.87},
        "raw": {"threshold_form": "raw", "initial_threshold": 0.07},
        # ε > 2θ at first: rectified zeros fall into the window, every token of a feature is in its support.
        "paper": {"initial_threshold": 0.011, "bandwidth": 0.03, "centre_b_dec": False},
    },
    "topk": {"": {}, "momentum": {"beta1": 0.87, "beta2": 0.93, "bias_lr_multiplier": 0.3}},
}
VALUES = {"l0": 4.0, "lambda": 0.006, "k": 5.0}
LAYERS = ("torch", "numba")
PATHS: dict[str, dict[str, float]] = {
    "support": {"DENSE_SHARE": 1.0, "MIN_DENSE_FEATURES": 10**9, "MAX_DEAD_PER_SELECTED": 0},
    "products": {
        "DENSE_SHARE": -1.0,
        "MIN_DENSE_FEATURES": 1,
        "MAX_DEAD_PER_SELECTED": 10**9,
        "BLOCK_ENTRIES": 24 * 48,
        "MAX_CACHED_ENTRIES": 0,
    },
    "both": {"DENSE_SHARE": 0.2, "MIN_DENSE_FEATURES": 1, "MAX_DEAD_PER_SELECTED": 3, "BLOCK_ENTRIES": 100},
}
"""Values of the constants of dense_features.py: every entry in the support; every feature in small dense blocks, not
cached; a mixture."""


class Case(NamedTuple):
    """One architecture with options, a setting and changes to the recipe."""

    architecture: str
    options: dict[str, Any]
    setting: Setting
    changes: dict[str, Any]
    """Changes to the recipe."""
    label: str

    def arch(self, **changes: Any) -> Architecture:
        """Return an instance, with further changes to the recipe."""
        kind = ARCHITECTURES.get(self.architecture)
        return kind(kind.Options(**self.options), self.setting, quick_recipe(**self.changes, **changes))

    @property
    def is_topk(self) -> bool:
        """Return whether it selects the largest π; such architectures have AuxK."""
        return issubclass(ARCHITECTURES.get(self.architecture), WithAuxK)


def quick_recipe(**changes: Any) -> Recipe:
    """Return a recipe in which everything happens within 60 steps; independent of the tuned constants."""
    fixed: dict[str, Any] = {
        "lr": 0.004, "lr_warmup_start": 0.1, "lr_warmup_steps": 7, "lr_decay_steps": 13, "sparsity_warmup_steps": 11,
        "beta2": 0.98, "adam_epsilon": 1e-8, "threshold_form": "log", "threshold_lr_multiplier": 3.0,
        "initial_threshold": None, "bandwidth": None, "bandwidth_share": 0.9, "centre_b_dec": True,
        "dead_after_tokens": 150, "dead_threshold_factor": 0.97,
    }  # fmt: skip
    return base_recipe(TrainConfig())._replace(**{**fixed, **changes})


def all_cases() -> list[Case]:
    """Return a case per architecture, options, recipe and kind of setting that the options allow."""
    found = []
    for name in ARCHITECTURES.names():
        architecture = ARCHITECTURES.get(name)
        for options in OPTIONS.get(name, [{}]):
            kinds = [kind for kind in architecture.settings if not architecture.Options(**options).contradiction(kind)]
            for title, changes in RECIPES.get(name, {"": {}}).items():
                for kind in kinds[:1] if title in ("momentum", "auxk") else kinds:
                    words = [name, *(f"{key}={value}" for key, value in options.items()), title, kind]
                    setting = Setting(kind, VALUES[kind])
                    found.append(Case(name, options, setting, changes, "-".join(word for word in words if word)))
    return found


CASES = all_cases()


def one_per_architecture(kind: str | None = None) -> list[Case]:
    """Return the first case of each architecture, or of each that takes this kind of setting."""
    found: dict[str, Case] = {}
    for case in CASES:
        if kind in (None, case.setting.kind):
            found.setdefault(case.architecture, case)
    return list(found.values())


def one_per_options() -> list[Case]:
    """Return the first case of each architecture with each of its options, whatever the recipe and the setting."""
    found: dict[str, Case] = {}
    for case in CASES:
        found.setdefault(f"{case.architecture} {case.options}", case)
    return list(found.values())


def layer(name: str) -> Kernels:
    """Return a new kernel layer, with initial buffer sizes."""
    return kernel_layer(name)


def standard_normal(*shape: int, seed: int, dtype: torch.dtype = torch.float64) -> Tensor:
    """Return standard normal numbers, the same in every precision up to rounding."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def activations(n: int, d: int, seed: int, dtype: torch.dtype = torch.float64, dictionary_seed: int = 99) -> Tensor:
    """Return activations [n, d]: sparse sums of 2·d directions plus a mean and noise, with E‖x‖² about 1."""
    directions = standard_normal(2 * d, d, seed=dictionary_seed) / d**0.5
    size = standard_normal(n, 2 * d, seed=seed)
    active = (standard_normal(n, 2 * d, seed=seed + 1) > 1.3).double()
    x = (active * size.abs()) @ directions + 0.4 * standard_normal(d, seed=dictionary_seed + 1) / d**0.5
    x = x + 0.05 * standard_normal(n, d, seed=seed + 2) / d**0.5
    return (0.6 * x).to(dtype)


def untrained_state(
    case: Case, d: int, width: int, dtype: torch.dtype = torch.float64, seed: int = 3, **changes: Any
) -> State:
    """Return the state of an untrained SAE."""
    return initial_state(case.arch(**changes), d, width, seed, activations(256, d, 1000, dtype))


def random_state(
    case: Case, d: int, width: int, seed: int, dtype: torch.dtype = torch.float64, bias: float = 0.0, **changes: Any
) -> State:
    """Return a state in the middle of training with random weights, moments, steps last touched, and dead features.

    bias: added to b_enc and b_mag; with −100 no feature is active.
    """
    state = untrained_state(case, d, width, torch.float64, **changes)
    random = iter(range(seed * 1000, seed * 1000 + 100))
    p, v = state.params, state.second_moments
    for name, tensor in p.items():
        p[name] = tensor + 0.25 * standard_normal(*tensor.shape, seed=next(random)) / (
            d**0.5 if tensor.dim() == 2 else 2.0
        )
    for name in ("threshold", "b_enc", "b_mag"):
        if name in p:
            p[name] = p[name].abs() + 1e-4 if name == "threshold" else p[name] + bias
    p["W_dec"] *= (0.3 + standard_normal(width, 1, seed=next(random)).abs()) / p["W_dec"].norm(dim=1, keepdim=True)
    if state.arch.decoder_norm == "unit":
        p["W_dec"] /= p["W_dec"].norm(dim=1, keepdim=True)
    for name, tensor in v.items():
        v[name] = 1e-4 * standard_normal(*tensor.shape, seed=next(random)).square()
    for name, tensor in state.first_moments.items():
        state.first_moments[name] = 1e-2 * standard_normal(*tensor.shape, seed=next(random))
    state.steps_done = 17
    state.last_touched = (standard_normal(width, seed=next(random)).abs() * 7).clamp_max(17).int()
    dead_after_tokens = state.arch.recipe.dead_after_tokens
    state.tokens_since_fired = (standard_normal(width, seed=next(random)).abs() * 1.5 * dead_after_tokens).long()
    return in_dtype(state, dtype)


def in_dtype(state: State, dtype: torch.dtype) -> State:
    """Return a copy in another precision."""
    state = clone(state)
    state.params = {name: tensor.to(dtype).contiguous() for name, tensor in state.params.items()}
    for table in (state.first_moments, state.second_moments):
        table |= {name: tensor.to(dtype).contiguous() for name, tensor in table.items()}
    state.encoder = None
    return state


def clone(state: State) -> State:
    """Return a copy that shares no memory."""
    return copy.deepcopy(state)


def with_current_moments(state: State) -> State:
    """Return a copy whose second moments are decayed up to the current step, as dense Adam keeps them."""
    state = clone(state)
    decay = state.arch.recipe.beta2 ** (state.steps_done - state.last_touched.double())
    for name in ("W_enc", "W_dec"):
        state.second_moments[name] = state.second_moments[name] * decay[:, None].to(state.second_moments[name].dtype)
    state.last_touched[:] = state.steps_done
    return state


def state_tensors(state: State) -> dict[str, Tensor]:
    """Return every tensor of a state by name."""
    found = {f"params.{name}": tensor for name, tensor in state.params.items()}
    for table, moments in state.moment_tables().items():
        found |= {f"{table}.{name}": tensor for name, tensor in moments.items()}
    return found | {
        "last_touched": state.last_touched, "tokens_since_fired": state.tokens_since_fired,
        "support_share": state.support_share,
    }  # fmt: skip


def assert_close(found: State, wanted: State, tolerance: float) -> None:
    """Assert equal parameters, current moments and counters, up to |difference| ≤ tolerance·max(1, |value|)."""
    assert (found.steps_done, found.controller is None) == (wanted.steps_done, wanted.controller is None)
    if found.controller is not None and wanted.controller is not None:
        assert abs(found.controller.penalty_scale / wanted.controller.penalty_scale - 1) < tolerance
        assert abs(found.controller.l0 - wanted.controller.l0) < tolerance * 100
    assert torch.equal(found.tokens_since_fired, wanted.tokens_since_fired)
    found, wanted = with_current_moments(found), with_current_moments(wanted)
    for kind, ours, theirs in [
        ("params", found.params, wanted.params),
        ("first_moments", found.first_moments, wanted.first_moments),
        ("second_moments", found.second_moments, wanted.second_moments),
    ]:
        assert set(ours) == set(theirs)
        for name, tensor in ours.items():
            error = (tensor.double() - theirs[name].double()).abs() / theirs[name].double().abs().clamp_min(1.0)
            assert error.max() <= tolerance, f"{kind}.{name} is off by {error.max():.3g}"


def assert_same_bytes(found: State, wanted: State) -> None:
    """Assert that every tensor, counter and the controller are equal in every bit."""
    assert (found.steps_done, found.controller) == (wanted.steps_done, wanted.controller)
    ours, theirs = state_tensors(found), state_tensors(wanted)
    assert set(ours) == set(theirs)
    for name, tensor in ours.items():
        assert tensor.dtype == theirs[name].dtype, name
        assert torch.equal(tensor, theirs[name]), f"{name} differs"
