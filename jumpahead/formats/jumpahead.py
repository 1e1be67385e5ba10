"""jumpahead's own format: weights.safetensors, with checksums in its header, and config.json."""

from __future__ import annotations

from pathlib import Path

from jumpahead.interchange.format import Format, SAEFiles
from jumpahead.sae.saved import SAE


class JumpaheadFormat(Format):
    """The format in which runs keep their SAEs."""

    name, title = "jumpahead", "jumpahead"
    weights = "weights.safetensors"
    files = ("config.json", "weights.safetensors")

    @classmethod
    def read(cls, files: SAEFiles) -> SAE:
        return SAE.load(files.folder)

    @classmethod
    def write(cls, sae: SAE, folder: Path) -> None:
        sae.save(folder)


FORMAT = JumpaheadFormat
