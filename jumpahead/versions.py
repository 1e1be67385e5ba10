"""Version numbers of the computations of a run. Results are recomputed if the version in their digest has changed.

Raise a version if the same study would give different numbers: in SAEs (training), evaluation.json (evaluation),
features/ (features) or frontier.json (frontier). Next to each version is the digest of the source code that it covers.
tests/test_versions.py fails if that code has changed, and says how to record the new digest.
"""

from __future__ import annotations

TRAINING_VERSION = 5
"""Version of training; part of the input digest of every trained SAE."""
TRAINING_DIGEST = "c6e39881591a314b"

EVALUATION_VERSION = 5
"""Version of evaluation; part of the input digest of every evaluation, which also includes its SAE's digest."""
EVALUATION_DIGEST = "e30143cb4eb8c7ec"

FEATURES_VERSION = 2
"""Version of feature pages; part of the input digest of features.json, which also includes the evaluations' digests."""
FEATURES_DIGEST = "fb5c12f249d072bc"

FRONTIER_VERSION = 6
"""Version of the frontier; part of the input digest of frontier.json, which also includes the evaluations' digests."""
FRONTIER_DIGEST = "0b6876a27aa26e2c"
