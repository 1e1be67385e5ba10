"""Versions of what a run computes: finished work is keyed by them, so that a changed formula is computed again.

Raise a version when the same study would give other numbers: in SAEs (training), evaluation.json (evaluation) or
frontier.json (frontier). Each has the digest of the source code that it stands for; tests/test_versions.py fails when
the code has changed since, and says how to record the new digest.
"""

from __future__ import annotations

TRAINING_VERSION = 4
"""Part of the digest of a trained SAE's inputs."""
TRAINING_DIGEST = "0000000000000000"

EVALUATION_VERSION = 4
"""Part of the digest of an evaluation's inputs, beside those of its SAE."""
EVALUATION_DIGEST = "0000000000000000"

FRONTIER_VERSION = 4
"""Part of the digest of the inputs of frontier.json, beside those of its evaluations."""
FRONTIER_DIGEST = "0000000000000000"
