"""Tests of the GPU's kernels: on a card where there is one, else in Triton's interpreter (`make test-gpu`)."""

from __future__ import annotations

import os

import torch

if os.environ.get("TRITON_INTERPRET") == "1" and not torch.cuda.is_available():
    from tools.interpreter import prepare

    prepare()
