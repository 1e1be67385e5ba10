"""The GPU's benchmark, as far as it needs no card: everything runs, nothing is written, nothing else is imported."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks import gpu


def test_a_dry_run_runs_every_part_and_writes_nothing(capsys: pytest.CaptureFixture[str], tmp_path, monkeypatch):
    monkeypatch.setenv("OUT", str(tmp_path))
    assert gpu.main(["--dry-run"]) == 0
    said = capsys.readouterr().out
    for part in gpu.PARTS:
        assert f"## {gpu.dry(part)[: len(part)]}" in said
    assert "no figure above was measured on a card" in said
    assert "failed" not in said
    assert not any(tmp_path.iterdir())


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_without_a_card_nothing_is_measured(capsys: pytest.CaptureFixture[str]):
    assert gpu.main([]) == 1
    assert "nothing is measured" in capsys.readouterr().err


def test_no_time_left_is_said():
    bench = gpu.Bench(torch.device("cpu"), [gpu.TINY], (4,), minutes=-1)
    row: dict[str, object] = {}
    bench.tried(row, lambda: {"ms": 1.0})
    assert row == {"unavailable": "not measured: no time was left"}


def test_torch_numpy_and_triton_are_enough(tmp_path: Path):
    """With everything else hidden: the check and the steps of a dry run."""
    program = """
        import sys
        class Hidden:
            def find_spec(self, name, path=None, target=None):
                if name.partition(".")[0] in {"pydantic", "pydantic_core", "transformers", "safetensors", "numba",
                                              "typer", "rich", "huggingface_hub", "jinja2", "plotly"}:
                    raise ImportError(name)
        sys.meta_path.insert(0, Hidden())
        from benchmarks import gpu
        assert gpu.main(["--dry-run", "--parts", "check", "steps", "breakdown"]) == 0
    """
    program = "\n".join(line[8:] for line in program.splitlines())
    root = Path(__file__).resolve().parents[1]
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, cwd=root)
    assert done.returncode == 0, done.stdout + done.stderr
