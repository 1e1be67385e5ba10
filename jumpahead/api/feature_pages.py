"""Functions on what the features of a run's SAEs, or of SAEs of any make, respond to: features, features_of_prompt."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jumpahead.api.arguments import PathLike
from jumpahead.api.saes import require_common_lm
from jumpahead.errors import StudyError

if TYPE_CHECKING:
    from jumpahead.features.build import FeaturesConfig
    from jumpahead.progress import Progress
    from jumpahead.sae.saved import SAE

DEFAULT_TOKENS = 200_000
"""Held-out tokens that are searched for examples."""


def features(
    targets: Sequence[PathLike],
    *,
    lm: str | None = None,
    text: str = "stdlib",
    site: str | None = None,
    tokens: int | None = None,
    bias_features: int = 20,
    overrides: Sequence[str] = (),
    with_neuronpedia: bool = False,
    out: PathLike | None = None,
    progress: Progress | None = None,
) -> Path:
    """Write the feature pages of a run, or of SAEs of any make; return the page to open.

    targets: the folder of one run, or SAEs as `load` takes them. Of a run, the study says which SAEs and which text;
    overrides: keys of it, such as "features.saes=all". Of SAEs: lm, text, site and overrides as in `evaluate`; tokens:
    held-out tokens that are searched; bias_features: most frequent features whose bias-likeness is measured.
    with_neuronpedia: also write batches of features under Neuronpedia's names, into neuronpedia/. out: a new folder, by
    default features/ in the run or in the current folder.

    If interrupted, the same call continues.
    """
    from jumpahead.features.build import FeaturesConfig
    from jumpahead.progress import make_progress

    progress = progress or make_progress()
    if len(targets) == 1 and (Path(targets[0]) / "manifest.json").is_file():
        if lm or site or text != "stdlib":
            raise StudyError("features: the study of a run names its language model, text and site: use --set.")
        tokens_override = [] if tokens is None else [f"features.tokens={tokens}"]
        return _features_of_run(Path(targets[0]), [*overrides, *tokens_override], with_neuronpedia, out, progress)
    return _features_of_saes(
        targets,
        lm,
        text,
        site,
        tokens or DEFAULT_TOKENS,
        FeaturesConfig(bias_features, 2_048, with_neuronpedia),
        overrides,
        Path(out or "features"),
        progress,
    )


def features_of_prompt(
    sae: PathLike,
    prompt: str,
    *,
    lm: str | None = None,
    site: str | None = None,
    overrides: Sequence[str] = (),
    out: PathLike | None = None,
) -> dict[str, Any]:
    """Return which features of an SAE of any make fire on each token of a prompt, as JSON values.

    lm, site, overrides: as in `features`. out: an HTML page to write. Labels are those of the SAE's feature pages, if
    they are in its run or in features/ in the current folder.
    """
    from jumpahead.evaluation.on_text import site_of
    from jumpahead.features.pages import render_prompt_page
    from jumpahead.features.prompt import features_on_prompt
    from jumpahead.formats import load
    from jumpahead.lm.model import LM
    from jumpahead.storage.atomic import write_atomic
    from jumpahead.study.evaluation import parse_evaluation

    loaded = load(sae)
    config = parse_evaluation({"lm": {"model": lm or require_common_lm([loaded], "features")}}, overrides)
    key = site_of(str(sae), loaded, site)
    result = features_on_prompt(loaded, LM.load(config.lm), key, prompt, _known_labels(str(sae)))
    if out is not None:
        write_atomic(Path(out), render_prompt_page(result))
    return result


def _known_labels(address: str) -> dict[int, str]:
    """Return the labels of an SAE's features: from its run's feature pages, or from those in the current folder."""
    from jumpahead.features.pages import read_labels
    from jumpahead.storage.layout import FeaturesFolder, RunPaths, features_name

    path = Path(address).resolve()
    parents = list(path.parents)
    if len(parents) > 4 and parents[3].name == "saes":
        run = RunPaths(parents[4])
        if labels := read_labels(run.features, features_name(run.relative(path) if run.folder in parents else address)):
            return labels
    return read_labels(FeaturesFolder(Path("features")), features_name(address))


def _features_of_run(
    run: Path, overrides: Sequence[str], with_neuronpedia: bool, out: PathLike | None, progress: Progress
) -> Path:
    """Write the feature pages of a run, if they are not there; return the page."""
    from jumpahead.api.studies import load_study
    from jumpahead.features.pages import rewrite_page
    from jumpahead.pipeline.features import FeaturesStage
    from jumpahead.pipeline.resources import Resources
    from jumpahead.report import write_report
    from jumpahead.storage.layout import FeaturesFolder
    from jumpahead.storage.run_folder import Run

    target = Run.open(run)
    study = load_study(target.study, overrides, "features")
    if "none" in study.features.saes:
        study = study.model_copy(update={"features": study.features.model_copy(update={"saes": ("middle",)})})
    stage = FeaturesStage(Resources(study, target, progress))
    stage.with_neuronpedia = with_neuronpedia
    if out is not None:
        stage.pages = FeaturesFolder(Path(out))
    if reason := stage.reason_without_pages():
        raise StudyError(f"{run} can have no feature pages: {reason}.")
    with target.lock():
        if stage.is_done() and not with_neuronpedia:
            rewrite_page(stage.pages)
        else:
            stage.run()
        if out is None and target.frontier.exists():
            write_report(target.folder)  # which links to the pages
    return stage.pages.page


def _features_of_saes(
    addresses: Sequence[PathLike],
    lm: str | None,
    text: str,
    site: str | None,
    tokens: int,
    measured: FeaturesConfig,
    overrides: Sequence[str],
    out: Path,
    progress: Progress,
) -> Path:
    """Write the feature pages of SAEs of any make; return the page."""
    from jumpahead.evaluation.on_text import read_held_out, site_of
    from jumpahead.features.build import SAEPoint, build_features, require_features_folder
    from jumpahead.formats import load
    from jumpahead.lm.model import LM
    from jumpahead.storage.digests import digest_json
    from jumpahead.storage.layout import FeaturesFolder, features_name
    from jumpahead.study.evaluation import parse_evaluation
    from jumpahead.versions import FEATURES_VERSION

    folder = FeaturesFolder(out)
    require_features_folder(folder)
    saes = {str(address): load(address) for address in addresses}
    tables = {
        "lm": {"model": lm or require_common_lm(saes.values(), "features")},
        "text": {"source": text},
        "evaluate": {"tokens": tokens},
    }
    config = parse_evaluation(tables, overrides)
    whole = LM.load(config.lm)
    held_out = read_held_out(whole, config.text, config.evaluate.tokens, config.lm.packing, progress)
    points = [
        SAEPoint(
            features_name(name), name.rstrip("/"), site_of(name, sae, site), lambda sae=sae: sae, _known_of(name, sae)
        )
        for name, sae in saes.items()
    ]
    inputs = digest_json(
        [
            FEATURES_VERSION,
            [sae.digest for sae in saes.values()],
            held_out.digest,
            held_out.tokens,
            whole.digest,
        ]
    )
    build_features(
        folder, points, [point.name for point in points], whole, held_out, measured,
        progress, name=" and ".join(sorted({sae.architecture for sae in saes.values()})), source=config.text.source,
        inputs=inputs, device=whole.device,
    )  # fmt: skip
    return folder.page


def _known_of(name: str, sae: SAE) -> dict[str, Any]:
    """Return what the pages show of an SAE: its metrics too if it is a run's."""
    from jumpahead.storage.json_files import read_json
    from jumpahead.storage.layout import SAEFolder

    evaluation = SAEFolder(Path(name)).evaluation
    metrics = read_json(evaluation)["metrics"] if evaluation.is_file() else {}
    about = {"series": sae.architecture, "path": name.rstrip("/")}
    return about | {key: metrics.get(key) for key in ("l0", "delta_lm_loss")}
