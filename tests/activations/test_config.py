"""The `[activations]` table: canonical sites, and origins that say what they need."""

from __future__ import annotations

import pytest

from jumpahead.activations.config import ActivationsConfig, canonical_site
from jumpahead.activations.origins import ORIGINS
from jumpahead.errors import ArtefactError, SiteError, StudyError


@pytest.mark.parametrize(
    ("origin", "needs_lm", "on_disk"),
    [("live", True, False), ("shards", True, True), ("synthetic", False, False), ("tensors", False, False)],
)
def test_an_origin_says_whether_it_needs_a_model_and_writes_to_disk(origin: str, needs_lm: bool, on_disk: bool):
    found = ORIGINS.get(origin)
    assert (found.needs_lm, found.on_disk) == (needs_lm, on_disk)


def test_sites_are_canonical_and_unique():
    config = ActivationsConfig(sites=("blocks.1.hook_mlp_out", "layers.1.mlp", "layers.0.residual"))
    assert config.sites == ("layers.1.mlp", "layers.0.residual")


def test_an_origin_without_a_model_takes_any_site_that_can_name_a_folder():
    assert canonical_site("pictures", "tensors") == "pictures"
    assert canonical_site("blocks.1.hook_mlp_out", "tensors") == "layers.1.mlp"
    with pytest.raises(ArtefactError, match="cannot be a folder's name"):
        canonical_site("../pictures", "tensors")
    with pytest.raises(SiteError):
        canonical_site("pictures", "live")
    with pytest.raises(StudyError, match="Did you mean 'tensors'"):
        canonical_site("pictures", "tensor")
