"""A study, end to end: tokens → activations → SAEs on one stream → evaluation → frontier → report.

What is done is kept: every SAE is keyed by its own inputs, so adding a sparsity or a seed to a finished study trains
that one alone.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from functools import cached_property
from typing import TYPE_CHECKING, Any

from jumpahead import health, log, store
from jumpahead.errors import DataError
from jumpahead.lm import fingerprint
from jumpahead.sae import architecture
from jumpahead.sae.recipe import Recipe, Shape
from jumpahead.study import Study, Unit, to_toml, units

if TYPE_CHECKING:
    from jumpahead.activations.base import Activations, Scale
    from jumpahead.evaluate import HeldOut
    from jumpahead.lm.config import LMConfig
    from jumpahead.lm.contexts import Contexts
    from jumpahead.lm.model import LM
    from jumpahead.sae.base import SAE
    from jumpahead.train import Job

VERSION = 3
"""Of what training computes: raised when the same study would give other SAEs."""
REFERENCE = 256
"""The d at which recipes are compared: an SAE's own follows from its site."""
SAMPLE = 8192
"""Activations that initialisation looks at."""


def run(study: Study, target: store.Run, until: str | None = None, progress: log.Progress | None = None) -> None:
    """Do whatever of the study is not done in the run `target`; stop after the stage `until`."""
    progress = progress or log.progress()
    work = Work(study, target, progress)
    stages: dict[str, Callable[[], None]] = {
        "tokens": work.tokenize, "activations": work.harvest, "train": work.train, "evaluate": work.evaluate,
    }  # fmt: skip
    for name, stage in stages.items():
        stage()
        if name == until:
            return
    work.report()


