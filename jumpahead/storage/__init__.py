"""Atomic writes, JSON, safetensors, digests, locks, and the folder layout of runs. No torch at import.

`layout.py` is the only file that knows file names. Nothing is unpickled, and every path inside a JSON file is relative.
"""
