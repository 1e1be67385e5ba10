"""Benchmarks: run from the repository's root, for instance `make bench-peers`.

    peers.py        jumpahead and other SAE libraries at the same work: the program, its tables and results
    peer_steps.py   one class per library: its own objects, its own training step
    rounds.py       timing by turns
    memory.py       peak memory of one library's step, in a process of its own
    whole_runs.py   from text to nine trained SAEs; peer_runs.py: the other libraries' part of it
    disk.py         activations on disk against plain copying of the same bytes: the program, its tables and results
    synthetic.py    activations from a known sparse dictionary
    machine.py      what the machine is
    table.py        tables for the terminal and for RESULTS/

RESULTS/ holds what was measured: one .json and one .md per machine, month and benchmark.
"""

import jumpahead  # noqa: F401 — sets the environment that torch reads when it loads; recorded with the results
