"""SAEs on the Hugging Face hub: `hf://user/repo/path@revision`. Only the files that a format reads are downloaded."""

from __future__ import annotations

import glob
import re
from collections.abc import Iterable
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from jumpahead.errors import ArtefactError, StudyError

PREFIX = "hf://"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_WEIGHTS = (".safetensors", ".npz", ".pt", ".pth")


class HubAddress(NamedTuple):
    """The parts of `hf://user/repo/path@revision`."""

    repo: str
    """`user/repo`."""
    path: str
    """Path of a folder or of a file of weights in the repository; empty for the repository's root."""
    revision: str | None
    """Branch, tag or commit; None for the default branch."""

    @classmethod
    def parse(cls, address: str) -> HubAddress:
        """Parse an address. Raises StudyError if it is not one."""
        rest, _, revision = address.removeprefix(PREFIX).partition("@")
        parts = rest.rstrip("/").split("/")
        is_path_safe = all(part not in ("", ".", "..") and "\\" not in part and "\0" not in part for part in parts)
        if len(parts) < 2 or not is_path_safe or not all(_NAME.fullmatch(part) for part in parts[:2]):
            raise StudyError(
                f"{address!r} is no SAE on the hub: write hf://user/repo/path or hf://user/repo/path@revision."
            )
        return cls("/".join(parts[:2]), "/".join(parts[2:]), revision or None)


def download(address: str, names: Iterable[str]) -> Path:
    """Download the files of an SAE into the cache of huggingface_hub; return the path of its folder or file.

    names: file names that formats read, relative to the SAE's folder. Raises ArtefactError, with the reason, if the
    download fails or the repository has no such folder.
    """
    from huggingface_hub import snapshot_download

    hub = HubAddress.parse(address)
    is_file = hub.path.endswith(_WEIGHTS)
    folder = PurePosixPath(hub.path).parent if is_file else PurePosixPath(hub.path)
    wanted = [glob.escape((folder / name).as_posix()) for name in names]
    if is_file:
        wanted.append(glob.escape(hub.path))
        wanted += [glob.escape((folder.parent / name).as_posix()) for name in names if name.endswith(".json")]
    try:
        root = Path(snapshot_download(hub.repo, revision=hub.revision, allow_patterns=wanted))
    except Exception as exc:  # of the network, of the hub, of an invalid name
        reason = next((line.strip() for line in str(exc).splitlines() if line.strip()), type(exc).__name__)
        raise ArtefactError(f"{address} cannot be downloaded: {reason.rstrip('.')}.") from exc
    found = root / hub.path
    if not found.exists():
        raise ArtefactError(f"{address} holds no SAE in a known format: name the folder of one SAE in the repository.")
    return found
