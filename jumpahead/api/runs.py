"""Functions on a run, finished or not: ask, show, report, verify, clean."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from jumpahead.api.arguments import PathLike
from jumpahead.errors import ArtefactError, StudyError

if TYPE_CHECKING:
    from jumpahead.frontier import Answer, Frontier
    from jumpahead.storage.verify import Unused, Verification


def load_frontier(run: PathLike) -> Frontier:
    """Return the frontier of a run, finished or not, or of a frontier.json file.

    Of a run that is not finished it is built, in memory, from the SAEs that are evaluated; `Frontier.progress` counts
    them. Raises ArtefactError if there is neither a frontier.json nor a study, or if a result is damaged.
    """
    from jumpahead.frontier import Frontier
    from jumpahead.storage.json_files import read_json
    from jumpahead.storage.run_folder import Run

    path = Path(run)
    if not path.is_dir():
        return Frontier.load(path)
    folder = Run.open(path)
    saved = Frontier.load(path) if folder.frontier.exists() else None
    study = folder.study.read_text(encoding="utf-8") if folder.study.is_file() else ""
    if not study or (saved and saved.progress is None and saved.data["study"] == study):
        return saved or Frontier(read_json(folder.frontier))
    from jumpahead.pipeline.unfinished import unfinished_frontier

    try:
        now = Frontier(unfinished_frontier(folder), folder.folder)
    except (StudyError, ValueError):  # study.toml cannot be read: what is saved is all there is
        return saved or Frontier(read_json(folder.frontier))
    return saved if saved and not now.points() else now


def ask(run: PathLike, **question: Any) -> Answer:
    """Return the cost of each series of a run at a loss, L0 or other metric. question: keywords of `Frontier.ask`.

    Raises ArtefactError if no SAE of the run is evaluated yet.
    """
    from jumpahead.storage.artefacts import translate_foreign_content

    with translate_foreign_content(_frontier_path(run)):
        frontier = load_frontier(run)
        if frontier.progress and not frontier.points():
            raise ArtefactError(
                f"{run}: no SAE is evaluated yet, {frontier.progress['trained']} of {frontier.progress['saes']} are "
                f"trained. {continue_sentence(run)}"
            )
        return frontier.ask(**question)


def show(run: PathLike) -> None:
    """Print the frontier of a run in the terminal."""
    from jumpahead.report import terminal
    from jumpahead.storage.artefacts import translate_foreign_content

    with translate_foreign_content(_frontier_path(run)):
        frontier = load_frontier(run)
        terminal.print_frontier(frontier)
        terminal.print_training(frontier)
    if frontier.progress:
        print(f"\n{continue_sentence(run)}")


def report(run: PathLike, *, pdf: bool = False) -> Path:
    """Write the page of a run again; return its path. Of a run that is not finished, write frontier.json too.

    pdf: also write its figures for a paper, as PDF and PNG, into the run's folder figures/ (needs the extra `figures`).
    """
    from jumpahead.report import write_report
    from jumpahead.storage.artefacts import translate_foreign_content
    from jumpahead.storage.json_files import write_json
    from jumpahead.storage.layout import RunPaths

    with translate_foreign_content(_frontier_path(run)):
        frontier = load_frontier(run)
        if frontier.progress:
            write_json(RunPaths(run).frontier, frontier.data, indent=None)
        if pdf:
            from jumpahead.report.paper_figures import write_paper_figures

            write_paper_figures(frontier.data, RunPaths(run))
        return write_report(Path(run))


def _frontier_path(run: PathLike) -> Path:
    """Return the path of the frontier.json of a run, or of the file itself."""
    from jumpahead.storage.layout import RunPaths

    return RunPaths(run).frontier if Path(run).is_dir() else Path(run)


def verify(run: PathLike) -> Verification:
    """Read every file of a run that carries a checksum; return the files that are damaged and the SAEs that miss."""
    from jumpahead.storage.verify import verify_run

    return verify_run(Path(run))


def clean(run: PathLike, *, dry_run: bool = False) -> list[Unused]:
    """Remove what the study of a run does not refer to, such as SAEs that were set aside; return what was removed.

    dry_run: only return what would be removed.
    """
    from jumpahead.storage.run_folder import Run
    from jumpahead.storage.verify import remove_unused, unused_results

    target = Run.open(run)
    with target.lock():
        found = unused_results(target)
        if not dry_run:
            for unused in found:
                remove_unused(unused, target)
    return found


def question_example(run: PathLike) -> str:
    """Return a question to a run, as options of `jumpahead ask`: by FVU where no loss compares its SAEs."""
    frontier = load_frontier(run)
    has_loss = any(panel["fidelity"] == "delta_lm_loss" for panel in frontier.data["panels"])
    return "--delta-loss 0.2" if has_loss else "--fvu 0.2"


def continue_sentence(run: PathLike) -> str:
    """Return the sentence that says how a run is continued."""
    from jumpahead.storage.layout import RunPaths

    paths = RunPaths(run)
    return f"`jumpahead run {paths.study} --out {paths.folder}` continues."
