"""Version numbers of the computations of a run. Results are recomputed if the version in their digest has changed.

Raise a version if the same study would give different numbers: in SAEs (training), evaluation.json (evaluation) or
frontier.json (frontier). Next to each version is the digest of the source code that it covers. tests/test_versions.py
fails if that code has changed, and says how to record the new digest.
"""

from __future__ import annotations

TRAINING_VERSION = 4
"""Version of training; part of the input digest of every trained SAE."""
TRAINING_DIGEST = "ab03481f4298b82e"

EVALUATION_VERSION = 5
"""Version of evaluation; part of the input digest of every evaluation, which also includes its SAE's digest."""
EVALUATION_DIGEST = "0a14a78fe910d7b6"

FRONTIER_VERSION = 4
"""Version of the frontier; part of the input digest of frontier.json, which also includes the evaluations' digests."""
FRONTIER_DIGEST = "f7396336c9cf3c04"
