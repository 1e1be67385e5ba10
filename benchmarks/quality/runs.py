"""Train and judge the SAEs that have no result yet; one line per SAE in RESULTS/quality/."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.peer_libraries import missing_reason
from benchmarks.quality.evaluator import EVALUATOR_VERSION, ExportedSAE
from benchmarks.quality.places import PLACES, OpenPlace
from benchmarks.quality.trainers import PEERS, TRAINERS_VERSION, TrainingRequest, train_checked
from benchmarks.result_lines import Lines, load_results, round_to_five_digits, save_results
from benchmarks.sparsity.setups import BATCH, TextPart
from jumpahead import versions
from jumpahead.pipeline import run as pipeline_run
from jumpahead.progress import make_progress
from jumpahead.sae.architectures import ARCHITECTURES
from jumpahead.sae.recipe import Setting, Shape, TrainConfig
from jumpahead.sae.saved import SAE
from jumpahead.storage.digests import digest_json
from jumpahead.storage.layout import sae_key

OURS = "jumpahead"
EXACT = ("se", "delta_lm_loss", "fvu", "l0", "f1")


class QualityRun(NamedTuple):
    """One SAE to train and judge."""

    place: str
    part: TextPart
    tokens: int
    """Training tokens."""
    library: str
    architecture: str
    requested_l0: int
    """Requested L0; 0 if only a penalty is given."""
    rate: str
    """`default`, `tuned`, or `× 3` for a multiple of the library's learning rate in tuning; `recipe` for jumpahead."""
    lr: float | None
    """Learning rate; None for jumpahead, whose recipe sets it."""
    penalty: float | None = None
    """Coefficient of the sparsity penalty of an architecture that takes no L0."""
    seed: int = 0

    def key(self, data_digest: str) -> str:
        """Return the digest of all that the result depends on. data_digest: see `Place.data_digest`."""
        place = PLACES[self.place]
        known = [
            EVALUATOR_VERSION, data_digest, place.site, place.d, place.width, place.held_out, BATCH, self.part,
            self.tokens, self.library, self.architecture, self.requested_l0, self.lr, self.penalty, self.seed,
        ]  # fmt: skip
        return digest_json([*known, *self._training_inputs()])[:16]

    def _training_inputs(self) -> list[Any]:
        """Return the version and the recipe that the library trains with."""
        if self.library != OURS:
            return [TRAINERS_VERSION, library_version(self.library)]
        kind, place = ARCHITECTURES.get(self.architecture), PLACES[self.place]
        shape = Shape(place.d, place.width, Setting("l0", float(self.requested_l0)))
        recipe = kind.recipe_for(TrainConfig(tokens=self.tokens, batch=BATCH), shape, {})
        return [versions.TRAINING_VERSION, kind.revision, recipe._asdict()]


@cache
def library_version(library: str) -> str:
    """Return the installed version of a library; an empty string if it is not installed."""
    try:
        return metadata.version(OURS if library == OURS else PEERS[library].library.package)
    except metadata.PackageNotFoundError:
        return ""


def unavailable(library: str) -> str:
    """Return why a library cannot train here; an empty string if it can."""
    return "" if library == OURS else missing_reason(PEERS[library].library)


def make_missing(
    wanted: Iterable[QualityRun],
    path: Path,
    folder: Path,
    threads: int | None = None,
    say: Callable[[str], None] = print,
) -> Lines:
    """Train and judge the SAEs that are missing in `path`, saving each as soon as it is judged; return all results.

    What cannot be made here (a place's files or a library are missing) is named and left out. folder: for activations
    and weights; it can be deleted.
    """
    folder.mkdir(parents=True, exist_ok=True)
    done = load_results(path)
    for (name, part, tokens), members in grouped(wanted).items():
        place = PLACES[name]
        if missing := place.missing():
            say(f"{name}: {missing} is not here; {len(members)} SAEs are left out.")
            continue
        data = place.data_digest(part, folder)
        left = [one for one in members if one.key(data) not in done]
        for library in dict.fromkeys(one.library for one in left):
            if why := unavailable(library):
                say(f"{name}: {library} is left out: {why}")
        left = [one for one in left if not unavailable(one.library)]
        if not left:
            continue
        say(f"{name}, {part} data, {tokens:,} tokens: {len(left)} SAEs")
        opened = OpenPlace(place, part, tokens, folder, threads)
        for one, found in train(left, opened):
            line = result_line(one, one.key(data), found)
            save_results(path, {line["key"]: line})
            done[line["key"]] = line
            say(describe(line))
    return load_results(path)


