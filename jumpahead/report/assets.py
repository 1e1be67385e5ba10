"""Static assets of the report page: template, style, scripts, plotly, and the content security policy.

The page loads nothing from the network. The policy allows two scripts by hash: the page's own script and plotly. The
page contains plotly gzipped (2 MB instead of 5 MB); the browser decompresses plotly and verifies the hash.
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

ASSETS_FOLDER = Path(__file__).parent
SCRIPTS = ("ask.js", "numbers.js", "figures.js", "training.js", "question.js", "page.js")

# plotly injects a style sheet for maps unless the page has an element with this id.
_INJECTED_STYLE = re.compile(r'document\.getElementById\("([0-9a-f]{64})"\)')


class Plotly(NamedTuple):
    """The plotly script as embedded in the page."""

    packed: str
    """The script, gzipped and base64-encoded."""
    digest: str
    """Hash of the uncompressed script, as a source expression of the content security policy."""
    taken_ids: list[str]
    """Ids of empty elements in the page whose presence stops plotly from injecting style sheets."""


def read_asset(name: str) -> str:
    """Return the text of an asset file of this package."""
    return (ASSETS_FOLDER / name).read_text(encoding="utf-8")


def page_script() -> str:
    """Return the page's own script: all `SCRIPTS` in one function scope."""
    return '"use strict";\n(() => {\n' + "\n".join(read_asset(name) for name in SCRIPTS) + "\n})();"


@functools.cache
def plotly() -> Plotly:
    """Return the script of the installed plotly package, compressed, with its hash. Cached."""
    file = importlib.resources.files("plotly") / "package_data" / "plotly.min.js"
    source = file.read_bytes()
    packed = base64.b64encode(gzip.compress(source, 9, mtime=0)).decode()
    return Plotly(packed, csp_hash_source(source), sorted(set(_INJECTED_STYLE.findall(source.decode()))))


def csp_hash_source(content: bytes | str) -> str:
    """Return `'sha256-…'`: the hash of a script or style as a source expression of a content security policy."""
    content = content.encode() if isinstance(content, str) else content
    return f"'sha256-{base64.b64encode(hashlib.sha256(content).digest()).decode()}'"


def content_security_policy(script: str, style: str) -> str:
    """Return the Content-Security-Policy: deny by default; allow the page's own script, style and plotly by hash.

    The hash of the empty style is allowed too, because plotly creates an empty style element and inserts rules.
    """
    return "; ".join(
        [
            "default-src 'none'",
            f"script-src {csp_hash_source(script)} {plotly().digest}",
            f"style-src-elem {csp_hash_source(style)} {csp_hash_source('')}",
            "style-src-attr 'unsafe-inline'",
            "img-src data: blob:",  # a figure saved as a file
            "base-uri 'none'",
            "form-action 'none'",
        ]
    )
