"""Where SAEs are tuned and compared: two language models, each with text to tune on and other text to report on.

No document is in both texts. Inside each text a share of the documents is held out, and everything that is reported was
measured on those; so the figures of the `final` text come from documents that no tuning run has seen in any way.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any, Literal, NamedTuple

from jumpahead.storage.atomic import write_atomic
from jumpahead.text.sources.stdlib import stdlib_documents

SHARED = Path(__file__).parents[3] / "shared"
"""Models and text that are not part of the project."""
SEPARATOR = "<|endoftext|>"
BATCH = 2048
HELD_OUT = 0.2
Part = Literal["development", "final"]


class Place(NamedTuple):
    """A language model, a site, and a width."""

    name: str
    model: str
    site: str
    d: int
    width: int
    l0: tuple[int, ...]
    """What is asked for in the tables: up to d/2."""
    texts: dict[Part, str]
    """A file each; or a part of Python's standard library, `stdlib i,j/n`: documents whose digest is i or j modulo n;
    of equal documents the first one's."""

    def missing(self) -> str:
        """What is not on this machine; empty where all is there."""
        files = [self.model, *self.texts.values()]
        return next((name for name in files if "/" in name and " " not in name and not Path(name).exists()), "")


PLACES = {
    place.name: place
    for place in (
        Place("tiny", "tiny", "layers.1.residual", 256, 2048, (4, 8, 16, 32, 64),
              {"development": "stdlib 0,1/4", "final": "stdlib 2,3/4"}),
        Place("stories260K", str(SHARED / "models" / "stories260K"), "layers.3.residual", 64, 1024, (4, 8, 16, 32),
              {"development": str(SHARED / "text" / "tinystories_a.txt"),
               "final": str(SHARED / "text" / "tinystories_b.txt")}),
    )
}  # fmt: skip


def study(
    place: Place,
    part: Part,
    tokens: int,
    series: list[dict[str, Any]],
    folder: Path,
    held_out: int,
    seeds: tuple[int, ...] = (0,),
) -> dict[str, Any]:
    """The tables of a study; its text is put into `folder`. held_out: tokens to measure on."""
    return {
        "name": f"{place.name}-{part}-{tokens}",
        "lm": {"model": place.model, "context": 128},
        "text": {"source": str(text(place, part, folder)), "separator": SEPARATOR, "held_out": HELD_OUT},
        "activations": {"sites": [place.site], "origin": "shards", "dtype": "bfloat16"},
        "sae": {"width": [place.width], "seed": list(seeds)},
        "train": {"tokens": tokens, "batch": BATCH, "checkpoint_minutes": 5.0},
        "evaluate": {"tokens": held_out},
        "series": series,
    }


def text(place: Place, part: Part, folder: Path) -> Path:
    """The file with the text of one part."""
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
            if first[one.text] == one.identity and remainder(one.identity, int(count)) in wanted
        ]
        write_atomic(path, f"\n{SEPARATOR}\n".join(some))
    return path


def remainder(identity: str, count: int) -> int:
    """The document's digest modulo `count`."""
    return int.from_bytes(hashlib.sha256(f"part {identity}".encode()).digest()[:8], "big") % count
