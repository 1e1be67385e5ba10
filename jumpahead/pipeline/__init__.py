"""A study, end to end: precision → tokens → activations → SAEs on one stream → evaluation → frontier and page.

    run.py           the order of the stages, what is skipped, where a run stops
    stage.py         what a stage is: `inputs() → digest`, `is_done()`, `run()`
    precision.py tokens.py activations.py training.py evaluation.py frontier.py     one stage each
    resources.py     what several stages need: the LM, the text, activations, loaded once, when asked for
    provenance.py    what depends on what, as digests
    warm_start.py    SAEs that a series starts from

Finished work is kept: every SAE is keyed by the digest of its own inputs, so a sparsity or a seed that is added to a
finished study is trained alone.
"""

from __future__ import annotations

STAGES = ("precision", "tokens", "activations", "train", "evaluate", "report")
"""In the order in which they run."""
