"""Sparse autoencoders as mathematics: what an architecture defines, and what an SAE computes. No torch here.

    architectures/    one file per paper
    architecture.py   what an architecture must define to be trained       recipe.py       hyper-parameters
    support.py        which entries carry a value or a gradient            controller.py   λ for a requested L0
    gradients.py      what `rule` gets and returns                         bounds.py       bounds of options
    parameters.py     initial values, rescaling                            saved.py        an SAE that is used

Helpers that several architectures share (`threshold.py`, `auxk.py`, `ste.py`) are beside `architectures/`, which holds
nothing else.
"""
