"""The parts of a page besides data: template, style, script, the drawing library, and the content security policy.

The page loads nothing and runs only the two scripts whose hashes are in its policy: its own, and plotly, which is in
the page gzipped (2 MB instead of 5); the browser unpacks it and checks it against the hash.
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
SCRIPTS = ("ask.js", "numbers.js", "figures.js", "question.js", "page.js")

# plotly adds a style for maps to the page unless an element of this id exists.
_INJECTED_STYLE = re.compile(r'document\.getElementById\("([0-9a-f]{64})"\)')


class Plotly(NamedTuple):
    """The drawing library, in the form in which it is part of the page."""

    packed: str
    """gzip, then base64."""
    digest: str
    """Hash of the unpacked script, as a source expression of the policy."""
    taken_ids: list[str]
    """Ids that the page gives to empty elements, so that plotly injects no style."""


def text(name: str) -> str:
    """Return the text of a file of this folder."""
    return (FOLDER / name).read_text(encoding="utf-8")


def script() -> str:
    """Return the page's own script, in a scope of its own."""
    return '"use strict";\n(() => {\n' + "\n".join(text(name) for name in SCRIPTS) + "\n})();"


@functools.cache
def plotly() -> Plotly:
    """Return plotly's script from the installed package."""
    file = importlib.resources.files("plotly") / "package_data" / "plotly.min.js"
    source = file.read_bytes()
    packed = base64.b64encode(gzip.compress(source, 9, mtime=0)).decode()
    return Plotly(packed, digest(source), sorted(set(_INJECTED_STYLE.findall(source.decode()))))


def digest(content: bytes | str) -> str:
    """Return `'sha256-…'`, a source expression of a content security policy."""
    content = content.encode() if isinstance(content, str) else content
    return f"'sha256-{base64.b64encode(hashlib.sha256(content).digest()).decode()}'"


def content_security_policy(script: str, style: str) -> str:
    """Return the Content-Security-Policy: deny by default; allow the page's own script, style and plotly by hash.

    The empty style is one that plotly creates and fills by rules.
    """
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
