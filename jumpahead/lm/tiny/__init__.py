"""The bundled language model: a folder that `from_pretrained` loads. README.md in this folder is the model card."""

from __future__ import annotations

from pathlib import Path

PATH = Path(__file__).resolve().parent
"""Folder of the bundled model; `tools/train_tiny_lm.py` writes it."""
