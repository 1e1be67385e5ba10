"""`import jumpahead`: the supported platforms, and public names that are imported on first use."""

from __future__ import annotations

import subprocess
import sys

import pytest


def run_python(program: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)


@pytest.mark.parametrize("platform", ["win32", "cygwin", "emscripten"])
def test_an_unsupported_platform_is_named_at_import(platform: str):
    done = run_python(f"import sys; sys.platform = {platform!r}; import jumpahead")
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == (
        f"ImportError: jumpahead runs on Linux and macOS, not on {platform}: on Windows, use WSL 2."
    )


@pytest.mark.parametrize("platform", ["linux", "darwin"])
def test_a_supported_platform_imports_without_torch(platform: str):
    done = run_python(
        f"import sys; sys.platform = {platform!r}; import jumpahead; assert not {{'torch', 'numpy'}} & set(sys.modules)"
    )
    assert done.returncode == 0, done.stderr


def test_every_public_name_is_listed_and_lazy():
    done = run_python(
        "import jumpahead\n"
        "assert set(jumpahead.__all__) <= set(dir(jumpahead))\n"
        "assert not set(jumpahead.__all__) & set(vars(jumpahead))"
    )
    assert done.returncode == 0, done.stderr
