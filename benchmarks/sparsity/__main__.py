"""`make bench-sparsity ARGS=…`: tuning runs by the protocol, and the tables of requested L0 and of the verdict.

    tune         every run of protocol.toml that has no result yet, then the scores
    scores       the scores alone

Results are lines of benchmarks/RESULTS/sparsity/*.jsonl: what is there is not trained again. Ctrl-C is safe at any time.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from benchmarks.sparsity import runs, tune
from jumpahead.train import use_threads

RESULTS = Path(__file__).parents[1] / "RESULTS" / "sparsity"


def main(arguments: list[str] | None = None) -> int:
    options = parser().parse_args(arguments)
    use_threads(options.threads)
    rules = tune.protocol()
    wanted = [one for one in tune.wanted(rules) if not options.places or one.place in options.places]
    path = RESULTS / "tuning.jsonl"
    if options.command == "tune":
        runs.make(wanted, path, options.folder, options.threads)
    print(tune.table(wanted, runs.load(path)))
    return 0


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(prog="python -m benchmarks.sparsity", description=__doc__.splitlines()[0])
    made.add_argument("command", choices=("tune", "scores"))
    made.add_argument("--places", nargs="+", help="only these")
    made.add_argument("--threads", type=int, help="CPU threads (default: all cores)")
    made.add_argument(
        "--folder", type=Path, default=Path("runs/sparsity"), help="weights and activations (default %(default)s)"
    )
    return made


if __name__ == "__main__":
    raise SystemExit(main())
