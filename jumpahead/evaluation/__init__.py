"""Evaluating SAEs on held-out text or activations: sums per document, from which `metrics.py` derives numbers."""
