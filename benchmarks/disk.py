"""Activations on disk against plain copying of the same bytes, on this machine and this disk.

    make bench-disk                         bfloat16 and float32 at d = 64, 768 and 2304
    make bench-disk ARGS=--quick            a few MiB, once: does everything run?

Every round measures these by turns, on the same files:

    write    `write_shards`, the activations being in memory already: labels, checksums, files, fsync
    copy     shutil.copyfile of those files into another folder, each fsynced: plain copying, from the page cache
    cold     nothing of the files is in the page cache (posix_fadvise). read: a whole epoch of batches from `Stream`, a
    warm     block ahead, every group checked, shuffled, in float32 / everything is in the page cache.
             copy: as above. plain read: the files' bytes into one buffer of 4 MiB, again and again; nothing is kept
    engine   one training step of one TopK SAE of width 16·d on such a batch: what reading must keep up with

Ratios are of medians over the rounds, in bytes of the files per second. A disk of a virtual machine may keep a cache of
its own, which nothing here can empty.

Results go to RESULTS/<cpu>_<yyyymm>_disk.json and .md.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.machine import command_line, describe_machine, file_name_of, machine_facts, processor_name
from benchmarks.table import format_digits, render_table
from jumpahead.activations.base import DTYPES
from jumpahead.activations.origins.live import Live
from jumpahead.activations.origins.shards import Shards
from jumpahead.activations.shard_writer import write_shards
from jumpahead.activations.stream import Stream
from jumpahead.sae.architectures import ARCHITECTURES
from jumpahead.storage.atomic import write_atomic
from jumpahead.storage.digests import digest_json
from jumpahead.storage.json_files import write_json
from jumpahead.text.contexts import Contexts

RESULTS = Path(__file__).parent / "RESULTS"
SITE = "layers.1.residual"
CONTEXT, GROUP, BATCH = 128, 16, 2048
READ_BUFFER_BYTES = 2**22
TARGET_RATIO = 0.7


class InMemoryActivations(Live):
    """An origin of activations that takes no time: the same rows in memory for every group."""

    def __init__(self, random_contexts: Contexts, d: int, dtype: str) -> None:
        self.contexts, self.dtype, self.widths = random_contexts, DTYPES[dtype], {SITE: d}
        self.rows_per_group = random_contexts.rows_per_group
        self.groups_per_block = 256 // random_contexts.batch
        self.digest = digest_json([random_contexts.digest, d, dtype])
        random = torch.Generator().manual_seed(7)
        self._made = torch.randn(int(self.rows_per_group.max()), d, generator=random).to(self.dtype)

    def rows(self, group: int) -> dict[str, Tensor]:
        return {SITE: self._made[: int(self.rows_per_group[group])]}


def random_contexts(rows: int) -> Contexts:
    """Return contexts of one random document each, with at least `rows` rows in total."""
    count = -(-rows // (CONTEXT * GROUP)) * GROUP
    random = np.random.default_rng(3)
    return Contexts(
        tokens=random.integers(1, 5000, count * CONTEXT).astype(np.uint16), chunk_start=np.arange(count) * CONTEXT,
        chunk_length=np.full(count, CONTEXT), chunk_document=np.arange(count, dtype=np.int32),
        document_ids=tuple(map(str, range(count))), document_names=tuple(map(str, range(count))),
        is_special=np.zeros(5000, bool), bos_id=0, batch=GROUP, split="train",
    )  # fmt: skip


# ---------------------------------------------------------------------------------------------- what is timed


def seconds_of(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def copy_seconds(source: Path, target: Path) -> float:
    """Return the seconds of copying and fsyncing every file."""
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir()

    def copy() -> None:
        for path in sorted(source.glob("shard-*")):
            shutil.copyfile(path, target / path.name)
            with open(target / path.name, "rb+") as file:
                os.fsync(file.fileno())

    return seconds_of(copy)


def plain_read_seconds(source: Path) -> float:
    buffer = bytearray(READ_BUFFER_BYTES)

    def read() -> None:
        for path in sorted(source.glob("shard-*")):
            with open(path, "rb", buffering=0) as file:
                while file.readinto(buffer):
                    pass

    return seconds_of(read)


def epoch_seconds(source: Path) -> tuple[float, float]:
    """Return the seconds of an epoch, and the share of rows in its batches (each block's remainder is dropped)."""
    data = Shards(source)
    stream = Stream(data, BATCH, seed=1)
    count = stream.batches_per_epoch()

    def read() -> None:
        with contextlib.closing(stream.batches()) as batches:
            for _, batch in zip(range(count), batches, strict=False):
                assert batch[SITE].dtype == torch.float32

    return seconds_of(read), count * BATCH / data.total_rows


def drop_page_cache(source: Path) -> None:
    """Remove the files from the page cache."""
    for path in source.glob("shard-*"):
        with open(path, "rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def training_step_seconds(d: int) -> float:
    """Return the seconds of a training step of one TopK SAE with k = 32 and width 16·d."""
    from jumpahead.engine import initial_state, kernel_layer, train_step
    from jumpahead.sae.recipe import Setting, Shape, TrainConfig

    kind, setting, layer = ARCHITECTURES.get("topk"), Setting("k", 32), kernel_layer()
    config = TrainConfig(batch=BATCH)
    arch = kind(kind.Options(), setting, kind.recipe_for(config, Shape(d, 16 * d, setting), {}))
    x = torch.randn(BATCH, d, generator=torch.Generator().manual_seed(5)) / d**0.5
    state = initial_state(arch, d, 16 * d, 0, x)
    train_step(state, x, 1e-6, 1.0, layer)
    return statistics.median(seconds_of(lambda: train_step(state, x, 1e-6, 1.0, layer)) for _ in range(3))


# ---------------------------------------------------------------------------------------------- rounds


def measure_case(folder: Path, d: int, dtype: str, mib: float, rounds: int) -> dict[str, Any]:
    """Measure one width and dtype."""
    ready = InMemoryActivations(random_contexts(int(mib * 2**20 / (d * DTYPES[dtype].itemsize + 12))), d, dtype)
    ours, theirs = folder / "ours", folder / "theirs"
    seconds: dict[str, list[float]] = {}
    size, share = 0, 1.0
    for _ in range(rounds):
        shutil.rmtree(ours, ignore_errors=True)
        found = {"write": seconds_of(lambda: write_shards(ready, ours)), "copy": copy_seconds(ours, theirs)}
        for state in ("cold", "warm"):
            for name, work in {"plain read": plain_read_seconds, "read": epoch_seconds, "copy": copy_seconds}.items():
                if state == "cold":
                    drop_page_cache(ours)
                value = work(ours, theirs) if name == "copy" else work(ours)
                if isinstance(value, tuple):
                    value, share = value
                found[f"{state} {name}"] = value / share if name == "read" else value
        size = sum(path.stat().st_size for path in ours.glob("shard-*"))
        for name, value in found.items():
            seconds.setdefault(name, []).append(value)
    shutil.rmtree(ours)
    shutil.rmtree(theirs)
    median = {name: statistics.median(values) for name, values in seconds.items()}
    rows = ready.total_rows
    return {
        "d": d, "dtype": dtype, "bytes": size, "rows": rows, "seconds": seconds,
        "mb_per_s": {name: size / 1e6 / value for name, value in median.items()},
        "write_over_copy": median["copy"] / median["write"],
        **{f"{state}_read_over_{name}": median[f"{state} {other}"] / median[f"{state} read"]
           for state in ("cold", "warm") for name, other in (("copy", "copy"), ("plain_read", "plain read"))},
        "rows_per_s_cold": rows / median["cold read"], "rows_per_s_engine": BATCH / training_step_seconds(d),
    }  # fmt: skip


def render_results(results: dict[str, Any]) -> str:
    """Return the results as Markdown."""
    cases = results["cases"]
    names = ("write", "copy", "cold read", "cold copy", "cold plain read", "warm read", "warm copy", "warm plain read")
    speeds = [[case_label(one), *(format_digits(one["mb_per_s"][name]) for name in names)] for one in cases]
    ratios = {
        "write ÷ copy": "write_over_copy", "cold read ÷ copy": "cold_read_over_copy",
        "cold read ÷ plain read": "cold_read_over_plain_read", "warm read ÷ copy": "warm_read_over_copy",
        "warm read ÷ plain read": "warm_read_over_plain_read",
    }  # fmt: skip
    rows = [
        [
            case_label(one),
            *(f"{one[key]:.2f}" for key in ratios.values()),
            f"{one['rows_per_s_cold'] / 1e3:,.0f}",
            f"{one['rows_per_s_engine'] / 1e3:,.0f}",
        ]
        for one in cases
    ]
    facts = (
        f"{results['rounds']} rounds, medians; "
        f"{cases[0]['bytes'] / 1e6:,.0f} MB per case; goal: ratios of {TARGET_RATIO}."
    )
    return "\n\n".join([
        "# Activations on disk", describe_machine(results["machine"]), facts, "MB/s:",
        render_table(["", *names], speeds),
        "Ratios, and thousands of rows per second from a cold disk and through one SAE's training step:",
        render_table(["", *ratios, "read, cold", "engine"], rows), f"`{results['command']}`, {results['date']}.",
        "What each column is: the head of benchmarks/disk.py.",
    ]) + "\n"  # fmt: skip


def case_label(one: dict[str, Any]) -> str:
    return f"{one['dtype']}, d = {one['d']:,}"


def main(arguments: list[str] | None = None) -> int:
    options = parser().parse_args(arguments)
    mib, rounds = (3, 1) if options.quick else (options.mib, options.rounds)
    results: dict[str, Any] = {
        "date": f"{datetime.date.today():%Y-%m-%d}", "command": command_line(), "machine": machine_facts(),
        "rounds": rounds, "cases": [],
    }  # fmt: skip
    with tempfile.TemporaryDirectory(dir=options.folder, prefix="bench-disk-") as folder:
        for d in options.d:
            for dtype in ("bfloat16", "float32"):
                results["cases"].append(measure_case(Path(folder), d, dtype, mib, rounds))
                print(f"{case_label(results['cases'][-1])}: done", file=sys.stderr, flush=True)
    print(render_results(results))
    out = options.out
    if out is None and not options.quick:
        out = RESULTS / f"{file_name_of(processor_name())}_{datetime.date.today():%Y%m}_disk"
    if out is not None:
        write_json(out.with_name(f"{out.name}.json"), results)
        write_atomic(out.with_name(f"{out.name}.md"), render_results(results))
    return 0


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        prog="python -m benchmarks.disk", description="Activations on disk against plain copying of the same bytes."
    )
    made.add_argument("--d", nargs="+", type=int, default=[64, 768, 2304], help="widths (default %(default)s)")
    made.add_argument("--mib", type=float, default=512, help="size of each case (default %(default)s)")
    made.add_argument("--rounds", type=int, default=5, help="that count (default %(default)s)")
    made.add_argument("--folder", type=Path, default=Path(), help="on the disk to be measured; the current one")
    made.add_argument("--quick", action="store_true", help="tiny, one round; written only where --out says")
    made.add_argument("--out", type=Path, metavar="PATH", help="results go to PATH.json and PATH.md")
    return made


if __name__ == "__main__":
    sys.exit(main())
