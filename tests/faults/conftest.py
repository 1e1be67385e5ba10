"""The finished run that the tests of faults damage."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from jumpahead import api
from tests.faults.small_run import STUDY


@pytest.fixture(scope="session")
def finished(tmp_path_factory) -> Path:
    return api.run(STUDY, out=tmp_path_factory.mktemp("runs") / "rows")


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "rows"))
