"""Functions on SAEs of any make: load, export, evaluate, compare, push."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from jumpahead.api.arguments import PathLike
from jumpahead.errors import StudyError

if TYPE_CHECKING:
    from jumpahead.progress import Progress
    from jumpahead.publishing.folder import Published
    from jumpahead.sae.saved import SAE


class PushResult(NamedTuple):
    """The repository and the files that `push` has published."""

    url: str | None
    """Address of the repository; None if nothing was uploaded."""
    files: list[Published]
    """The files, with their sizes."""
    card: str
    """The model card."""


def load(sae: PathLike) -> SAE:
    """Return an SAE of any make: of jumpahead, SAELens, Gemma Scope, dictionary_learning, sparsify or llamascopium.

    sae: its folder or its file of weights, or `hf://user/repo/path@revision` for one on the Hugging Face hub. Raises
    ArtefactError, naming file and key, if it is missing, damaged or in no known format.
    """
    from jumpahead.formats import load

    return load(sae)


def export(sae: PathLike, *, to: str, out: PathLike) -> Path:
    """Write an SAE of any make in the format of another library; return the folder, which is `out`.

    to: the format, one of `jumpahead.formats.FORMATS`, such as `saelens`.

    Raises StudyError if the folder has files in it, or if the format has no place for the SAE's activation function.
    """
    from jumpahead.formats import load, save

    return save(load(sae), to, _empty_folder(out))


def evaluate(
    saes: Sequence[PathLike],
    *,
    lm: str | None = None,
    text: str = "stdlib",
    site: str | None = None,
    tokens: int = 100_000,
    overrides: Sequence[str] = (),
    out: PathLike | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Measure SAEs of any make on held-out text, with the metrics of a run; return the evaluations, as JSON values.

    saes: as `load` takes them. lm: `tiny`, a Hugging Face folder or a name on the hub; by default the model that all of
    them were trained for. text: as `text.source` in a study. site: where they are spliced in; by default where each was
    trained. tokens: held-out tokens that are scored. overrides: further keys of the tables `lm`, `text` and `evaluate`
    of a study, such as "lm.dtype=bfloat16". out: a JSON file to write.
    """
    from jumpahead.evaluation.on_text import evaluate_on_text
    from jumpahead.formats import load
    from jumpahead.lm.model import LM
    from jumpahead.progress import make_progress
    from jumpahead.storage.json_files import write_json
    from jumpahead.study.evaluation import parse_evaluation

    loaded = {str(sae): load(sae) for sae in saes}
    tables = {
        "lm": {"model": lm or require_common_lm(loaded.values(), "evaluate")},
        "text": {"source": text},
        "evaluate": {"tokens": tokens},
    }
    config = parse_evaluation(tables, overrides)
    whole, progress = LM.load(config.lm), progress or make_progress()
    found = evaluate_on_text(
        loaded, whole, config.text, site=site, tokens=config.evaluate.tokens, replicates=config.evaluate.replicates,
        packing=config.lm.packing, progress=progress,
    )  # fmt: skip
    result = {"schema": "jumpahead.evaluations/1", "lm": whole.name, "text": config.text.source, "saes": found}
    if out is not None:
        write_json(Path(out), result)
    return result


def require_common_lm(saes: Iterable[SAE], caller: str) -> str:
    """Return the language model that all SAEs were trained for. Raises StudyError if they do not say the same one.

    caller: the function that the error names.
    """
    from jumpahead.lm.sae_location import common_lm

    model = common_lm(saes)
    if model is None:
        raise StudyError(
            f"{caller}: name the language model with --lm: the SAEs do not say one, or say different ones."
        )
    return model


def compare(
    saes: Sequence[PathLike],
    *,
    lm: str | None = None,
    text: str | None = None,
    site: str | None = None,
    tokens: int | None = None,
    overrides: Sequence[str] = (),
    out: PathLike = "runs/compare",
    progress: Progress | None = None,
) -> Path:
    """Put SAEs of any make and the SAEs of runs on one frontier; return the folder, which is `out`.

    `Frontier.load`, `ask`, `show` and `report` take the folder. All SAEs are evaluated on the same held-out text; what
    was evaluated before, in its run or by an interrupted call, is not evaluated again.

    saes: folders of runs, finished or not, and SAEs as `load` takes them; "NAME=PATH" names the series. lm, text,
    tokens: as in `evaluate`; by default those of the first run. site: the only site that is compared; by default those
    of the runs and SAEs. overrides: as in `evaluate`.

    Raises StudyError if a run is of another model, text or site than the first, or `out` holds a run.
    """
    from jumpahead.comparison.basis import AskedFor
    from jumpahead.comparison.compare import compare
    from jumpahead.comparison.members import Named
    from jumpahead.progress import make_progress
    from jumpahead.storage.run_folder import Run

    folder = Run(out)
    if folder.study.exists():
        raise StudyError(f"{out} is the run of a study: name another folder with --out.")
    named = list(dict.fromkeys(Named.parse(sae) for sae in saes))
    with folder.lock():
        asked = AskedFor(lm, text, site, tokens, overrides)
        try:
            compare(named, asked, folder, progress or make_progress())
        finally:
            folder.remove_if_unused()
    return folder.folder


def push(
    source: PathLike,
    repo: str,
    *,
    private: bool = False,
    dtype: str = "float32",
    licence: str = "mit",
    dry_run: bool = False,
    out: PathLike | None = None,
    endpoint: str | None = None,
) -> PushResult:
    """Publish an SAE of any make, or all SAEs of a run, on the Hugging Face hub, in the layout that SAELens loads.

    With a model card: what was trained on what, a table and a figure of the frontier, how to load an SAE.

    source: a run's folder, or an SAE as `load` takes it. repo: `user/repo`, made if it is not there. private: make it
    private. dtype: of the weights, float32, bfloat16 or float16. licence: an identifier that the hub knows. dry_run:
    write the folder, and upload nothing. out: a new or empty folder to keep the files in. endpoint: of another hub.

    Raises StudyError if the hub refuses, or if SAELens has no place for an SAE's activation function.
    """
    import tempfile

    from jumpahead.publishing.folder import WEIGHTS_DTYPES, write_folder
    from jumpahead.publishing.upload import check_repo, upload

    check_repo(repo)
    if dtype not in WEIGHTS_DTYPES:
        raise StudyError(f"push: dtype is '{dtype}': give one of {', '.join(WEIGHTS_DTYPES)}.")
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) if out is None else _empty_folder(out)
        files = write_folder(str(source), folder, repo=repo, dtype=dtype, licence=licence)
        card = (folder / "README.md").read_text(encoding="utf-8")
        url = None if dry_run else upload(folder, repo, is_private=private, endpoint=endpoint)
    return PushResult(url, files, card)


def _empty_folder(out: PathLike) -> Path:
    """Return the path of a folder. Raises StudyError if it is a file, or has files in it."""
    target = Path(out)
    if target.is_file() or (target.is_dir() and any(target.iterdir())):
        raise StudyError(f"{target} exists: name an empty or new folder with --out.")
    return target
