"""A study, end to end: tokens → activations → SAEs on one stream → evaluation → frontier → report.

What is done is kept: every SAE is keyed by its own inputs, so adding a sparsity or a seed to a finished study trains
that one alone.
"""

from __future__ import annotations

import contextlib
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jumpahead import diagnostics, store
from jumpahead.activations import WITHOUT_LM
from jumpahead.activations.origins import ORIGINS
from jumpahead.errors import ArtefactError, DataError, JumpaheadError, StudyError, nearest
from jumpahead.lm import fingerprint
from jumpahead.lm.sites import parse_site
from jumpahead.nouns import Nouns
from jumpahead.progress import Progress, progress_on
from jumpahead.sae.architectures import ARCHITECTURES
from jumpahead.sae.recipe import Recipe, Shape, digested
from jumpahead.study.schema import Series, Study, Unit, to_toml, units
from jumpahead.text.contexts import SPLITS, Contexts, Split, tokenize_into
from jumpahead.text.documents import documents
from jumpahead.text.sources import source_of

if TYPE_CHECKING:
    from jumpahead.activations.base import Activations, Scale
    from jumpahead.activations.origins.live import Live
    from jumpahead.activations.origins.shards import InputsOf, Part
    from jumpahead.evaluation import HeldOut, HeldOutRows, Measured
    from jumpahead.lm.config import LMConfig
    from jumpahead.lm.model import LM
    from jumpahead.sae.base import SAE
    from jumpahead.text.source import Source
    from jumpahead.training import Job

VERSION = 3
"""Of what training computes: raised when the same study would give other SAEs."""
REFERENCE = 256
"""The d at which recipes are compared: an SAE's own follows from its site."""
SAMPLE = 8192
"""Activations that initialisation looks at."""
UNIT = 1e-3
"""How far norms of rows of W_dec may be from 1 in an SAE to start from."""
PATIENCE = 3600.0
"""Seconds that a part of a harvest waits for the process that tokenises."""


def run(study: Study, target: store.Run, until: str | None = None, progress: Progress | None = None) -> None:
    """Do whatever of the study is not done in the run `target`; stop after the stage `until`."""
    progress = progress or progress_on()
    work = Work(study, target, progress)
    stages: dict[str, Callable[[], None]] = {
        "tokens": work.tokenize, "activations": work.harvest, "train": work.train, "evaluate": work.evaluate,
    }  # fmt: skip
    if until is not None and until not in stages:
        raise StudyError(f"there is no stage '{until}' to stop after.{nearest(until, list(stages))}")
    for name, stage in stages.items():
        stage()
        if name == until:
            return
    work.report()


def harvest(study: Study, target: store.Run, part: Part, progress: Progress | None = None) -> bool:
    """Write this process's part of the study's activations to disk; True where all of them are there then.

    Any number of processes may do so at once, on any machine that shares the run's folder: who comes first tokenises.
    """
    progress = progress or progress_on()
    if study.activations.origin != "shards":
        raise StudyError(
            f"activations.origin = '{study.activations.origin}' keeps nothing on disk: say "
            "--set activations.origin=shards, here and when the study is run."
        )
    work = Work(study, target, progress)
    with target.lock(PATIENCE, lambda: progress.say(f"waiting for the process that writes {target.folder} …")):
        target.begin(to_toml(study))
        work.tokenize()
    return work.keep(part)


