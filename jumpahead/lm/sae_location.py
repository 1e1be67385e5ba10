"""A warning for an SAE that is spliced into another language model, or at another site, than it was trained at."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from typing import Any

from jumpahead.errors import SiteError
from jumpahead.lm.sites import Site, parse_site
from jumpahead.sae.saved import SAE


def warn_if_elsewhere(sae: Any, lm_name: str, lm_digest: str, site: Site) -> None:
    """Warn, once per SAE, if an SAE is used where it does not belong; do nothing if it is no SAE or if it fits.

    sae: an SAE, or an intervention on one (interventions.py). lm_name, lm_digest: `LM.name` and `LM.digest` of the
    model that the SAE is used in.
    """
    sae = getattr(sae, "sae", sae)
    if not isinstance(sae, SAE) or sae.warned_of_location:
        return
    belongs, misplaced = sae.location, []
    if not belongs.is_lm(lm_name, lm_digest):
        is_namesake = belongs.lm == lm_name
        misplaced.append(
            f"other weights of {lm_name}" if is_namesake else f"language model {belongs.lm}, not {lm_name}"
        )
    if belongs.site is not None and _site_key(belongs.site) != site.key:
        misplaced.append(f"site {belongs.site}, not {site.key}")
    if misplaced:
        sae.warned_of_location = True
        warnings.warn(f"{sae!r} was trained for {' and '.join(misplaced)}.", UserWarning, stacklevel=3)


def common_lm(saes: Iterable[SAE]) -> str | None:
    """Return the language model that all SAEs were trained for; None if they say none, or different ones."""
    known = {sae.location.lm for sae in saes}
    return known.pop() if len(known) == 1 else None


def _site_key(name: str) -> str:
    """Return the site's key; the name itself if it is not the name of a site."""
    try:
        return parse_site(name).key
    except SiteError:
        return name