class Work:
    """One study in one run's folder. The LM, the text and the activations are loaded when first needed."""

    def __init__(self, study: Study, target: store.Run, progress: log.Progress):
        self.study, self.target, self.progress = study, target, progress
        self.units = units(study)

    # ------------------------------------------------------------------------------------------ what SAEs depend on

    @cached_property
    def lm_config(self) -> LMConfig:
        """The LM that activations are of: the study's, with what `fast` was decided to be in this run."""
        config = self.study.lm
        if config.dtype != "fast" or not self.needs_lm:
            return config
        inputs = fingerprint.of_precision(config)
        if not store.has_inputs(self.target.precision, inputs):
            from jumpahead.lm import precision
            from jumpahead.train import use_threads

            use_threads(self.study.train.threads)
            found = precision.decide(config, self.study.text, self.study.activations.sites)
            store.write_json(self.target.precision, {"inputs": inputs, **found._asdict()})
            self.progress.say(f"LM: {found}")
        return config.model_copy(update={"dtype": store.read_json(self.target.precision)["dtype"]})

    @cached_property
    def lm(self) -> LM:
        """As far as activations are read from it."""
        from jumpahead.lm.model import LM
        from jumpahead.train import use_threads

        use_threads(self.study.train.threads)
        return LM.load(self.lm_config, only=self.study.activations.sites)

    @cached_property
    def whole_lm(self) -> LM:
        """What SAEs are spliced into: in the study's dtype, in float32 where that is `fast`."""
        from jumpahead.lm.model import LM
        from jumpahead.train import use_threads

        use_threads(self.study.train.threads)
        return LM.load(self.study.lm)

    @cached_property
    def source(self) -> str:
        """Digest of the LM and the text, known without loading either."""
        lm, text = self.lm_config, self.study.text
        known = [fingerprint.of_model(lm), lm.model_dump(), fingerprint.of_text(text), text.model_dump()]
        return store.digest_json(known)

    def inputs(self, unit: Unit) -> str:
        """Digest of everything the trained SAE depends on."""
        study = self.study
        activations = study.activations.model_dump(exclude={"sites", "origin"})
        origin = study.activations.origin if study.activations.origin == "synthetic" else "lm"
        kind = architecture(unit.series.architecture)
        return store.digest_json({
            "version": VERSION, "source": self.source, "activations": activations, "origin": origin,
            "site": unit.site, "width": unit.width, "architecture": unit.series.architecture,
            "options": kind.Options(**unit.series.options).model_dump(), "setting": unit.setting,
            "seeds": [unit.sae_seed, unit.stream_seed],
            "tokens": study.train.tokens, "batch": study.train.batch,
            "recipe": self._recipe(unit, REFERENCE)._asdict(),
        })  # fmt: skip

    def _recipe(self, unit: Unit, d: int) -> Recipe:
        kind, shape = architecture(unit.series.architecture), Shape(d, unit.width, unit.setting)
        return kind.recipe_for(self.study.train, shape, unit.series.recipe)

    def evaluation_inputs(self, unit: Unit) -> str:
        """Digest of everything its evaluation depends on."""
        known = [VERSION, self.inputs(unit), self.study.evaluate.model_dump()]
        if self.lm_config.dtype not in (self.study.lm.dtype, "float32"):
            known.append("measured in float32")
        return store.digest_json(known)

    # ------------------------------------------------------------------------------------------ stages

    @property
    def needs_lm(self) -> bool:
        return self.study.activations.origin != "synthetic"

    def tokenize(self) -> None:
        """Tokens of both splits on disk."""
        if self.needs_lm and not all(self._tokens_done(split) for split in ("train", "held_out")):
            for split in ("train", "held_out"):
                contexts = self._tokenized(split)
                self.progress.say(
                    f"{split.replace('_', '-')} text: {len(contexts.identities):,} documents, "
                    f"{contexts.rows:,} tokens to {'train on' if split == 'train' else 'measure on'}"
                )

    def _tokens_done(self, split: str) -> bool:
        return store.has_inputs(self.target.tokens / split / "source.json", self.source)

    def _tokenized(self, split: Any) -> Contexts:
        from jumpahead.lm.contexts import Contexts, tokenize
        from jumpahead.lm.text import documents

        folder = self.target.tokens / split
        if self._tokens_done(split):
            return Contexts.load(folder)
        text = self.study.text
        store.remove(folder / "source.json")
        contexts = tokenize(documents(text), self.lm, split=split, held_out=text.held_out, max_tokens=text.max_tokens)
        contexts.save(folder)
        store.write_json(folder / "source.json", {"inputs": self.source})
        return contexts

    @cached_property
    def contexts(self) -> Contexts:
        return self._tokenized("train")

    @cached_property
    def activations(self) -> Activations:
        from jumpahead.activations import origin

        kind = origin(self.study.activations.origin)
        lm, contexts = (self.lm, self.contexts) if kind.needs_lm else (None, None)
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
            _ = self.activations

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
        from jumpahead.activations.blocks import Stream
        from jumpahead.engine import kernels
        from jumpahead.train import device_for, train, use_threads

        config = self.study.train
        use_threads(config.threads)
        stream = Stream(self.activations, config.batch, seed=seed)
        self._say_plan(members)
        layer = kernels(device=device_for(config))
        self.progress.say(f"kernels: {layer.name}")
        jobs = [self._job(unit) for unit in members]
        train(jobs, stream, config, layer, self.progress)
        distinct = stream.distinct_rows(config.steps)
        for job, unit in zip(jobs, members, strict=True):
            tokens = config.steps * config.batch
            training = {"tokens": tokens, "distinct_tokens": distinct, "epochs": tokens / self.activations.total}
            job.finished({"site": unit.site, "series": unit.series.name, "sae_seed": unit.sae_seed,
                          "stream_seed": unit.stream_seed, "training": training,
                          "mean": self.scales[unit.site].mean.tolist()})  # fmt: skip

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
            self.progress.say(f"The text is repeated: {epochs:.1f} epochs. More text would be better.")

    def label(self, unit: Unit) -> str:
        """For people: the unit's own label, and its site and width where the study has several."""
        sites, widths = self.study.activations.sites, self.study.sae.width
        several = [(sites, unit.site), (widths, f"width {unit.width:,}")]
        return ", ".join([unit.label, *(part for values, part in several if len(values) > 1)])

    def _job(self, unit: Unit) -> Job:
        from jumpahead.engine import fresh_state
        from jumpahead.train import Job, device_for

        kind = architecture(unit.series.architecture)
        d, scale = self.activations.widths[unit.site], self.scales[unit.site].C
        arch = kind(kind.Options(**unit.series.options), unit.setting, self._recipe(unit, d))
        sample = (self.sample[unit.site] / scale).to(device_for(self.study.train))
        state = fresh_state(arch, d, unit.width, unit.sae_seed, sample)
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
        if not self.needs_lm:
            return
        waiting: dict[str, list[Unit]] = defaultdict(list)
        for unit in self.units:
            if not self.target.at(unit.key).is_evaluated(self.evaluation_inputs(unit)):
                waiting[unit.site].append(unit)
        for site, members in waiting.items():
            self._evaluate_at(site, members)

    @cached_property
    def held_out(self) -> HeldOut:
        from jumpahead.evaluate import HeldOut

        return HeldOut.of(self._tokenized("held_out"), self.study.evaluate.tokens)

    def _evaluate_at(self, site: str, members: list[Unit]) -> None:
        import torch

        from jumpahead import metrics
        from jumpahead.evaluate import document_evaluation, evaluate
        from jumpahead.sae.base import SAE

        saes = {unit.key: SAE.load(self.target.at(unit.key).path) for unit in members}
        mean = torch.tensor(next(iter(saes.values())).about["mean"])
        measured = evaluate(saes, self.whole_lm, self.held_out, site, mean, self.progress)
        weights = metrics.replicate_weights(self.held_out.clusters, self.study.evaluate.replicates)
        for unit in members:
            sae, lines = saes[unit.key], store.read_lines(self.target.at(unit.key).log)
            where = health.settled(lines, health.asked_l0(unit.setting._asdict()))
            verdicts = health.verdicts(lines, unit.setting._asdict(), unit.width)
            found = document_evaluation(measured[unit.key], self.held_out, weights, [*verdicts, *self._notes(sae)])
            store.write_json(
                self.target.at(unit.key).evaluation,
                {"inputs": self.evaluation_inputs(unit), "sae": describe(unit, sae), **found,
                 "training": {**sae.about["training"], "steps": sae.about["steps"], "seconds": sae.about["seconds"]},
                 "knob": sae.about["knob"], "health": health.last(lines), "settled": where and where._asdict(),
                 "verdicts": verdicts},
            )  # fmt: skip

    def _notes(self, sae: SAE) -> list[str]:
        """Sentences about the training's data that a reader of the point should know."""
        epochs = sae.about["training"]["epochs"]
        return [f"Trained on repeated text: {epochs:.1f} epochs."] if epochs > 1 else []

    # ------------------------------------------------------------------------------------------ the product

    def report(self) -> None:
        """frontier.json and report.html, from the evaluations."""
        from jumpahead import frontier, report

        evaluations = []
        for unit in self.units:
            path = self.target.at(unit.key).evaluation
            if path.exists():
                evaluations.append({**store.read_json(path), "path": unit.key})
        if not evaluations:
            self.progress.say("There is no LM in this study, so there is no frontier: the SAEs are trained and saved.")
            return
        inputs = store.digest_json([VERSION, [one["inputs"] for one in evaluations], to_toml(self.study)])
        if store.has_inputs(self.target.frontier, inputs) and self.target.report.exists():
            self.progress.say("Nothing to do: every SAE is trained, evaluated and on the page.")
            return
        text = {"source": self.study.text.source, "train_tokens": self.contexts.rows,
                "held_out_tokens": self.held_out.tokens}  # fmt: skip
        built = frontier.build(
            evaluations, name=self.study.name, study_text=to_toml(self.study), manifest=self.target.read_manifest(),
            series=[legend(one.name, one.architecture) for one in self.study.series],
            lm={"name": self.study.lm.model, "dtype": self.lm_config.dtype}, text=text,
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
    kind = architecture(kind_name)
    return {
        "name": name, "title": kind.title if name == kind.name else name, "architecture": kind.name,
        "order": kind.order, "colour": kind.colour, "dash": kind.dash, "symbol": kind.symbol,
    }  # fmt: skip
