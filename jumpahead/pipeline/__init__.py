"""The pipeline of a study: precision → tokens → activations → training of SAEs (→ targets) → evaluation → feature
pages → frontier and page.

    run.py           runs the stages in order, skips finished stages, stops after a given stage
    stage.py         base class of stages: `inputs() → digest`, `is_done()`, `run()`
    precision.py tokens.py activations.py training.py targets.py evaluation.py features.py frontier.py
                     one stage each
    target_search.py the next L0 for a requested delta LM loss
    training_log.py  training curves for the page; unfinished.py: the frontier of a run that is not finished
    resources.py     resources that several stages share: the LM, the text, activations; loaded on first use
    provenance.py    digests of the inputs of every result
    warm_start.py    saved SAEs whose parameters a series starts from

Finished results are reused: every SAE is keyed by the digest of its inputs. If a sparsity setting or a seed is added to
a finished study, only the new SAEs are trained.
"""

from __future__ import annotations

STAGES = ("precision", "tokens", "activations", "train", "targets", "evaluate", "features", "report")
"""Names of the stages, in the order in which they run."""
