"""The base class of the formats of SAEs (formats/), and the files that a format is read from."""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

from jumpahead.interchange.hook_names import site_name
from jumpahead.sae.saved import SAE


class SAEFiles(NamedTuple):
    """The folder of an SAE, as it was named."""

    folder: Path
    """The folder on this machine."""
    file: str
    """Name of the file of weights if it was named, else empty."""
    address: str
    """The path or the `hf://` address as given; some formats say nowhere else what the SAE belongs to."""

    def holds(self, name: str) -> bool:
        """Return True if a file of weights is the one that was named or, if none was, is in the folder."""
        return self.file == name if self.file else (self.folder / name).is_file()

    def path(self, name: str) -> Path:
        """Return the path of a file in the folder."""
        return self.folder / name

    @property
    def source(self) -> dict[str, str]:
        """Return what is known of where the SAE is from: its address on the hub; empty for a folder on this machine."""
        return {"address": self.address} if self.address.startswith("hf://") else {}


class Format(ABC):
    """A format of SAEs, of this or another library. It is never instantiated."""

    name: ClassVar[str]
    """The format's name: the name of its file, or the name it is registered under."""
    title: ClassVar[str]
    """The format's name in sentences and tables."""
    weights: ClassVar[str]
    """Name of the file of weights."""
    files: ClassVar[tuple[str, ...]]
    """Names of all files that are read, relative to the SAE's folder; no others are downloaded."""

    @classmethod
    def recognises(cls, files: SAEFiles) -> bool:
        """Return True if the files are in this format, from their names."""
        return files.holds(cls.weights)

    @classmethod
    @abstractmethod
    def read(cls, files: SAEFiles) -> SAE:
        """Return the SAE. Raises ArtefactError, naming file and key, if a file is missing, damaged or foreign."""

    @classmethod
    @abstractmethod
    def write(cls, sae: SAE, folder: Path) -> None:
        """Write an SAE into a folder. Raises StudyError if the format has no place for its activation function."""


def known_of(format_: type[Format], files: SAEFiles, lm: str | None, site: str | None, **more: Any) -> dict[str, Any]:
    """Return what is known of an SAE of another make (`SAE.about`).

    lm: name of the language model. site: its name in any library. more: further fields. None is left out.
    """
    known = {
        "lm": {"model": lm} if lm else None,
        "site": site_name(site) if site else None,
        "source": {"format": format_.name, **files.source},
        **more,
    }
    return {name: value for name, value in known.items() if value is not None}
