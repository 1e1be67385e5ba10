"""Benchmarks: run from the repository's root, for instance `make bench-peers`.

    peers.py                jumpahead and other SAE libraries at the same work: the program, its tables and results
    library_sae.py          the interface of a library's SAE in training, and the weights that all start from
    peer_libraries.py       the other libraries' SAEs: their own objects, their own training step
    jumpahead_sae.py        jumpahead's SAE
    batch_channel.py        batches for a library's training loop in a thread
    interleaved_timing.py   timing in interleaved rounds
    memory.py               peak memory of one library's step, in a subprocess
    whole_runs.py           from text to nine trained SAEs; peer_runs.py: the other libraries' part
    gpu.py                  steps on a GPU: gpu_setup.py sizes, gpu_steps.py timers, gpu_report.py tables, gpu_peers.py
    disk.py                 activations on disk against plain file copies
    sparsity/               recipe tuning, and the tables of requested L0
    quality/                SAEs of jumpahead and other libraries at the same data, judged by one evaluator
    result_lines.py         results as JSON lines, one per SAE
    synthetic.py            activations from a known sparse dictionary
    machine.py              hardware and versions
    table.py                tables for the terminal and for RESULTS/

RESULTS/ holds the results: one .json and one .md per machine, month and benchmark.
"""

import jumpahead  # noqa: F401 — sets the environment that torch reads when it loads; recorded with the results
