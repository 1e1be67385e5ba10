"""Peak memory of one library's step, in a process of its own.

    python -m benchmarks.memory SAELens jumprelu 256 8192 2048 32        prints one line of JSON

The process first makes the data and runs a step of a small SAE, so that everything is imported and compiled. The result
is the rise of its peak resident memory from then on, with optimizer state and activations. Needs Linux, where the peak
can be reset.
"""

from __future__ import annotations

import gc
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from benchmarks import peer_libraries
from benchmarks.interleaved_timing import Shape
from benchmarks.jumpahead_sae import JumpaheadSAE
from benchmarks.library_sae import LibrarySAE, starting_point
from benchmarks.synthetic import make_data

STEPS = 2
STATUS, RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def resident_bytes(field: str) -> int:
    """Return a field of the process status in bytes: `VmRSS` is current, `VmHWM` the peak since the last reset."""
    line = next(line for line in STATUS.read_text().splitlines() if line.startswith(field))
    return 1024 * int(line.split()[1])


def measure(title: str, architecture: str, shape: Shape) -> dict[str, Any]:
    """Measure in this process the bytes that one SAE and its steps add, also per parameter of W_enc and W_dec."""
    kind = next(one for one in (*peer_libraries.PEERS, JumpaheadSAE) if one.title == title)
    sae_after_one_step(kind, architecture, Shape(64, 1024, 256, 8)).close()  # imports and compiles everything
    gc.collect()
    data = make_data(shape.d, shape.width, shape.tokens, shape.l0, count=1)
    begin = starting_point(data.dictionary, data.batches[0], shape.tokens, shape.l0)
    before = resident_bytes("VmRSS")
    one = kind(architecture, begin)
    one.step(data.batches[0])
    RESET.write_text("5")
    for _ in range(STEPS):
        one.step(data.batches[0])
    added = resident_bytes("VmHWM") - before
    one.close()
    return {"bytes": added, "bytes_per_parameter": added / (2 * shape.d * shape.width)}


def sae_after_one_step(kind: type[LibrarySAE], architecture: str, shape: Shape) -> LibrarySAE:
    """Return a library's SAE after one step."""
    data = make_data(shape.d, shape.width, shape.tokens, shape.l0, count=1)
    one = kind(architecture, starting_point(data.dictionary, data.batches[0], shape.tokens, shape.l0))
    one.step(data.batches[0])
    return one


def measure_in_subprocess(title: str, architecture: str, shape: Shape) -> dict[str, Any]:
    """Run `measure` in a new process; return the reason instead if it cannot be measured."""
    if not RESET.exists():
        return {"unavailable": "not measured: needs Linux"}
    command = [sys.executable, "-m", "benchmarks.memory", title, architecture, *map(str, shape)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        return {"unavailable": "failed: " + (done.stderr.strip().splitlines() or ["no message"])[-1]}
    return json.loads(done.stdout.strip().splitlines()[-1])


if __name__ == "__main__":
    torch.set_float32_matmul_precision("highest")
    print(json.dumps(measure(sys.argv[1], sys.argv[2], Shape(*map(int, sys.argv[3:7])))))
