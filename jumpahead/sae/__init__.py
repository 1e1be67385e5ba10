"""Sparse autoencoders as mathematics: the equations of each architecture, and trained SAEs. This file imports no torch.

    architectures/    one file per paper
    architecture.py   what an architecture must define to be trained       recipe.py       hyper-parameters
    support.py        entries that carry a value or a gradient             controller.py   λ for a requested L0
    gradients.py      what `entry_gradients` gets and returns                         bounds.py       bounds of options
    parameters.py     initial values, rescaling                            saved.py        a trained SAE: encode, decode

Helpers that several architectures share (`threshold.py`, `auxk.py`, `ste.py`) are not in `architectures/`, which holds
one file per architecture and nothing else.
"""
