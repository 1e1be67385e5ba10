"""Sinks of training logs, one file each; `SINKS` lists them by name."""

from __future__ import annotations

from jumpahead.registry import Registry

SINKS = Registry("log sink", __name__, "SINK", "jumpahead.sinks")
"""All sinks: the files of this folder, and those that other packages declare as entry points."""
