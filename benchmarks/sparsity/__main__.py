"""`make bench-sparsity ARGS=…`: tuning by the protocol, and the tables of requested L0 and of the verdict.

    tune         train every run of protocol.toml that has no result yet, then print the scores
    requested    every series at every requested L0 on the final text, at 2e6 and 2e7 tokens; then the curve of fixed λ
    tables       what there are results for
    page         the frontier and the page of SAEs that were made here: --places, --tokens and --series say which

Results are lines of benchmarks/RESULTS/sparsity/*.jsonl, one per SAE: what is there is not trained again, here or on
another machine. Ctrl-C is safe at any time.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from benchmarks.result_lines import load_results
from benchmarks.sparsity import final, tune
from benchmarks.sparsity.final import TOKEN_BUDGETS, fixed_lambda_runs, render_page, requested_runs
from benchmarks.sparsity.runs import RequestedRun, train_missing, write_report
from benchmarks.sparsity.setups import SETUPS
from benchmarks.sparsity.tune import load_protocol, protocol_runs, render_scores
from jumpahead.storage.atomic import write_atomic
from jumpahead.training.devices import set_threads

RESULTS = Path(__file__).parents[1] / "RESULTS" / "sparsity"


def main(arguments: list[str] | None = None) -> int:
    options = parser().parse_args(arguments)
    set_threads(options.threads)
    tuning, tested = RESULTS / "tuning.jsonl", RESULTS / "final.jsonl"

    def make(wanted: list[RequestedRun], path: Path) -> None:
        here = [one for one in wanted if not options.places or one.place in options.places]
        train_missing(here, path, options.folder, options.threads)

    rules = load_protocol()
    if options.command == "tune":
        make(protocol_runs(rules), tuning)
    if options.command == "requested":
        for tokens in options.tokens:
            make(requested_runs([tokens], options.series), tested)
            if not options.series:
                make(fixed_lambda_runs(load_results(tested), [tokens]), tested)
    if options.command == "page":
        for tokens in options.tokens:
            for place in options.places or list(SETUPS):
                asked = [one for one in requested_runs([tokens], options.series) if one.place == place]
                print(write_report(asked, options.folder))
    if options.command in ("tune", "tables") and tuning.exists():
        write_atomic(tuning.with_suffix(".md"), tune.render_page(rules, load_results(tuning)))
        print(render_scores(rules, load_results(tuning)))
    if options.command in ("requested", "tables") and tested.exists():
        lines = load_results(tested)
        write_atomic(tested.with_suffix(".md"), render_page(lines))
        print(render_page(lines) + "\n" + final.summary(lines))
    return 0


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        prog="python -m benchmarks.sparsity",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument("command", choices=("tune", "requested", "tables", "page"))
    made.add_argument("--places", nargs="+", help="only these")
    made.add_argument("--series", nargs="+", help="only these")
    made.add_argument(
        "--tokens", nargs="+", type=int, default=list(TOKEN_BUDGETS), help="budgets (default %(default)s)"
    )
    made.add_argument("--threads", type=int, help="CPU threads (default: all cores)")
    made.add_argument(
        "--folder", type=Path, default=Path("runs/sparsity"), help="weights and activations (default %(default)s)"
    )
    return made


if __name__ == "__main__":
    raise SystemExit(main())
