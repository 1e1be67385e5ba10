"""Checks that a model behaves as jumpahead assumes, on a few made-up tokens, before a run uses it.

    identity       splicing in the site's own activations changes no bit of the logits
    hidden state   a residual site equals the hidden state that transformers reports for that block
    causal         later tokens of a context change nothing before them
    truncated      the model truncated after the last site reads the same activations as the whole model

They take a few short forward passes. A model that fails cannot be evaluated here, and the message says why.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from jumpahead.errors import StudyError
from jumpahead.lm.model import LM
from jumpahead.lm.sites import parse_site
from jumpahead.text.permutation import fixed_permutation

CONTEXTS, LENGTH = 3, 16
TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-9}
"""Relative error allowed where bits may differ; for bfloat16 and float16 it is HALF_PRECISION_TOLERANCE."""
HALF_PRECISION_TOLERANCE = 3e-2


def check_and_truncate(lm: LM, sites: Sequence[str]) -> list[str]:
    """Check a whole model at these sites, truncate it after the last of them, and check that as well.

    Return the names of the checks. The model can only `read` afterwards. Raises StudyError if a check fails.
    """
    ids = _test_ids(lm)
    clean = lm.logits(ids)
    passed = [_check_identity(lm, ids, clean, site) for site in sites]
    states = _hidden_states(lm, ids)
    found = lm.read(ids, sites)
    passed += [_check_hidden_state(lm, found, states, site) for site in sites if _residual_block(site) in states]
    passed.append(_check_causal(lm, ids, found))
    lm.truncate_after(sites)
    for site, x in lm.read(ids, sites).items():
        _require(torch.equal(x, found[site]), lm, f"truncated after its last site it gives other activations at {site}")
    return [*passed, f"truncated: {len(sites)} sites unchanged"]


def _test_ids(lm: LM) -> Tensor:
    """Return contexts of ordinary tokens, after BOS if the model uses it: int64 [CONTEXTS, LENGTH]."""
    ordinary = (~torch.from_numpy(lm.is_special)).nonzero()[:, 0]
    picked = ordinary[torch.from_numpy(fixed_permutation(len(ordinary), 16, 3))]
    length = min(LENGTH, lm.context)
    ids = picked.repeat(-(-CONTEXTS * length // len(picked)))[: CONTEXTS * length].reshape(CONTEXTS, length).clone()
    if lm.bos_id is not None:
        ids[:, 0] = lm.bos_id
    return ids


def _require(condition: bool, lm: LM, failure: str) -> None:
    """Raise StudyError with a description of the failure unless the condition holds."""
    if not condition:
        raise StudyError(
            f"lm.model = '{lm.name}' ({type(lm.model).__name__}) cannot be evaluated: {failure}. "
            "Another site, or lm.attn_implementation = 'eager', may work."
        )


def _check_identity(lm: LM, ids: Tensor, clean: Tensor, site: str) -> str:
    """Check that the identity has a delta LM loss of 0 at a site, by both ways of splicing; return the check's name."""
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


def _hidden_states(lm: LM, ids: Tensor) -> dict[int | None, Tensor]:
    """Return the hidden state that transformers reports after each block, by block; empty if it reports none.

    Without the last block's, which is reported after a normalisation.
    """
    with torch.no_grad():
        out = lm.model(input_ids=ids.to(lm.device), use_cache=False, output_hidden_states=True)
    states = getattr(out, "hidden_states", None)
    if states is None or len(states) != len(lm.blocks) + 1:
        return {}
    return dict(enumerate(states[1:-1]))


def _residual_block(site: str) -> int | None:
    """Return the block of a residual site; −1 for any other site."""
    parsed = parse_site(site)
    return parsed.layer if parsed.kind == "residual" else -1


def _check_hidden_state(lm: LM, found: dict[str, Tensor], states: dict[int | None, Tensor], site: str) -> str:
    """Check that a residual site equals the reported hidden state; return the check's name."""
    is_equal = torch.equal(found[site], states[_residual_block(site)])
    _require(is_equal, lm, f"{site} is not the hidden state that the model reports")
    return f"hidden state: {site}"


def _check_causal(lm: LM, ids: Tensor, found: dict[str, Tensor]) -> str:
    """Check that another second half leaves the activations of the first half unchanged; return the check's name."""
    half = ids.shape[1] // 2
    other = ids.clone()
    other[:, half:] = ids[:, half:].roll(1, dims=0)
    for site, x in lm.read(other, list(found)).items():
        change = (x[:, :half] - found[site][:, :half]).float().norm() / found[site][:, :half].float().norm()
        allowed = TOLERANCE.get(x.dtype, HALF_PRECISION_TOLERANCE)
        _require(float(change) <= allowed, lm, f"{site} depends on later tokens: it is not causal")
    return "causal"