class Work:
    """One study in one run's folder. The LM, the text and the activations are loaded when first needed."""

    def __init__(self, study: Study, target: store.Run, progress: Progress):
        self.study, self.target, self.progress = study, target, progress
        self.units = units(study)
        self._starts: dict[str, tuple[SAE, list[Any]]] = {}

    # ------------------------------------------------------------------------------------------ what SAEs depend on

    @cached_property
    def lm_config(self) -> LMConfig:
        """The LM that activations are of: the study's, with what `fast` was decided to be in this run."""
        config = self.study.lm
        if config.dtype != "fast" or not self.needs_lm:
            return config
        if self.remembered:
            return config.model_copy(update={"dtype": self.remembered["dtype"]})
        inputs = fingerprint.of_precision(config)
        if not store.has_inputs(self.target.precision, inputs):
            from jumpahead.lm import precision
            from jumpahead.training import use_threads

            use_threads(self.study.train.threads)
            found = precision.decide(config, self.text, self.study.activations.sites)
            store.write_json(self.target.precision, {"inputs": inputs, **found._asdict()})
            self.progress.say(f"LM: {found}")
        return config.model_copy(update={"dtype": store.read_json(self.target.precision)["dtype"]})

    @cached_property
    def lm(self) -> LM:
        """As far as activations are read from it; checked when this run first loads it."""
        from jumpahead.lm import checks
        from jumpahead.lm.model import LM
        from jumpahead.training import use_threads

        use_threads(self.study.train.threads)
        config, sites = self.lm_config, self.study.activations.sites
        inputs = fingerprint.of_use(config, sites)
        if store.has_inputs(self.target.checks, inputs):
            return self._isolated(LM.load(config, only=sites), sites)
        lm = LM.load(config)
        checked = checks.examine(lm, sites)
        store.write_json(self.target.checks, {"inputs": inputs, "class": type(lm.model).__name__, "checked": checked})
        self.progress.say(f"LM: {lm.name} ({type(lm.model).__name__}), {len(checked)} checks passed")
        return self._isolated(lm, sites)

    @cached_property
    def whole_lm(self) -> LM:
        """What SAEs are spliced into: in the study's dtype, in float32 where that is `fast`."""
        from jumpahead.lm.model import LM
        from jumpahead.training import use_threads

        use_threads(self.study.train.threads)
        return self._isolated(LM.load(self.study.lm), ())

    def _isolated(self, lm: LM, sites: Sequence[str]) -> LM:
        """The LM; StudyError where it should keep the documents of a context apart and does not."""
        if self.study.lm.packing == "isolated":
            from jumpahead.lm import isolation

            isolation.check(lm, sites)
        return lm

    @cached_property
    def text(self) -> Source:
        """Where the text comes from; what can be read only once is in the run's folder."""
        source = source_of(self.study.text, self.target.folder)
        source.prepare(self.progress)
        return source

    @cached_property
    def source(self) -> str:
        """Digest of the LM and the text, known without loading either; of what stands for them where there is no LM."""
        if not self.needs_lm:
            return ORIGINS.get(self.study.activations.origin).source(self.study.activations, self.target.activations)
        if self.remembered:
            return self.remembered["source"]
        lm, settings = self.lm_config, fingerprint.settings
        known = [self.model, settings(lm), fingerprint.of_text(self.text), settings(self.study.text)]
        known += [self.template] if self.template is not None else []
        return store.digest_json(known)

    @cached_property
    def model(self) -> str:
        """Digest of the LM's files."""
        return fingerprint.of_model(self.study.lm)

    @cached_property
    def remembered(self) -> dict[str, Any] | None:
        """What the tokens on disk were made from, where the model or the text is not on this machine any more.

        None where both are here. StudyError or DataError where one is not, and there are no tokens of it either.
        """
        lm, path = self.study.lm, self.target.made_from
        known = store.read_json(path) if path.exists() else {}
        is_ours = [known.get("lm"), known.get("text")] == self._settings
        try:
            is_folder = fingerprint.model_folder(lm.model) is not None
            files = [self.model, self.template] if is_folder else []
            is_ours = is_ours and (not is_folder or files == [known["model"], known.get("template")])
            fingerprint.of_text(self.text)
        except (StudyError, DataError):
            if is_ours:
                return known
            raise
        return known if is_ours and known["is_folder"] and not is_folder else None

    @property
    def _settings(self) -> list[dict[str, Any]]:
        return [fingerprint.settings(self.study.lm), fingerprint.settings(self.study.text)]

    @property
    def template(self) -> dict[str, str] | None:
        """Digests of the chat template's files, where there are conversations to render."""
        return fingerprint.of_template(self.study.lm) if self.study.text.chat else None

    def _remember(self) -> None:
        """Write down what the tokens were made from, for when it is gone."""
        if self.remembered:
            return
        lm, text = self._settings
        is_folder = fingerprint.model_folder(self.study.lm.model) is not None
        known = {"lm": lm, "text": text, "model": self.model, "dtype": self.lm_config.dtype, "is_folder": is_folder,
                 "source": self.source, "tokens": self.tokens_inputs,
                 **({"template": self.template} if self.template is not None else {})}  # fmt: skip
        path = self.target.made_from
        if not path.exists() or store.read_json(path) != known:
            store.write_json(path, known)

    def kept(self, sites: Sequence[str]) -> str:
        """Digest of what activations on disk at these sites are activations of."""
        return store.digest_json([self.source, sorted(sites), self.study.activations.dtype])

    def inputs(self, unit: Unit) -> str:
        """Digest of everything the trained SAE depends on."""
        study = self.study
        activations = study.activations.model_dump(exclude={"sites", "origin"})
        options = activations["options"]  # how and where they are kept changes no byte of them
        activations["options"] = {} if self.needs_lm else {key: options[key] for key in options if key != "source"}
        origin = "lm" if self.needs_lm else study.activations.origin
        kind = ARCHITECTURES.get(unit.series.architecture)
        start = {"start": store.digest_json(self._started_from(unit.series))} if unit.series.start_from else {}
        return store.digest_json({
            "version": VERSION, "source": self.source, "activations": activations, "origin": origin,
            "site": unit.site, "width": unit.width, "architecture": unit.series.architecture,
            "options": kind.Options(**unit.series.options).model_dump(), "setting": unit.setting,
            "seeds": [unit.sae_seed, unit.stream_seed],
            "tokens": study.train.tokens, "batch": study.train.batch,
            "recipe": digested(self._recipe(unit, REFERENCE)), **start,
            **({"revision": kind.revision} if kind.revision and unit.setting.kind == "l0" else {}),
        })  # fmt: skip

    def start(self, series: Series) -> tuple[SAE, list[Any]]:
        """The SAE that those of a series begin as, and what is digested of it; StudyError where that cannot be."""
        assert series.start_from is not None
        refused = f"series '{series.name}' cannot start from {series.start_from}"
        if series.start_from not in self._starts:
            from jumpahead.sae.base import SAE

            path = Path(series.start_from).expanduser()
            try:
                found = SAE.load(path)
            except ArtefactError as exc:
                raise StudyError(f"{refused}: {exc}") from exc
            norms = found.params["W_dec"].norm(dim=1)
            if not bool((norms - 1).abs().max() < UNIT):
                raise StudyError(
                    f"{refused}, an {found!r}: rows of W_dec have norms from {norms.min():.3g} to {norms.max():.3g}, "
                    "and training keeps them at 1: scale rows, W_enc, biases and thresholds accordingly."
                )
            known = [store.digest_file(store.SAEFolder(path).weights), found.about.get("knob")]
            self._starts[series.start_from] = found, known
            self._remember_start(series.start_from, known)
        found, known = self._starts[series.start_from]
        for fits, what in (
            (found.architecture == series.architecture, f"the series is {series.architecture}"),
            (self.study.sae.width == (found.width,), f"sae.width must be {found.width} alone"),
        ):
            if not fits:
                raise StudyError(f"{refused}, an {found!r}: {what}.")
        return found, known

    @cached_property
    def _starts_known(self) -> dict[str, list[Any]]:
        """Of SAEs that series of this run were started from, what is digested of each."""
        return store.read_json(self.target.starts) if self.target.starts.exists() else {}

    def _started_from(self, series: Series) -> list[Any]:
        """What is digested of the SAE that those of a series begin as, or began as where it is gone."""
        path = str(series.start_from)
        is_gone = not Path(path).expanduser().exists()
        return self._starts_known[path] if is_gone and path in self._starts_known else self.start(series)[1]

    def _remember_start(self, path: str, known: list[Any]) -> None:
        """Write it down, in a run that is there: SAEs that are done are known by it."""
        if self._starts_known.get(path) != known and self.target.manifest.exists():
            self._starts_known[path] = known
            store.write_json(self.target.starts, self._starts_known)

    def _recipe(self, unit: Unit, d: int) -> Recipe:
        kind, shape = ARCHITECTURES.get(unit.series.architecture), Shape(d, unit.width, unit.setting)
        return kind.recipe_for(self.study.train, shape, unit.series.recipe)

    def evaluation_inputs(self, unit: Unit) -> str:
        """Digest of everything its evaluation depends on."""
        known = [VERSION, self.inputs(unit), self.study.evaluate.model_dump()]
        if self.why_no_loss:
            known.append("measured without the LM")
        elif self.lm_config.dtype not in (self.study.lm.dtype, "float32"):
            known.append("measured in float32")
        return store.digest_json(known)

    # ------------------------------------------------------------------------------------------ stages

    @property
    def needs_lm(self) -> bool:
        return self.study.activations.origin not in WITHOUT_LM

    @property
    def nouns(self) -> Nouns:
        """What the activations are called."""
        return Nouns(of_rows=not self.needs_lm)

    def tokenize(self) -> None:
        """Tokens of both splits on disk."""
        if self.needs_lm:
            if not self._tokens_done(self.target.tokens):
                self._make_tokens()
            self._remember()

    @cached_property
    def tokens_inputs(self) -> str:
        """Digest of everything that tokens depend on: less than SAEs do."""
        if self.remembered:
            return self.remembered["tokens"]
        return fingerprint.of_tokens(self.study.lm, self.text)

    def _tokens_done(self, folder: Path) -> bool:
        return all(store.has_inputs(folder / split / "source.json", self.tokens_inputs) for split in SPLITS)

    def _make_tokens(self) -> None:
        """From the text, or from a run beside this one that has the same."""
        folder = self.target.tokens
        for split in SPLITS:
            store.remove(folder / split / "source.json")
        shared = self._shared_tokens()
        if shared is not None:
            for split in SPLITS:
                store.remove(folder / split)
                store.share(shared / split, folder / split, without="source.json")
            made = {split: Contexts.load(folder / split) for split in SPLITS}
            self.progress.say(f"tokens: those of {shared.parent.name}, which has the same text")
        else:
            made = self._tokenized(folder)
        for split, contexts in made.items():
            store.write_json(folder / split / "source.json", {"inputs": self.tokens_inputs})
            self.progress.say(
                f"{split.replace('_', '-')} text: {len(contexts.identities):,} documents, "
                f"{contexts.rows:,} tokens to {'train on' if split == 'train' else 'measure on'}"
            )

    def _shared_tokens(self) -> Path | None:
        """The folder of the same tokens in a run beside this one; a damaged one is passed over."""
        for folder in sorted(self.target.folder.resolve().parent.glob("*/tokens")):
            if self._tokens_done(folder):
                with contextlib.suppress(ArtefactError):
                    return folder if all(Contexts.load(folder / split) for split in SPLITS) else None
        return None

    def _tokenized(self, folder: Path) -> dict[Split, Contexts]:
        config, total, lm = self.study.text, self.text.total, self.lm
        if total is None and config.max_tokens is None:
            self.progress.say(f"text.max_tokens is not given: all of '{config.source}' is read.")
        unit, size = ("bytes", total) if total else ("tokens", config.max_tokens or 0)
        with self.progress.phase("tokenising", size, unit) as phase:
            return tokenize_into(
                folder, documents(self.text), lm, self.tokens_inputs, held_out=config.held_out,
                max_tokens=config.max_tokens, packing=self.study.lm.packing,
                ends_with_training=self.text.ends_with_training,
                progressed=lambda tokens: phase.update(self.text.done if total else tokens),
            )  # fmt: skip

    def _contexts(self, split: Split) -> Contexts:
        self.tokenize()
        folder = self.target.tokens / split
        try:
            return Contexts.load(folder)
        except ArtefactError:
            store.remove(folder / "source.json")  # not done after all: the next run mends it
            raise

    @cached_property
    def contexts(self) -> Contexts:
        return self._contexts("train")

    @cached_property
    def activations(self) -> Activations:
        from jumpahead.activations.origins.shards import missing

        kind = ORIGINS.get(self.study.activations.origin)
        lm, contexts = None, None
        if self.study.activations.origin == "shards":
            if missing(self.target.activations, self.study.activations.sites, self.kept):
                self.keep()
        elif self.needs_lm:
            lm, contexts = self.lm, self.contexts
        return kind.open(self.study.activations, lm=lm, contexts=contexts, folder=self.target.activations)

    @cached_property
    def scales(self) -> dict[str, Scale]:
        from jumpahead.activations.base import scale

        return scale(self.activations, self.study.activations.scale_rows)

    def pending(self) -> list[Unit]:
        """Units that are not trained."""
        return [unit for unit in self.units if not self.target.at(unit.key).is_done(self.inputs(unit))]

    def harvest(self) -> None:
        """Activations on disk, where the study keeps them there."""
        if self.study.activations.origin == "shards" and self.pending():
            self.keep()

    def keep(self, part: Part | None = None) -> bool:
        """Write what is missing of the activations on disk, this process's part of it; True where all are there then.

        Those of the held-out text too, as many as are evaluated on. Nothing is loaded where nothing is missing, and of
        sites that are there already nothing is written again.
        """
        from jumpahead.activations.origins.shards import HELD_OUT, Part, live_of, missing, shard_mib, write_sites

        config, is_done = self.study.activations, True

        def measured(sites: Sequence[str]) -> str:
            return store.digest_json([self.kept(sites), self.study.evaluate.tokens])

        train = self.target.activations
        todo: list[tuple[Split, Path, InputsOf]] = [
            ("held_out", train / HELD_OUT, measured), ("train", train, self.kept),
        ]  # fmt: skip
        for split, folder, inputs_of in todo:
            if not missing(folder, config.sites, inputs_of):
                continue
            contexts = self._contexts(split)

            def live(sites: Sequence[str], contexts: Contexts = contexts, split: Split = split) -> Live:
                made = live_of(config, self.lm, contexts, sites)
                if split == "held_out":
                    made.rows_per_group = made.rows_per_group[: self.held_out.groups]
                return made

            is_done &= write_sites(
                live, folder, config.sites, inputs_of, shard_mib=shard_mib(config), part=part or Part(),
                progress=self.progress,
            )  # fmt: skip
        return is_done

    def train(self) -> None:
        """Train what is not trained, all on one stream per stream.seed."""
        pending = self.pending()
        if len(pending) < len(self.units):
            self.progress.say(f"{len(self.units) - len(pending)} of {len(self.units)} SAEs are trained already.")
        streams: dict[int, list[Unit]] = defaultdict(list)
        for unit in pending:
            streams[unit.stream_seed].append(unit)
        for seed, members in streams.items():
            self._train_on(seed, members)

    def _train_on(self, seed: int, members: list[Unit]) -> None:
        from jumpahead.activations.stream import Stream
        from jumpahead.engine import kernel_layer
        from jumpahead.training import device_for, shares, train, use_threads

        config = self.study.train
        use_threads(config.threads)
        stream = Stream(self.activations, config.batch, seed=seed)
        self._say_plan(members)
        layer = kernel_layer(device=device_for(config))
        self.progress.say(f"kernels: {layer.name}")
        jobs = [self._job(unit) for unit in members]
        began, before = time.monotonic(), sum(job.seconds for job in jobs)
        train(jobs, stream, config, layer, self.progress, self.nouns("tokens"))
        own = sum(job.seconds for job in jobs) - before
        self.progress.say(shares(time.monotonic() - began, own, stream.seconds, self.activations.is_beside))
        distinct = stream.distinct_rows(config.steps)
        for job, unit in zip(jobs, members, strict=True):
            tokens = config.steps * config.batch
            training = {"tokens": tokens, "distinct_tokens": distinct, "epochs": tokens / self.activations.total}
            job.finished({"site": unit.site, "series": unit.series.name, "sae_seed": unit.sae_seed,
                          "stream_seed": unit.stream_seed, "training": training, **self._of_lm(unit),
                          "mean": self.scales[unit.site].mean.tolist()})  # fmt: skip

    def _of_lm(self, unit: Unit) -> dict[str, Any]:
        """What an SAE's config says about where its activations come from."""
        if not self.needs_lm:
            return {}
        lm = {"digest": self.remembered["model"] if self.remembered else self.model,
              **fingerprint.settings(self.lm_config)}  # fmt: skip
        return {"lm": lm, "site_names": parse_site(unit.site).names}

    def _say_plan(self, members: list[Unit]) -> None:
        config, total = self.study.train, self.activations.total
        if config.steps == 0:
            raise DataError(f"train.tokens = {config.tokens} is less than one batch of {config.batch}.")
        epochs = config.steps * config.batch / total
        self.progress.say(
            f"training {len(members)} SAEs on {config.steps * config.batch:,} activations each "
            f"({config.steps:,} steps of {config.batch:,}; {total:,} distinct, {epochs:.2g} epochs)"
        )
        if epochs > 1:
            what, more = ("text is", "text") if self.needs_lm else ("activations are", "of them")
            self.progress.say(f"The {what} repeated: {epochs:.1f} epochs. More {more} would be better.")

    def label(self, unit: Unit) -> str:
        """For people: the unit's own label, and its site and width where the study has several."""
        sites, widths = self.study.activations.sites, self.study.sae.width
        several = [(sites, unit.site), (widths, f"width {unit.width:,}")]
        return ", ".join([unit.label, *(part for values, part in several if len(values) > 1)])

    def _job(self, unit: Unit) -> Job:
        from jumpahead.engine import fresh_state
        from jumpahead.training import Job, begin_as, device_for

        kind = ARCHITECTURES.get(unit.series.architecture)
        d, scale = self.activations.widths[unit.site], self.scales[unit.site].C
        arch = kind(kind.Options(**unit.series.options), unit.setting, self._recipe(unit, d))
        sample = (self.sample[unit.site] / scale).to(device_for(self.study.train))
        state = fresh_state(arch, d, unit.width, unit.sae_seed, sample)
        if unit.series.start_from:
            found, _ = self.start(unit.series)
            if found.d != d:
                raise StudyError(
                    f"series '{unit.series.name}' cannot start from {unit.series.start_from}, an {found!r}: "
                    f"{unit.site} has d = {d}."
                )
            begin_as(state, found, scale, sample)
        job = Job(self.label(unit), unit.site, scale, state, self.target.at(unit.key), self.inputs(unit))
        job.resume()
        return job

    @cached_property
    def sample(self) -> dict[str, Any]:
        """float32 [SAMPLE, d] of every site, from the first groups, in the LM's unit."""
        import torch

        parts, count = defaultdict(list), 0
        for group, rows in enumerate(self.activations.rows_per_group):
            for site, x in self.activations.rows(group).items():
                parts[site].append(x.float())
            count += int(rows)
            if count >= SAMPLE:
                break
        return {site: torch.cat(rows)[:SAMPLE] for site, rows in parts.items()}

    def evaluate(self) -> None:
        """Measure what is not measured, site by site, all SAEs of a site together."""
        waiting: dict[str, list[Unit]] = defaultdict(list)
        for unit in self.units:
            if not self.target.at(unit.key).is_evaluated(self.evaluation_inputs(unit)):
                waiting[unit.site].append(unit)
        if waiting and self.why_no_loss:
            self.progress.say(f"Delta LM loss cannot be measured, all that needs no LM is: {self.why_no_loss}")
        for site, members in waiting.items():
            self._evaluate_at(site, members)

    @cached_property
    def why_no_loss(self) -> str:
        """Why delta LM loss cannot be measured, where activations are on disk and the LM is gone; else empty."""
        if self.study.activations.origin == "shards" and self.remembered:
            try:
                _ = self.whole_lm
            except JumpaheadError as exc:
                return str(exc)
        return ""

    @cached_property
    def held_out(self) -> HeldOut:
        from jumpahead.evaluation import HeldOut

        return HeldOut.of(self._contexts("held_out"), self.study.evaluate.tokens)

    @cached_property
    def measured_on(self) -> HeldOut | HeldOutRows:
        """What SAEs are evaluated on: text, or activations where there is no LM."""
        from jumpahead.evaluation import HeldOutRows

        if self.needs_lm and not self.why_no_loss:
            return self.held_out
        held_out = self.activations.held_out
        assert held_out is not None, f"{type(self.activations).__name__} holds nothing out"
        if self.needs_lm and len(held_out.rows_per_group) < self.held_out.groups:
            raise ArtefactError(
                f"{self.target.activations} holds fewer held-out activations than evaluate.tokens = "
                f"{self.study.evaluate.tokens:,} asks for, and the LM is gone: give back the LM, or fewer tokens."
            )
        if self.needs_lm:
            return HeldOutRows.of_text(held_out, self.held_out)
        return HeldOutRows.of(held_out, self.study.evaluate.tokens)

    def _measure(self, saes: dict[str, SAE], site: str) -> dict[str, Measured]:
        import torch

        from jumpahead.evaluation import HeldOut, evaluate, reconstruct
        from jumpahead.training import device_for

        text, device = self.measured_on, device_for(self.study.train)
        if not isinstance(text, HeldOut):
            return reconstruct(saes, text, site, self.progress, unit=self.nouns("tokens"), device=device)
        mean = torch.tensor(next(iter(saes.values())).about["mean"])
        return evaluate(saes, self.whole_lm, text, site, mean, self.progress, device=device)

    def _evaluate_at(self, site: str, members: list[Unit]) -> None:
        from jumpahead import metrics
        from jumpahead.evaluation import document_evaluation
        from jumpahead.sae.base import SAE

        saes = {unit.key: SAE.load(self.target.at(unit.key).path) for unit in members}
        measured, text = self._measure(saes, site), self.measured_on
        weights = metrics.replicate_weights(text.clusters, self.study.evaluate.replicates)
        for unit in members:
            sae, lines = saes[unit.key], store.read_lines(self.target.at(unit.key).log)
            where = diagnostics.settled(lines, diagnostics.asked_l0(unit.setting._asdict()))
            verdicts = [self.nouns(one) for one in diagnostics.verdicts(lines, unit.setting._asdict(), unit.width)]
            found = document_evaluation(measured[unit.key], text, weights, [*verdicts, *self._notes(sae)])
            store.write_json(
                self.target.at(unit.key).evaluation,
                {"inputs": self.evaluation_inputs(unit), "sae": describe(unit, sae), **found,
                 "training": {**sae.about["training"], "steps": sae.about["steps"], "seconds": sae.about["seconds"]},
                 "knob": sae.about["knob"], "health": diagnostics.last(lines), "settled": where and where._asdict(),
                 "verdicts": verdicts},
            )  # fmt: skip

    def _notes(self, sae: SAE) -> list[str]:
        """Sentences about the training's data that a reader of the point should know."""
        epochs, notes = sae.about["training"]["epochs"], []
        if epochs > 1:
            what = "text" if self.needs_lm else "activations"
            notes.append(f"Trained on repeated {what}: {epochs:.1f} epochs.")
        if self.why_no_loss:
            notes.append(f"Delta LM loss was not measured: {self.why_no_loss}")
        return notes

    # ------------------------------------------------------------------------------------------ the product

    def report(self) -> None:
        """frontier.json and report.html, from the evaluations."""
        from jumpahead import frontier, report

        evaluations = []
        for unit in self.units:
            path = self.target.at(unit.key).evaluation
            if path.exists():
                evaluations.append({**store.read_json(path), "path": unit.key})
        assert evaluations, "a study has at least one SAE, and evaluating comes before reporting"
        inputs = store.digest_json([VERSION, [one["inputs"] for one in evaluations], to_toml(self.study)])
        if store.has_inputs(self.target.frontier, inputs) and self.target.report.exists():
            self.progress.say("Nothing to do: every SAE is trained, evaluated and on the page.")
            return
        if self.needs_lm:
            lm = {"name": self.study.lm.model, "dtype": self.lm_config.dtype}
            source, train_tokens = self.study.text.source, self.contexts.rows
        else:
            lm, source = {"name": None}, f"{self.study.activations.origin} activations"
            train_tokens = self.activations.total
        text = {"source": source, "train_tokens": train_tokens, "held_out_tokens": self.measured_on.tokens}
        built = frontier.build(
            evaluations, name=self.study.name, study_text=to_toml(self.study), manifest=self.target.read_manifest(),
            series=[legend(one.name, one.architecture) for one in self.study.series],
            lm=lm, text=text,
        )  # fmt: skip
        store.write_json(self.target.frontier, {**built, "inputs": inputs}, indent=None)
        report.write(self.target.folder)


def describe(unit: Unit, sae: SAE) -> dict[str, Any]:
    """Which SAE an evaluation is of."""
    return {
        "site": unit.site, "width": unit.width, "d": sae.d, "series": unit.series.name,
        "architecture": unit.series.architecture, "setting": unit.setting._asdict(),
        "sae_seed": unit.sae_seed, "stream_seed": unit.stream_seed,
    }  # fmt: skip


def legend(name: str, kind_name: str) -> dict[str, Any]:
    """How a series of that name and architecture is drawn."""
    kind = ARCHITECTURES.get(kind_name)
    return {
        "name": name, "title": kind.title if name == kind.name else name, "architecture": kind.name,
        "order": kind.order, "colour": kind.colour, "dash": kind.dash, "symbol": kind.symbol,
    }  # fmt: skip
