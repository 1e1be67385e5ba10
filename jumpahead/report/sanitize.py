"""Sanitize untrusted text and numbers of a run before they are shown: `formatting.sanitize`."""

from __future__ import annotations

from jumpahead.formatting import sanitize as sanitize