def grouped(wanted: Iterable[QualityRun]) -> dict[tuple[str, TextPart, int], list[QualityRun]]:
    """Return the runs by place, part and tokens: those that share stored activations."""
    found: dict[tuple[str, TextPart, int], list[QualityRun]] = {}
    for one in wanted:
        found.setdefault((one.place, one.part, one.tokens), []).append(one)
    return found


def train(members: list[QualityRun], opened: OpenPlace) -> Iterator[tuple[QualityRun, dict[str, float]]]:
    """Train the SAEs at one place; yield each with its metrics and seconds of training."""
    for one in members:
        if one.library != OURS:
            yield one, train_peer(one, opened)
    ours = [one for one in members if one.library == OURS]
    for architecture in dict.fromkeys(one.architecture for one in ours):
        same = [one for one in ours if one.architecture == architecture]
        yield from train_ours(same, opened)


def train_peer(one: QualityRun, opened: OpenPlace) -> dict[str, float]:
    """Train an SAE in another library; return its metrics and seconds of training."""
    place = opened.place
    assert one.lr is not None
    asked = TrainingRequest(one.architecture, place.d, place.width, one.requested_l0, one.lr, one.penalty, one.seed)
    trained = train_checked(PEERS[one.library](), asked, opened.batches)
    return {**opened.evaluate(trained.sae), "seconds": trained.seconds}


def train_ours(members: list[QualityRun], opened: OpenPlace) -> Iterator[tuple[QualityRun, dict[str, float]]]:
    """Train SAEs of one architecture by the public pipeline; yield each with its metrics and seconds of training."""
    architecture, place = members[0].architecture, opened.place
    series = {"architecture": architecture, "l0": sorted({float(one.requested_l0) for one in members})}
    study = opened.study([series], tuple(sorted({one.seed for one in members})))
    pipeline_run.run_study(study, opened.run, until="train", progress=make_progress())
    for one in members:
        key = sae_key(place.site, place.width, architecture, Setting("l0", float(one.requested_l0)), one.seed, 0)
        saved = SAE.load(opened.run.sae_folder(key).path)
        yield one, {**opened.evaluate(export(saved)), "seconds": saved.about["seconds"]}


def export(saved: SAE) -> ExportedSAE:
    """Return the weights of an SAE of jumpahead."""
    p, b_pre = saved.params, saved.b_pre
    b_pre = p["b_dec"].new_zeros(saved.d) if b_pre is None else b_pre
    return ExportedSAE(p["W_enc"], b_pre, p["b_enc"], p["W_dec"], p["b_dec"], lambda pre: saved.arch.activate(p, pre))


def result_line(one: QualityRun, key: str, found: dict[str, float]) -> dict[str, Any]:
    """Return the line of an SAE; numbers that are not finite become None."""
    numbers = {name: round_to_five_digits(value) if name in EXACT else value for name, value in found.items()}
    numbers = {name: None if value != value or abs(value) == float("inf") else value for name, value in numbers.items()}
    return {
        "key": key, **one._asdict(), "version": library_version(one.library), "width": PLACES[one.place].width,
        **numbers, "seconds": round(found["seconds"], 1),
    }  # fmt: skip


def describe(line: dict[str, Any]) -> str:
    """Return one line of progress."""
    shown = {"delta LM loss": "delta_lm_loss", "FVU": "fvu", "F1": "f1", "L0": "l0", "dead": "dead"}
    numbers = ", ".join(f"{name} {line[key]}" for name, key in shown.items() if line.get(key) is not None)
    return f"{line['library']} {line['architecture']} L0 {line['l0']:g}: {numbers}"
