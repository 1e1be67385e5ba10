"""The location that an SAE belongs to: the language model and the site whose activations it takes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

_ALIASES = {"gpt2-small": "gpt2"}
"""Short names that other libraries have for a model, with the model's own."""


class Location(NamedTuple):
    """The language model and the site that an SAE was trained at, as far as they are known."""

    lm: str | None
    """Name on the hub, folder, or the name that another library has for the model."""
    digest: str | None
    """Digest of the model's files: SHA-256 for a folder, `name@commit` for a model from the hub."""
    revision: str | None
    """Branch, tag or commit on the hub."""
    site: str | None
    """Name of the site, such as `layers.3.residual`; PATH.output and PATH.input where no shorter name is known."""

    @classmethod
    def from_config(cls, about: Mapping[str, Any]) -> Location:
        """Return the location in what is known of an SAE (`SAE.about`): its `lm` and `site`."""
        lm = about.get("lm") or {}
        return cls(lm.get("model"), lm.get("digest"), lm.get("revision"), about.get("site"))

    def is_lm(self, name: str, digest: str) -> bool:
        """Return False if a language model is another than the SAE's; True if that is not known.

        Two digests of folders decide. Otherwise the last parts of the names do: `google/gemma-2-2b` and `gemma-2-2b`
        are taken for the same model.
        """
        if self.digest and "@" not in self.digest + digest:
            return self.digest == digest
        return self.lm is None or _short_name(self.lm) == _short_name(name)


def _short_name(model: str) -> str:
    """Return the last part of a model's name or folder, in lower case."""
    name = model.rstrip("/").rpartition("/")[2].lower()
    return _ALIASES.get(name, name)
