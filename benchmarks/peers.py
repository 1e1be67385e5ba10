"""The speed and memory of jumpahead and of other SAE libraries at the same work, on this machine.

    make bench-peers                                  one training step of every library, by turns; and its memory
    make bench-peers ARGS=--quick                     the same at a tiny shape, once: does everything run?
    make bench-peers ARGS=--check                     does every library's step train at all?
    make bench-peers ARGS=--whole-runs                from text to nine trained SAEs

`make` puts the other libraries, in the versions of peers-requirements.txt, into .venv-peers; where one is absent, its
rows say so. Every library takes its own step through its own public classes, with its own optimizer (peer_steps.py).
All get the same batches and start from the same weights, hence from about the same L0, which is printed as each
library's own encoder gives it, before and after. Timing goes by turns (rounds.py).

What the tables say:

    products   peers: `default`, the float32 matmul precision that the library trains with; `medium`, the same SAE after
               torch.set_float32_matmul_precision("medium"), which on most CPUs goes to oneDNN. Ours: `default`, the
               kernels as they choose themselves; `float32`, with no narrower product.
    state      `trained`: at the true dictionary, thresholds where L0 is as asked, at the end of the recipe's schedule;
               `fresh`: as the recipe initialises, in its first steps, where the support is largest; `settled`: after
               a whole run of 400 steps on this data, thresholds and bandwidth as training left them.
    ε          JumpReLU's bandwidth: `recipe's` is that of the default recipe.
    entries    of the support, per token: |S|, ours alone. It is not L0.
    × default  the fastest peer's median over this row's; × medium likewise, with `medium` for the peers.
    ÷ product  this row's median over that of the fastest encoder product alone.

Results go to RESULTS/<cpu>_<yyyymm>_peers.json and .md; a later call replaces the tables that it measures again.
"""

from __future__ import annotations

import argparse
import datetime
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks import interleaved_timing, peer_libraries, whole_runs
from benchmarks.interleaved_timing import CASES, Case, Shape, check_training, show_progress, speed_ratios
from benchmarks.jumpahead_sae import JumpaheadSAE
from benchmarks.library_sae import COMPARED_ARCHITECTURES
from benchmarks.machine import command_line, describe_machine, file_name_of, machine_facts, processor_name
from benchmarks.memory import measure_in_subprocess
from benchmarks.peer_libraries import missing_reason, peers_with
from benchmarks.synthetic import make_data
from benchmarks.table import format_digits, render_table
from benchmarks.whole_runs import RunSettings
from jumpahead.storage.atomic import write_atomic
from jumpahead.storage.json_files import write_json

RESULTS = Path(__file__).parent / "RESULTS"
DEFAULT_SHAPES = (Shape(256, 8192, 2048, 32), Shape(768, 16384, 2048, 50), Shape(2304, 16384, 1024, 64))
BATCHES = 16
TINY = Shape(64, 1024, 256, 8)
PACKAGES = ("transformer-lens", "nnsight", *(peer.package for peer in peer_libraries.PEERS))


def main(arguments: list[str] | None = None) -> int:
    options = parser().parse_args(arguments)
    if options.check:
        return 0 if check_training() else 1
    out = options.out
    if out is None and not options.quick:
        out = RESULTS / f"{file_name_of(processor_name())}_{datetime.date.today():%Y%m}_peers"
    results = load_results(out)
    print(describe_machine(machine_facts()), flush=True)
    for part, section, text in measure_parts(options):
        results[part] = merge_section(results.get(part), section)
        print(f"\n{text}", flush=True)
        if out is not None:
            write_results(out, results)
    if out is not None:
        print(f"\n{out}.md")
    return 0


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        prog="python -m benchmarks.peers", description="jumpahead and other SAE libraries at the same work."
    )
    made.add_argument(
        "--shapes", nargs="+", type=parse_shape, metavar="d,M,B,L0", help="the shapes of steps; three by default"
    )
    made.add_argument("--architectures", nargs="+", choices=COMPARED_ARCHITECTURES, help="all by default")
    made.add_argument("--rounds", type=int, default=7, help="turns of every lane that count (default %(default)s)")
    made.add_argument("--no-memory", action="store_true", help="times only")
    made.add_argument("--quick", action="store_true", help="a tiny shape, one round; written only where --out says")
    made.add_argument("--check", action="store_true", help="whether every library's step makes the error fall")
    made.add_argument("--out", type=Path, metavar="PATH", help="results go to PATH.json and PATH.md")
    runs = made.add_argument_group("whole runs, instead of steps")
    runs.add_argument("--whole-runs", action="store_true", help="from text to nine trained SAEs")
    runs.add_argument("--tokens", type=int, default=500_000, help="per SAE (default %(default)s)")
    runs.add_argument("--lm", default="tiny", help="a Hugging Face folder, or tiny (the default): the bundled one")
    runs.add_argument("--block", type=int, default=1, help="the block whose output is read, from 0 (default 1)")
    runs.add_argument("--text", default="stdlib", help="a text file, or stdlib (the default): Python's own library")
    runs.add_argument("--width", type=int, default=4096, help="features per SAE (default %(default)s)")
    runs.add_argument("--l0", nargs="+", type=int, default=[8, 16, 32], help="the sparsities (default 8 16 32)")
    return made


