"""The setups in which SAEs are tuned and compared: two language models, each with a development and a final text.

No document is in both texts. In each text a share of the documents is held out, and all results are measured on those;
so the results on the `final` text come from documents that no tuning run has used.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any, Literal, NamedTuple

from jumpahead.storage.atomic import write_atomic
from jumpahead.text.sources.stdlib import stdlib_documents

EXTERNAL_DATA = Path(__file__).parents[3] / "shared"
"""Models and texts that are not part of the repository."""
SEPARATOR = "<|endoftext|>"
BATCH = 2048
HELD_OUT_SHARE = 0.2
TextPart = Literal["development", "final"]


class Setup(NamedTuple):
    """A language model, a site, a width, and two texts."""

    name: str
    model: str
    site: str
    d: int
    width: int
    l0: tuple[int, ...]
    """The requested L0 of the tables: up to d/2."""
    texts: dict[TextPart, str]
    """A file; or `stdlib i,j/n`, the documents of Python's standard library whose digest is i or j modulo n. Equal
    documents have the digest of the first one."""

    def missing(self) -> str:
        """Return a file that is missing on this machine; an empty string if there is none."""
        files = [self.model, *self.texts.values()]
        return next((name for name in files if "/" in name and " " not in name and not Path(name).exists()), "")


SETUPS = {
    place.name: place
    for place in (
        Setup("tiny", "tiny", "layers.1.residual", 256, 2048, (4, 8, 16, 32, 64),
              {"development": "stdlib 0,1/4", "final": "stdlib 2,3/4"}),
        Setup("stories260K", str(EXTERNAL_DATA / "models" / "stories260K"), "layers.3.residual", 64, 1024,
              (4, 8, 16, 32),
              {"development": str(EXTERNAL_DATA / "text" / "tinystories_a.txt"),
               "final": str(EXTERNAL_DATA / "text" / "tinystories_b.txt")}),
    )
}  # fmt: skip


def study_tables(
    place: Setup,
    part: TextPart,
    tokens: int,
    series: list[dict[str, Any]],
    folder: Path,
    held_out: int,
    seeds: tuple[int, ...] = (0,),
) -> dict[str, Any]:
    """Return the tables of a study; its text is written to `folder`. held_out: tokens to evaluate on."""
    return {
        "name": f"{place.name}-{part}-{tokens}",
        "lm": {"model": place.model, "context": 128},
        "text": {"source": str(text_file(place, part, folder)), "separator": SEPARATOR, "held_out": HELD_OUT_SHARE},
        "activations": {"sites": [place.site], "origin": "shards", "dtype": "bfloat16"},
        "sae": {"width": [place.width], "seed": list(seeds)},
        "train": {"tokens": tokens, "batch": BATCH, "checkpoint_minutes": 5.0},
        "evaluate": {"tokens": held_out, "replicates": 200},
        "series": series,
    }


def text_file(place: Setup, part: TextPart, folder: Path) -> Path:
    """Return the file with one of the texts, written if it does not exist."""
    source = place.texts[part]
    if not source.startswith("stdlib "):
        return Path(source)
    path = folder / f"stdlib-{part}.txt"
    if not path.exists():
        kept, _, count = source.removeprefix("stdlib ").partition("/")
        wanted = {int(one) for one in kept.split(",")}
        first = {one.text: one.identity for one in reversed(list(stdlib_documents()))}
        some = [
            one.text
            for one in stdlib_documents()
            if first[one.text] == one.identity and digest_modulo(one.identity, int(count)) in wanted
        ]
        write_atomic(path, f"\n{SEPARATOR}\n".join(some))
    return path


def digest_modulo(identity: str, count: int) -> int:
    """Return the document's digest modulo `count`."""
    return int.from_bytes(hashlib.sha256(f"part {identity}".encode()).digest()[:8], "big") % count
