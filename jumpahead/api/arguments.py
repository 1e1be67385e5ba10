"""Types of the arguments of several functions."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

PathLike = str | os.PathLike[str]
StudyLike = PathLike | Mapping[str, Any]
"""A study's TOML file, or its tables."""
