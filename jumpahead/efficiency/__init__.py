"""Where a training step's time, FLOPs, bytes and memory go, on this machine: this engine and the dense recipe.

    shape.py     what is measured: the user's numbers, or a study's
    counts.py    FLOPs and bytes on paper
    floor.py     what no step can beat here: an encoder product, and the memory's bandwidth
    dense.py     the dense recipe, and top-k that is only almost exact
    clock.py     time per operation and per kernel call, peak memory
    session.py   `measure`: all of it, in turns, within the time given → efficiency.json
    words.py     what stages, methods and columns are called

`jumpahead.report.terminal` and `jumpahead.report` show the JSON. No torch before `session` is imported.
"""

from __future__ import annotations

from jumpahead.efficiency.shape import Known, Shape, numbers, of_study, shapes, whole_numbers

__all__ = ["Known", "Shape", "numbers", "of_study", "shapes", "whole_numbers"]
