"""Checks that a model behaves as jumpahead assumes, on a few synthetic contexts, before a run uses the model.

    finite         weights, logits and activations are finite numbers
    adds           an MLP site is what the block adds to the residual stream beside attention (mlp_site.py)
    identity       replacing a site's activations by themselves changes no bit of the logits
    hidden state   a residual site equals the hidden state that transformers reports for that block
    causal         later tokens of a context do not change activations at earlier positions
    truncated      the model truncated after the last site reads the same activations as the whole model

The checks take a few short forward passes. A model that fails a check cannot be used; the error says why.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from jumpahead.errors import StudyError
from jumpahead.lm.finite import check_finite
from jumpahead.lm.model import LM
from jumpahead.lm.sites import Site, parse_site
from jumpahead.lm.tokens import ordinary_ids

CONTEXTS, LENGTH = 3, 16
TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-9}
"""Maximum relative error of the causality check, by dtype."""
HALF_PRECISION_TOLERANCE = 3e-2
"""Maximum relative error of the causality check for bfloat16 and float16."""


def check_and_truncate(
    lm: LM, sites: Sequence[str], before_truncation: Callable[[], object] | None = None
) -> list[str]:
    """Check a complete model at these sites, truncate the model after the last site, and check the truncated model.

    before_truncation: called when the whole model has passed. Return the names of the passed checks. Afterwards the
    model can only `read`. Raises StudyError if a check fails.
    """
    ids = _test_ids(lm)
    passed = [f"site: {site} is {lm.describe_site(site)}" for site in sites if parse_site(site).kind == "mlp"]
    clean = check_finite(lm, ids)
    passed += [_check_identity(lm, ids, clean, site) for site in sites]
    states = _hidden_states(lm, ids)
    activations = lm.read(ids, sites)
    passed += [_check_hidden_state(lm, activations, states, site) for site in sites if _is_reported(site, states)]
    passed.append(_check_causal(lm, ids, activations))
    if before_truncation is not None:
        before_truncation()
    lm.truncate_after(sites)
    for site, x in lm.read(ids, sites).items():
        is_equal = torch.equal(x, activations[site])
        _require(is_equal, lm, f"truncated after its last site it gives other activations at {site}")
    return [*passed, f"truncated: {len(sites)} sites unchanged"]


def _test_ids(lm: LM) -> Tensor:
    """Return test contexts of ordinary tokens, after BOS if the model uses BOS: int64 [CONTEXTS, ≤ LENGTH]."""
    return torch.from_numpy(ordinary_ids(lm.is_special, lm.bos_id, CONTEXTS, min(LENGTH, lm.context)))


def _require(condition: bool, lm: LM, failure: str) -> None:
    """Raise StudyError with the clause `failure` in its message if `condition` is False."""
    if not condition:
        raise StudyError(
            f"lm.model = '{lm.name}' ({type(lm.model).__name__}) cannot be evaluated: {failure}. "
            "Another site, or lm.attn_implementation = 'eager', may work."
        )


def _check_identity(lm: LM, ids: Tensor, clean: Tensor, site: str) -> str:
    """Check that splicing unchanged activations at a site keeps every logit bit; return the name of the check.

    Tests `splice` and `run_from_site`, and that the logits depend on the site. Raises StudyError if a test fails.
    clean: logits of the unmodified model, [b, t, V].
    """
    point = lm.run_to_site(ids, site)
    _require(
        torch.equal(lm.splice(ids, site, lambda x: x), clean),
        lm,
        f"a hook at {site} that changes nothing changes its logits",
    )
    for which, logits in (
        ("its own activations", lm.run_from_site(point)),
        ("a copy of its activations", lm.run_from_site(point, point.activation.clone())),
    ):
        _require(torch.equal(logits, clean), lm, f"resumed at {site} with {which}, it gives other logits")
    zero = lm.run_from_site(point, torch.zeros_like(point.activation))
    _require(not torch.equal(zero, clean), lm, f"its logits do not depend on {site}")
    return f"identity: {site}"


def _hidden_states(lm: LM, ids: Tensor) -> list[Tensor]:
    """Return the hidden states [b, t, d] that transformers reports, before the last; empty if it reports none.

    Families differ in whether the embedding comes first. The last one is reported after the final normalisation.
    """
    with torch.no_grad():
        out = lm.model(input_ids=ids.to(lm.device), use_cache=False, output_hidden_states=True)
    states = getattr(out, "hidden_states", None)
    return list(states[:-1]) if isinstance(states, tuple | list) else []


def _is_reported(site: str | Site, states: list[Tensor]) -> bool:
    """Return True if a site is the output of a block whose hidden state is among those reported."""
    parsed = parse_site(site)
    return parsed.kind == "residual" and parsed.layer is not None and parsed.layer < len(states) - 1


def _check_hidden_state(lm: LM, activations: dict[str, Tensor], states: list[Tensor], site: str) -> str:
    """Check that activations at a residual site equal a hidden state that is reported for the block.

    Return the name of the check. activations: [b, t, d] by site. Raises StudyError if the tensors differ from the state
    with the block's index, which is right if the embedding is not reported, and from the one after it.
    """
    layer = parse_site(site).layer
    assert layer is not None
    is_equal = any(torch.equal(activations[site], state) for state in states[layer : layer + 2])
    _require(is_equal, lm, f"{site} is not the hidden state that the model reports")
    return f"hidden state: {site}"


def _check_causal(lm: LM, ids: Tensor, activations: dict[str, Tensor]) -> str:
    """Check that changing the second half of each context keeps the activations of the first half.

    Return the name of the check. activations: [b, t, d] by site, for `ids` [b, t]. Raises StudyError if they change.
    """
    half = ids.shape[1] // 2
    other = ids.clone()
    other[:, half:] = ids[:, half:].roll(1, dims=0)
    for site, x in lm.read(other, list(activations)).items():
        reference = activations[site][:, :half]
        change = (x[:, :half] - reference).float().norm() / reference.float().norm()
        allowed = TOLERANCE.get(x.dtype, HALF_PRECISION_TOLERANCE)
        _require(float(change) <= allowed, lm, f"{site} depends on later tokens: it is not causal")
    return "causal"