def parse_shape(text: str) -> Shape:
    """Parse a shape such as `256,8192,2048,32`."""
    try:
        return Shape(*map(int, text.split(",")))
    except (ValueError, TypeError):
        raise argparse.ArgumentTypeError(f"{text}: write d,M,B,L0, for instance 256,8192,2048,32") from None


def measure_parts(options: argparse.Namespace) -> Iterator[tuple[str, dict[str, Any], str]]:
    """Yield (part, its section so far, the text of what is new in it)."""
    where = provenance()
    if options.whole_runs:
        section = where | whole_runs.measure(run_settings(options))
        yield "whole_runs", section, render_whole_runs(section)
        return
    shapes = options.shapes or ((TINY,) if options.quick else DEFAULT_SHAPES)
    cases = [case for case in CASES if case.architecture in (options.architectures or COMPARED_ARCHITECTURES)]
    section = where | {"cases": []}
    for one in shapes:
        data = make_data(one.d, one.width, one.tokens, one.l0, count=BATCHES)
        for case in cases:
            found = interleaved_timing.measure(one, case, 1 if options.quick else options.rounds, data)
            section["cases"].append(found | {"ratios": speed_ratios(found)})
            yield "steps", section, render_case(section["cases"][-1])
    if not options.no_memory:
        section = where | {"rows": measure_memory(shapes, cases[:1] if options.quick else cases)}
        yield "memory", section, render_memory(section)


def run_settings(options: argparse.Namespace) -> RunSettings:
    """Return the settings of whole runs from the options."""
    asked = RunSettings(options.lm, options.block, options.text, options.width, tuple(options.l0), options.tokens)
    return asked._replace(width=512, tokens=20 * whole_runs.BATCH, l0=(8,), held_out=2_000) if options.quick else asked


def measure_memory(shapes: tuple[Shape, ...], cases: list[Case]) -> list[dict[str, Any]]:
    """Measure the memory of every library; return a row per shape, architecture and library."""
    rows = []
    for one in shapes:
        for case in cases:
            if case.dead:
                continue
            for kind in (JumpaheadSAE, *peers_with(case.architecture)):
                show_progress(f"memory: {kind.title}, {case}, {one}")
                why = missing_reason(kind)
                named = {"library": kind.title, "case": str(case), "shape": one._asdict()}
                rows.append(
                    named | ({"unavailable": why} if why else measure_in_subprocess(kind.title, case.architecture, one))
                )
    show_progress("")
    return rows


# ---------------------------------------------------------------------------------------------- results


def provenance() -> dict[str, Any]:
    """Return date, command, machine and versions of a measurement."""
    found = machine_facts(PACKAGES)
    return {"date": f"{datetime.date.today():%Y-%m-%d}", "command": command_line(), "machine": found}


def load_results(out: Path | None) -> dict[str, Any]:
    """Return the stored results; an empty file's if there are none."""
    path = None if out is None else out.with_name(out.name + ".json")
    return json.loads(path.read_text(encoding="utf-8")) if path and path.exists() else {"schema": "jumpahead.peers/1"}


def merge_section(before: dict[str, Any] | None, section: dict[str, Any]) -> dict[str, Any]:
    """Merge a section with the earlier cases that it does not measure again; each case keeps its command."""
    if "cases" not in section:
        return section
    made = {"date": section["date"], "command": section["command"]}
    new = [found | made for found in section["cases"]]
    names = {(found["case"], tuple(found["shape"].values())) for found in new}
    kept = [f for f in (before or {}).get("cases", []) if (f["case"], tuple(f["shape"].values())) not in names]
    return section | {"cases": sorted(kept + new, key=lambda found: tuple(found["shape"].values()))}


def write_results(out: Path, results: dict[str, Any]) -> None:
    """Write PATH.json, and PATH.md made from it."""
    out.parent.mkdir(parents=True, exist_ok=True)
    write_json(out.with_name(out.name + ".json"), results)
    write_atomic(out.with_name(out.name + ".md"), render_page(results))


def render_page(results: dict[str, Any]) -> str:
    """Return all results as Markdown."""
    parts = ["# jumpahead and other SAE libraries", LEGEND]
    for part, title in (("steps", "Steps"), ("memory", "Memory"), ("whole_runs", "Whole runs")):
        if part in results:
            parts += [f"## {title}", describe_provenance(results[part]), *render_section(part, results[part])]
    return "\n\n".join(parts) + "\n"


