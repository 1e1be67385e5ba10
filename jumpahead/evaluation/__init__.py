"""Evaluate SAEs on held-out text or activations: sums per document, from which `metrics.py` computes metrics."""
