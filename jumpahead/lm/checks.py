"""Whether a model is what we take it for: checked on a few made-up tokens before a run trusts it.

    identity     splicing in the activations that are there changes no bit of the logits
    hidden       a residual site holds what transformers itself reports as that block's hidden state
    causal       what comes later in a context changes nothing before it
    truncated    the model cut after the last site reads what the whole one reads

They cost a handful of short forward passes. A model that fails cannot be measured here, and the sentence says why.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from jumpahead.errors import StudyError
from jumpahead.lm.model import LM
from jumpahead.lm.sites import parse_site
from jumpahead.text.contexts import shuffled

CONTEXTS, LENGTH = 3, 16
NEAR = {torch.float32: 1e-4, torch.float64: 1e-9}
"""Relative error of what need not be equal in every bit; of bfloat16 and float16 it is COARSE."""
COARSE = 3e-2


def examine(lm: LM, sites: Sequence[str]) -> list[str]:
    """Checks a whole model at these sites, cuts it after the last of them, and checks that too.

    The model can only `read` afterwards. Returns what was checked; StudyError in one sentence where something fails.
    """
    ids = _tokens(lm)
    clean = lm.logits(ids)
    done = [_identity(lm, ids, clean, site) for site in sites]
    states = _hidden_states(lm, ids)
    found = lm.read(ids, sites)
    done += [_is_hidden(lm, found, states, site) for site in sites if _block(site) in states]
    done.append(_causal(lm, ids, found))
    lm.keep_only(sites)
    for site, x in lm.read(ids, sites).items():
        _require(torch.equal(x, found[site]), lm, f"cut after its last site it reads other activations at {site}")
    return [*done, f"truncated: {len(sites)} sites read alike"]


def _tokens(lm: LM) -> Tensor:
    """int64 [CONTEXTS, LENGTH]: ordinary tokens, and BOS where the model begins with it."""
    ordinary = (~torch.from_numpy(lm.special)).nonzero()[:, 0]
    picked = ordinary[torch.from_numpy(shuffled(len(ordinary), 16, 3))]
    length = min(LENGTH, lm.context)
    ids = picked.repeat(-(-CONTEXTS * length // len(picked)))[: CONTEXTS * length].reshape(CONTEXTS, length).clone()
    if lm.bos_id is not None:
        ids[:, 0] = lm.bos_id
    return ids


def _require(holds: bool, lm: LM, failing: str) -> None:
    if not holds:
        raise StudyError(
            f"lm.model = '{lm.name}' ({type(lm.model).__name__}) cannot be measured: {failing}. "
            "Another site, or lm.attn_implementation = 'eager', may do."
        )


def _identity(lm: LM, ids: Tensor, clean: Tensor, site: str) -> str:
    """Delta LM loss of the identity is 0, by both ways of splicing."""
    resume = lm.resume_point(ids, site)
    _require(
        torch.equal(lm.splice(ids, site, lambda x: x), clean),
        lm,
        f"a hook at {site} that changes nothing changes its logits",
    )
    for what, logits in (
        ("as they were", lm.finish(resume)),
        ("as copied", lm.finish(resume, resume.activation.clone())),
    ):
        _require(
            torch.equal(logits, clean), lm, f"resumed at {site} with the activations {what}, it gives other logits"
        )
    zero = lm.finish(resume, torch.zeros_like(resume.activation))
    _require(not torch.equal(zero, clean), lm, f"its logits do not depend on {site}")
    return f"identity: {site}"


def _hidden_states(lm: LM, ids: Tensor) -> dict[int | None, Tensor]:
    """What transformers reports of each block but the last, after which it is normalised; nothing where it does not."""
    with torch.no_grad():
        out = lm.model(input_ids=ids.to(lm.device), use_cache=False, output_hidden_states=True)
    states = getattr(out, "hidden_states", None)
    if states is None or len(states) != len(lm.blocks) + 1:
        return {}
    return dict(enumerate(states[1:-1]))


def _block(site: str) -> int | None:
    parsed = parse_site(site)
    return parsed.layer if parsed.kind == "residual" else -1


def _is_hidden(lm: LM, found: dict[str, Tensor], states: dict[int | None, Tensor], site: str) -> str:
    _require(
        torch.equal(found[site], states[_block(site)]), lm, f"{site} is not the hidden state that the model reports"
    )
    return f"hidden state: {site}"


def _causal(lm: LM, ids: Tensor, found: dict[str, Tensor]) -> str:
    """Another last half leaves the first half alone."""
    half = ids.shape[1] // 2
    other = ids.clone()
    other[:, half:] = ids[:, half:].roll(1, dims=0)
    for site, x in lm.read(other, list(found)).items():
        change = (x[:, :half] - found[site][:, :half]).float().norm() / found[site][:, :half].float().norm()
        _require(float(change) <= NEAR.get(x.dtype, COARSE), lm, f"{site} depends on later tokens: it is not causal")
    return "causal"
