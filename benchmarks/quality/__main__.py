"""`make bench-quality ARGS=…`: SAEs of jumpahead and of other libraries at the same data, judged by one evaluator.

    run       (default) tune learning rates and penalties on development data, then train the SAEs of the table
    tune      the development runs alone
    plan      how many SAEs are there, and how many are missing
    tables    the table of what there is

Results are lines of benchmarks/RESULTS/quality/*.jsonl, one per SAE, and RESULTS/quality/quality.md. What is there is
not trained again, whatever the options select; Ctrl-C is safe at any time. `make` puts the other libraries into
.venv-peers.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path

from benchmarks.quality import places
from benchmarks.quality.page import render_page
from benchmarks.quality.places import PLACES, Budget
from benchmarks.quality.plan import Selection, peer_series, table_runs, tuning_runs
from benchmarks.quality.runs import OURS, QualityRun, library_version, make_missing
from benchmarks.quality.trainers import PEERS
from benchmarks.result_lines import Lines, load_results
from benchmarks.sparsity.setups import SETUPS
from jumpahead.sae.architectures import ARCHITECTURES
from jumpahead.storage.atomic import write_atomic
from jumpahead.training.devices import set_threads

RESULTS = Path(__file__).parents[1] / "RESULTS" / "quality"
QUICK_SETUP = SETUPS["tiny"]._replace(width=512)
QUICK = places.Place("quick", QUICK_SETUP, "layers.1.residual", 256, 512, (8,), (8,), (), 2_000, 60_000)
QUICK_TOKENS = 20 * places.BATCH


def main(arguments: list[str] | None = None) -> int:
    options = parser().parse_args(arguments)
    set_threads(options.threads)
    if options.quick:
        return quick(options.threads)
    development, tested = options.results / "development.jsonl", options.results / "final.jsonl"
    chosen = Selection(*(tuple(getattr(options, name) or ()) for name in Selection._fields))

    def make(wanted: Iterable[QualityRun], path: Path) -> Lines:
        """Make what is selected and missing; return all results."""
        return make_missing(filter(chosen.has, wanted), path, options.folder, options.threads, say)

    if options.command == "plan":
        print(describe_plan(chosen, development, tested, options.folder))
        return 0
    try:
        if options.command in ("run", "tune"):
            only_default = chosen.rates == ("default",)  # then only penalties are missing
            make((one for one in tuning_runs() if not only_default or (one.penalty and one.rate == "× 1")), development)
        if options.command == "run":
            make(table_runs(load_results(development).values()), tested)
    finally:
        if tested.exists():
            page = render_page(load_results(tested))
            write_atomic(options.results / "quality.md", page)
            print(page)
    return 0


def say(text: str) -> None:
    print(text, flush=True)


def describe_plan(chosen: Selection, development: Path, tested: Path, folder: Path) -> str:
    """Return how many SAEs of each place and library there are and how many are missing.

    Those of a library that is not installed cannot be counted: its version is part of their keys.
    """
    folder.mkdir(parents=True, exist_ok=True)
    words: list[str] = []
    absent: dict[str, None] = {}
    for path, wanted in ((development, tuning_runs()), (tested, table_runs(load_results(development).values()))):
        done = load_results(path)
        counts: dict[tuple[str, str], list[int]] = {}
        digests: dict[tuple[str, str], str] = {}
        for one in filter(chosen.has, wanted):
            place, data = PLACES[one.place], (one.place, one.part)
            if place.missing() or not library_version(one.library):
                absent[one.place if place.missing() else one.library] = None
                continue
            digests.setdefault(data, place.data_digest(one.part, folder))
            both = counts.setdefault((one.place, one.library), [0, 0])
            both[0] += one.key(digests[data]) in done
            both[1] += 1
        words += [f"{path.stem}: {place}, {library}: {there} of {all_} SAEs"
                  for (place, library), (there, all_) in counts.items()]  # fmt: skip
    return "\n".join([*words, *(f"{name}: not on this machine" for name in absent)])


def quick(threads: int | None) -> int:
    """Train every architecture of every library for a few steps on the bundled model; print the table, keep nothing."""
    PLACES[QUICK.name] = QUICK._replace(budgets=(Budget(QUICK_TOKENS, (0,)),))
    common = (QUICK.name, "final", QUICK_TOKENS)
    wanted = [QualityRun(*common, OURS, name, 8, "recipe", None) for name in ("jumprelu", "topk")]
    for library, architecture in peer_series():
        kind = PEERS[library]
        penalty = kind.penalties[2] if architecture in kind.needs_penalty else None
        wanted.append(
            QualityRun(
                *common, library, architecture, 8, "default", kind.default_lr(architecture, QUICK.width), penalty
            )
        )
    try:
        with tempfile.TemporaryDirectory() as name:
            print(render_page(make_missing(wanted, Path(name) / "final.jsonl", Path(name), threads, say)))
    finally:
        del PLACES[QUICK.name]
    return 0


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        prog="python -m benchmarks.quality", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument("command", nargs="?", default="run", choices=("run", "tune", "plan", "tables"))
    architectures: list[str] = sorted({*ARCHITECTURES.names(), *(name for _, name in peer_series())})
    choices: dict[str, tuple[Callable[[str], object], Iterable[str] | None]] = {
        "places": (str, PLACES), "libraries": (str, (OURS, *PEERS)), "architectures": (str, architectures),
        "l0": (int, None), "tokens": (int, None), "seeds": (int, None), "rates": (str, ("default", "tuned")),
    }  # fmt: skip
    for name, (kind, given) in choices.items():
        made.add_argument(f"--{name}", nargs="+", type=kind, choices=given and list(given), help="only these")
    made.add_argument("--quick", action="store_true", help="a few steps of every trainer: does everything run?")
    made.add_argument("--threads", type=int, help="CPU threads (default: all cores)")
    made.add_argument("--results", type=Path, default=RESULTS, help="folder of the results (default: RESULTS/quality)")
    made.add_argument(
        "--folder", type=Path, default=Path("runs/quality"), help="weights and activations (default %(default)s)"
    )
    return made


if __name__ == "__main__":
    raise SystemExit(main())
