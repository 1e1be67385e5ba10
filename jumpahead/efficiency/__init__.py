"""Measure where a training step's time, FLOPs, bytes and memory go on this machine: sparse engine and dense training.

    step_shapes.py      the shapes to measure, from the command line or a study
    cost_model.py       FLOPs and bytes of a step, from formulas
    machine_limits.py   lower bounds on a step's time: the encoder product and the memory bandwidth
    dense_training.py   the dense training step, with exact and approximate top-k
    profiling.py        time per torch operation and per kernel call
    memory.py           peak and available memory of the process
    implementations.py  the implementations of a step that are compared
    benchmark.py        `measure`: all implementations of all architectures, interleaved, within a time limit
    labels.py           titles of stages, methods and columns

`jumpahead.report.terminal` and `jumpahead.report` show the resulting JSON. Importing this package does not import
torch; importing `benchmark` does.
"""

from __future__ import annotations

from jumpahead.efficiency.step_shapes import (
    ShapeDefaults,
    StepShape,
    defaults_from_study,
    parse_integers,
    parse_numbers,
    shape_grid,
)

__all__ = ["ShapeDefaults", "StepShape", "defaults_from_study", "parse_integers", "parse_numbers", "shape_grid"]
