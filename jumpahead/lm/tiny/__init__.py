"""The bundled language model: a folder that `from_pretrained` loads. Its card is README.md in the same folder."""

from __future__ import annotations

from pathlib import Path

PATH = Path(__file__).resolve().parent
"""Folder of the bundled model; `tools/train_tiny_lm.py` writes it."""
