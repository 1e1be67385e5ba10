"""The stage that chooses the LM's dtype if `lm.dtype = "fast"`, from loss and speed on this machine."""

from __future__ import annotations

from jumpahead.lm import precision
from jumpahead.pipeline.stage import Stage
from jumpahead.storage.json_files import write_json
from jumpahead.training.devices import set_threads


class PrecisionStage(Stage):
    """Writes the chosen dtype to precision.json. Counts as done if the study sets a dtype."""

    name = "precision"

    def inputs(self) -> str:
        return self.provenance.precision_digest

    def is_done(self) -> bool:
        return self.provenance.is_precision_known()

    def run(self) -> None:
        set_threads(self.study.train.threads)
        choice = precision.choose_dtype(self.study.lm, self.resources.open_text(), self.study.activations.sites)
        write_json(self.folder.precision, {"inputs": self.inputs(), **choice._asdict()})
        self.progress.say(f"LM: {choice}")
