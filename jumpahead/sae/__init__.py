"""Sparse autoencoders as mathematics: what an architecture is, and what an SAE computes. No torch here.

`architectures/` holds one file per paper; helpers that several of them share (`threshold.py`, `auxk.py`, `ste.py`)
stand beside that folder.
"""
