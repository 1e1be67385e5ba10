"""What the page is made of besides data: template, style, script, the drawing library, and the policy that admits them.

The page may load nothing and run only the two scripts whose hashes its policy names: its own, and plotly's, which lies
in the page gzipped (2 MB instead of 5) and is unpacked and checked by the browser against the hash.
"""

from __future__ import annotations

import base64
import functools
import gzip
import hashlib
import importlib.resources
import re
from pathlib import Path
from typing import NamedTuple

FOLDER = Path(__file__).parent
SCRIPTS = ("ask.js", "figures.js", "page.js")

# plotly puts a style for maps into the page unless an element of this id is there already.
_INJECTED_STYLE = re.compile(r'document\.getElementById\("([0-9a-f]{64})"\)')


class Plotly(NamedTuple):
    """The drawing library, as the page carries it."""

    packed: str
    """gzip, then base64."""
    digest: str
    """Of the unpacked script, as a source in the policy."""
    taken_ids: list[str]
    """Ids that the page gives to empty elements, so that plotly injects no style."""


def text(name: str) -> str:
    """A file of this folder."""
    return (FOLDER / name).read_text(encoding="utf-8")


def script() -> str:
    """The page's own script, in a scope of its own."""
    return '"use strict";\n(() => {\n' + "\n".join(text(name) for name in SCRIPTS) + "\n})();"


@functools.cache
def plotly() -> Plotly:
    """From the installed plotly package: no copy of it in this repository, no network."""
    file = importlib.resources.files("plotly") / "package_data" / "plotly.min.js"
    source = file.read_bytes()
    packed = base64.b64encode(gzip.compress(source, 9, mtime=0)).decode()
    return Plotly(packed, digest(source), sorted(set(_INJECTED_STYLE.findall(source.decode()))))


def digest(content: bytes | str) -> str:
    """`'sha256-…'`, a source expression of a content security policy."""
    content = content.encode() if isinstance(content, str) else content
    return f"'sha256-{base64.b64encode(hashlib.sha256(content).digest()).decode()}'"


def policy(script: str, style: str) -> str:
    """Nothing from anywhere; these scripts, this style, an empty style that plotly fills by rules, style attributes."""
    return "; ".join(
        [
            "default-src 'none'",
            f"script-src {digest(script)} {plotly().digest}",
            f"style-src-elem {digest(style)} {digest('')}",
            "style-src-attr 'unsafe-inline'",
            "img-src data: blob:",  # a figure saved as a file
            "base-uri 'none'",
            "form-action 'none'",
        ]
    )
