"""The stage that trains all untrained SAEs; SAEs with the same stream seed share one stream of activations."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from jumpahead.activations.stream import Stream
from jumpahead.engine import initial_state, kernel_layer
from jumpahead.errors import DataError, StudyError
from jumpahead.formatting import format_counted, format_percent
from jumpahead.lm.fingerprint import to_json_values
from jumpahead.lm.sites import parse_site
from jumpahead.pipeline.stage import Stage
from jumpahead.pipeline.todo import SAEState, sae_states, todo_sentences
from jumpahead.sae.architectures import ARCHITECTURES
from jumpahead.storage.digests import digest_json
from jumpahead.storage.set_aside import bring_to_place, write_sae_index
from jumpahead.study.schema import SAESpec
from jumpahead.training.devices import set_threads, training_device
from jumpahead.training.job import Job, warm_start
from jumpahead.training.loop import time_breakdown, train
from jumpahead.training.sink import open_sinks


class TrainingStage(Stage):
    """Trains all SAEs; writes weights.safetensors, config.json and train.jsonl of each to saes/."""

    name = "train"

    def inputs(self) -> str:
        return digest_json([self.provenance.sae_digest(spec) for spec in self.resources.specs])

    def is_done(self) -> bool:
        return not self.pending()

    def pending(self) -> list[SAESpec]:
        """Return the specs of the SAEs that are not trained yet."""
        specs, digest = self.resources.specs, self.provenance.sae_digest
        return [spec for spec in specs if not self.folder.sae_folder(spec.key).is_done(digest(spec))]

    def states(self) -> list[SAEState]:
        """Return what is there of every SAE of the study, before `arrange`."""
        return sae_states(self.resources.specs, self.folder, self.provenance)

    def arrange(self, specs: Sequence[SAESpec]) -> None:
        """Bring the given SAEs and their checkpoints to their places, and set aside what has other inputs."""
        for spec in specs:
            bring_to_place(self.folder, spec.key, self.provenance.sae_digest(spec))

    def record_saes(self) -> None:
        """Record which SAEs the study refers to, for `jumpahead clean`."""
        specs = self.resources.specs_to_evaluate()
        write_sae_index(self.folder, {spec.key: self.provenance.sae_digest(spec) for spec in specs})

    def run(self) -> None:
        for sentence in todo_sentences(self.states(), self.folder.set_aside):
            self.progress.say(sentence)
        self.train(self.resources.specs)

    def train(self, specs: Sequence[SAESpec]) -> None:
        """Train those of the given SAEs that are not trained yet, stream by stream, and save them."""
        self.arrange(specs)
        streams: dict[int, list[SAESpec]] = defaultdict(list)
        for spec in specs:
            if not self.folder.sae_folder(spec.key).is_done(self.provenance.sae_digest(spec)):
                streams[spec.stream_seed].append(spec)
        for seed, members in streams.items():
            self._train_stream(seed, members)

    def _train_stream(self, seed: int, specs: list[SAESpec]) -> None:
        """Train these SAEs concurrently on the stream with this seed, and save them."""
        config, data = self.study.train, self.resources.open_activations()
        set_threads(config.threads)
        stream = Stream(data, config.batch, seed=seed)
        self._report_training_size(len(specs), data.total_rows)
        kernels = kernel_layer(device=training_device(config))
        self.progress.say(f"kernels: {kernels.name}")
        jobs = [self.make_job(spec) for spec in specs]
        began, before = time.monotonic(), sum(job.seconds for job in jobs)
        unit = self.resources.sample_unit.plural
        with open_sinks(config.log_to, self.folder.logs, self.study.name) as sinks:
            train(jobs, stream, config, kernels, self.progress, unit, sinks)
        own = sum(job.seconds for job in jobs) - before
        self.progress.say(time_breakdown(time.monotonic() - began, own, stream.read_seconds, data.overlaps_training))
        self._report_long_rows(jobs)
        distinct = stream.distinct_rows(config.steps)
        for job, spec in zip(jobs, specs, strict=True):
            tokens = config.steps * config.batch
            training = {"tokens": tokens, "distinct_tokens": distinct, "epochs": tokens / data.total_rows,
                        "limited_rows": int(job.limited_rows)}  # fmt: skip
            moments = self.resources.load_moments()[spec.site]
            job.finish({"site": spec.site, "series": spec.series.name, "sae_seed": spec.sae_seed,
                        "stream_seed": spec.stream_seed, "training": training, **self._lm_metadata(spec),
                        "mean": moments.mean.tolist(), "outliers": moments.outliers()})  # fmt: skip

    def _lm_metadata(self, spec: SAESpec) -> dict[str, Any]:
        """Return the fields of an SAE's config that describe the LM and the site; empty if there is no LM."""
        provenance = self.provenance
        if not provenance.needs_lm:
            return {}
        digest = provenance.stored["model"] if provenance.stored else provenance.model_digest
        lm = {"digest": digest, **to_json_values(provenance.lm_config())}
        return {"lm": lm, "site_names": parse_site(spec.site).names_elsewhere}

    def _report_training_size(self, saes: int, total: int) -> None:
        """Report the number of SAEs, steps, activations and epochs. Raises DataError if there is not even one batch.

        saes: number of SAEs.
        total: number of distinct activations.
        """
        config = self.study.train
        if config.steps == 0:
            raise DataError(f"train.tokens = {config.tokens} is less than one batch of {config.batch}.")
        epochs = config.steps * config.batch / total
        self.progress.say(
            f"training {format_counted(saes, 'SAE')} on {config.steps * config.batch:,} activations each "
            f"({config.steps:,} steps of {config.batch:,}; {total:,} distinct, {epochs:.2g} epochs)"
        )
        if epochs > 1:
            data, more = ("text is", "text") if self.provenance.needs_lm else ("activations are", "of them")
            self.progress.say(f"The {data} repeated: {epochs:.1f} epochs. More {more} would be better.")

    def _report_long_rows(self, jobs: Sequence[Job]) -> None:
        """Report, once per site, how many activations were scaled down because they were above the norm limit."""
        limited = {(job.site, job.state.arch.recipe.norm_limit, int(job.limited_rows)): None for job in jobs}
        trained = self.study.train.steps * self.study.train.batch
        for site, limit, count in limited:
            if count:
                share = format_percent(count / trained)
                self.progress.say(
                    f"{site}: {count:,} of {trained:,} activations ({share}) are over {limit:g} times the median norm; "
                    "they were scaled down to it in training."
                )

    def make_job(self, spec: SAESpec) -> Job:
        """Return the training job of an SAE: newly initialised, warm-started, or resumed from its checkpoint."""
        kind, series = ARCHITECTURES.get(spec.series.architecture), spec.series
        d = self.resources.open_activations().widths[spec.site]
        arch = kind(kind.Options(**series.options), spec.setting, self.provenance.recipe(spec, d))
        unit = self.resources.load_unit(spec.site, arch.recipe)
        sample, _ = unit.apply(self.resources.load_sample()[spec.site].to(training_device(self.study.train)))
        state = initial_state(arch, d, spec.width, spec.sae_seed, sample)
        if series.start_from:
            start = self.provenance.warm_starts.load(series)
            if start.d != d:
                raise StudyError(
                    f"series '{series.name}' cannot start from {series.start_from}, an {start!r}: "
                    f"{spec.site} has d = {d}."
                )
            warm_start(state, start, unit, sample)
        digest = self.provenance.sae_digest(spec)
        job = Job(self.resources.label(spec), spec.site, unit, state, self.folder.sae_folder(spec.key), digest)
        job.made_from = self.provenance.sae_inputs(spec)
        job.resume()
        return job
