"""Digests of bytes, files and JSON."""

from __future__ import annotations

from pathlib import Path

import pytest

from jumpahead.errors import ArtefactError
from jumpahead.storage.atomic import write_atomic
from jumpahead.storage.digests import digest_bytes, digest_file, digest_json


def test_digests(tmp_path: Path):
    # sha256("abc"), from FIPS 180-2
    known = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert digest_bytes(b"abc") == known
    path = write_atomic(tmp_path / "a", "abc")
    assert digest_file(path) == known
    with pytest.raises(ArtefactError, match="does not exist"):
        digest_file(tmp_path / "b")
    assert digest_json({"a": 1, "b": [2.5]}) == digest_json({"b": [2.5], "a": 1})
    assert digest_json({"a": 1}) != digest_json({"a": 2})
    with pytest.raises(ValueError, match="not JSON compliant"):
        digest_json({"a": float("nan")})
