"""Interventions on features: steer, ablate, and run a language model with an SAE or an intervention spliced in.

    f = encode(x)    x̂ = decode(f)    f′ = f with some features set or shifted
    with the error term       x′ = x + Σ_j (f′_j − f_j)·d_j         x − x̂, what the SAE misses, stays in the model
    without it                x′ = x̂ + Σ_j (f′_j − f_j)·d_j

`Intervention` is a function of activations, which `LM.splice`, `spliced` and `token_losses` take like an SAE. Positions
that are not trained on (the first, special tokens, padding) stay as they are.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from jumpahead.errors import DataError, StudyError
from jumpahead.lm.hooks import remove_on_exit, splice_activation
from jumpahead.lm.losses import next_token_nats
from jumpahead.lm.model import LM, Ids, Splice
from jumpahead.lm.sae_location import warn_if_elsewhere
from jumpahead.lm.sites import Site, parse_site
from jumpahead.sae.saved import SAE


class Intervention(NamedTuple):
    """A change of some features of an SAE, as a function of activations x [..., d]."""

    sae: SAE
    features: Tensor
    """int64 [n]: the features that are changed."""
    values: Tensor
    """float32 [n]: what they are set to, or what is added to them."""
    is_added: bool
    """True if `values` are added."""
    keeps_error: bool
    """True if the SAE's error x − x̂ stays in the model."""

    def __call__(self, x: Tensor) -> Tensor:
        """Return the changed activations x′ [..., d], in the dtype of x."""
        f = self.sae.encode(x)
        change = self.values if self.is_added else self.values - f[..., self.features]
        shift = change @ self.sae.params["W_dec"][self.features]
        base = x if self.keeps_error else self.sae.decode(f).to(x)
        return base + shift.to(x)


class EncodedText(NamedTuple):
    """The features of a text."""

    tokens: list[str]
    """The tokens, BOS included."""
    ids: Tensor
    """int64 [1, t]: their ids."""
    features: Tensor
    """float32 [t, M]: features of the activations at the site; zero at positions that SAEs are not trained on."""

    def top(self, position: int, count: int = 10) -> list[tuple[int, float]]:
        """Return the most active features at a position, each with its activation; only active ones."""
        found = self.features[position].topk(min(count, self.features.shape[1]))
        return [(i, v) for i, v in zip(found.indices.tolist(), found.values.tolist(), strict=True) if v > 0]


def steer(sae: SAE, features: Mapping[int, float], *, add: bool = False, error: bool = True) -> Intervention:
    """Return the intervention that sets features to values at every position, or adds values to them.

    features: value by feature, in the unit of the SAE's features. add: add the values instead of setting them. error:
    False to splice the reconstruction in, so that what the SAE misses is lost. Raises DataError for a feature that the
    SAE does not have.
    """
    for feature in features:
        if not 0 <= feature < sae.width:
            raise DataError(f"There is no feature {feature}: {sae!r} has features 0 to {sae.width - 1}.")
    values = torch.tensor(list(features.values()), dtype=torch.float32, device=sae.device)
    if not bool(torch.isfinite(values).all()):
        raise DataError("Features can be set to finite values alone.")
    return Intervention(sae, torch.tensor(list(features), dtype=torch.int64, device=sae.device), values, add, error)


def ablate(sae: SAE, features: Iterable[int], *, error: bool = True) -> Intervention:
    """Return the intervention that sets features to zero at every position. error: as in `steer`."""
    return steer(sae, dict.fromkeys(features, 0.0), error=error)