LEGEND = "What the tables say:" + (__doc__ or "").partition("What the tables say:")[2].partition("\n\nResults go")[0]


def render_section(part: str, section: dict[str, Any]) -> list[str]:
    """Return the tables of one part."""
    if part == "steps":
        return [render_case(found) for found in section["cases"]]
    return [render_memory(section) if part == "memory" else render_whole_runs(section)]


def describe_provenance(section: dict[str, Any]) -> str:
    """Return hardware, versions, command and date as a sentence."""
    versions = ", ".join(f"{name} {version}" for name, version in section["machine"]["versions"].items())
    return f"{describe_machine(section['machine'])}. {versions}. `{section['command']}`, {section['date']}."


HEADINGS = ("library", "products", "state", "ε", "L0", "entries", "median ms", "min", "max")
RATIOS = ("× default", "× medium", "÷ product")


def render_case(found: dict[str, Any]) -> str:
    """One architecture at one shape: every lane, ours with their ratios."""
    by_lane = {(one["products"], one.get("state"), one.get("bandwidth")): one for one in found["ratios"]["ours"]}
    rows = []
    for row in found["rows"]:
        ratio = (
            by_lane.get((row["products"], row.get("state"), row.get("bandwidth"))) if row["kind"] == "ours" else None
        )
        rows.append([*variant_cells(row), *ratio_cells(ratio)])
    title = f"### {found['case']}, {Shape(**found['shape'])}"
    error = f"Largest error of a `medium` product here: {found['medium_error']:.0e} of ‖x‖·‖w‖."
    kernels = {row["products"]: row["kernels"] for row in found["rows"] if "kernels" in row}
    named = " ".join(f"Ours, `{products}`: {name}." for products, name in kernels.items())
    counted = f"Turns counted: {found['rounds']} of each lane, after {found['warmup']} that are not."
    if "command" in found:
        counted = f"`{found['command']}`, {found['date']}. {counted}"
    return "\n\n".join([title, render_table((*HEADINGS, *RATIOS), rows), f"{counted} {error} {named}"])


def variant_cells(row: dict[str, Any]) -> list[str]:
    if "unavailable" in row:
        return [f"{row['library']}: {row['unavailable']}", row["products"], *[""] * (len(HEADINGS) - 2)]
    bandwidth = row.get("bandwidth", "")
    l0 = " → ".join(f"{value:.1f}" for value in row.get("l0", []))
    entries = format_digits(row["entries"]) if "entries" in row else ""
    times = [format_digits(row[key]) for key in ("median_ms", "min_ms", "max_ms")]
    return [row["library"], row["products"], row.get("state", ""), str(bandwidth), l0, entries, *times]


def ratio_cells(ratio: dict[str, Any] | None) -> list[str]:
    if ratio is None:
        return ["", "", ""]
    return [format_digits(ratio[key]) for key in ("best_peer_default", "best_peer_medium", "over_fastest_product")]


def render_memory(section: dict[str, Any]) -> str:
    """Return the table of peak memory that an SAE in training adds."""
    rows = []
    for row in section["rows"]:
        if "unavailable" in row:
            cells = [f"{row['library']}: {row['unavailable']}", "", ""]
        else:
            cells = [row["library"], format_digits(row["bytes"] / 2**20), format_digits(row["bytes_per_parameter"])]
        rows.append([*cells, row["case"], str(Shape(**row["shape"]))])
    return render_table(("library", "peak, MiB", "bytes per parameter", "architecture", "shape"), rows)


def render_whole_runs(section: dict[str, Any]) -> str:
    """Return the table of whole runs."""
    asked = section["asked"]
    rows = []
    for row in section["rows"]:
        if "unavailable" in row:
            rows.append([f"{row['library']}: {row['unavailable']}", row["stage"], "", "", ""])
            continue
        l0 = ", ".join(f"{one['name']}: {one['l0']:.3g}" for one in row.get("saes", []))
        imports = format_digits(row.get("import_seconds"))
        rows.append([row["library"], row["stage"], format_digits(row["seconds"]), imports, l0])
    text = (
        f"{asked['saes']} SAEs of width {asked['width']:,}: JumpReLU, TopK and Gated, each at "
        f"L0 {', '.join(map(str, asked['l0']))} or what the library takes instead; {asked['tokens']:,} tokens each, "
        f"batches of {asked['batch']:,}, block {asked['block']} of {asked['lm']}, text {asked['text']}, contexts of "
        f"{asked['context']} tokens. Seconds are those of the whole process, imports included. L0 is as each library "
        f"has it at the end; ours is evaluated on {asked['held_out']:,} held-out tokens."
    )
    return f"{text}\n\n{render_table(('library', 'to', 'seconds', 'of which imports', 'L0'), rows)}"


if __name__ == "__main__":
    sys.exit(main())