@contextlib.contextmanager
def spliced(lm: LM, replacement: Splice, site: str | Site | None = None) -> Iterator[None]:
    """Splice a replacement into every forward pass of `lm.model` within the context, `lm.model.generate` included.

    replacement: an SAE, an intervention, or another function of activations [b, t, d]. site: by default the SAE's.
    Batches may be padded on either side if transformers is given their attention mask, and the KV cache may be used.
    """
    site = site_for(replacement, site)
    point, active = lm.hook_point(site), contextlib.ExitStack()
    warn_if_elsewhere(replacement, lm.name, lm.digest, site)

    def begin(_module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        ids = args[0] if args else kwargs.get("input_ids")
        if not isinstance(ids, Tensor):
            raise DataError("An SAE can be spliced into passes on token ids alone: give input_ids.")
        is_replaced = _replaced_positions(lm, ids, kwargs)[..., None]

        def replace(x: Tensor) -> Tensor:
            new = replacement(x) if callable(replacement) else replacement
            return torch.where(is_replaced.to(x.device), new.to(x), x)

        active.enter_context(splice_activation(point, ids.shape, replace))

    def end(*_: Any) -> None:
        active.close()

    with active:
        before = lm.model.register_forward_pre_hook(begin, with_kwargs=True)
        after = lm.model.register_forward_hook(end, always_call=True)
        with remove_on_exit(before), remove_on_exit(after):
            yield


def _replaced_positions(lm: LM, ids: Tensor, kwargs: Mapping[str, Any]) -> Tensor:
    """Return the mask of the positions of one forward pass that are replaced, bool [b, t].

    kwargs: of the pass. The first position of a context, special tokens and padding are not replaced. With a KV cache
    `ids` are the last positions of their contexts.
    """
    usable, mask = ~torch.from_numpy(lm.is_special).to(ids.device)[ids], kwargs.get("attention_mask")
    if mask is None:
        cached = [value.get_seq_length() for value in kwargs.values() if hasattr(value, "get_seq_length")]
        usable[:, 0] &= any(cached)
        return usable
    if not isinstance(mask, Tensor) or mask.dim() != 2:
        raise DataError("An SAE can be spliced into passes with an attention mask [contexts, positions] alone.")
    mask = mask.to(ids.device).long()
    seen = mask.cumsum(1)[:, -ids.shape[1] :]
    return usable & (mask[:, -ids.shape[1] :] > 0) & (seen > 1)


def token_losses(lm: LM, ids: Ids, replacement: Splice | None = None, site: str | Site | None = None) -> Tensor:
    """Return the loss of each next token in nats, float32 [b, t − 1], with a replacement spliced in at a site.

    replacement: as in `spliced`; None for the unmodified model. site: by default the SAE's.

    Raises DataError for batches that are padded on the left.
    """
    ids = checked_ids(lm, ids)
    if replacement is None:
        return next_token_nats(lm.logits(ids), ids)
    return next_token_nats(lm.splice(ids, site_for(replacement, site), replacement), ids)


def token_ids(lm: LM, text: str) -> Tensor:
    """Return the token ids of a text as one context, int64 [1, t], with BOS if the model's contexts have one."""
    bos = [] if lm.bos_id is None else [lm.bos_id]
    return torch.tensor([[*bos, *lm.encode([text])[0].tolist()]], device=lm.device)


def encode_text(lm: LM, sae: SAE, text: str, site: str | Site | None = None) -> EncodedText:
    """Return the features of a text. site: by default the SAE's."""
    ids, place = token_ids(lm, text), site_for(sae, site)
    warn_if_elsewhere(sae, lm.name, lm.digest, place)
    x = lm.read(ids, [place])[place.key]
    features = sae.encode(x)[0] * lm.spliceable(ids)[0][:, None].to(sae.device)
    return EncodedText([lm.tokenizer.decode([i]) for i in ids[0].tolist()], ids, features)


def site_for(replacement: object, site: str | Site | None) -> Site:
    """Return the site to splice at: `site`, or that of the SAE. Raises StudyError if neither is known."""
    sae = getattr(replacement, "sae", replacement)
    known = site or (sae.location.site if isinstance(sae, SAE) else None)
    if known is None:
        raise StudyError("Name the site, such as site='layers.3.residual': the SAE does not say where it belongs.")
    return parse_site(known)


def checked_ids(lm: LM, ids: Ids) -> Tensor:
    """Return token ids as int64 [b, t] on the model's device. Raises DataError for an attention mask or left padding.

    Here no attention mask is passed to the model, to which padding on the right makes no difference.
    """
    if isinstance(ids, Mapping):
        raise DataError("Give token ids alone, padded on the right: attention masks are taken by `spliced` only.")
    found = torch.as_tensor(ids, dtype=torch.int64, device=lm.device)
    if found.dim() != 2:
        raise DataError(f"Token ids must be [contexts, positions], not {list(found.shape)}.")
    pad = lm.tokenizer.pad_token_id
    if pad is not None and found.shape[1] > 1 and bool(((found[:, 0] == pad) & (found[:, 1] == pad)).any()):
        raise DataError("A context begins with padding: pad on the right, or give each text by itself.")
    return found
