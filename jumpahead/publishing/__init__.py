"""Publish SAEs on the Hugging Face hub, in the layout that SAELens loads, with a model card.

folder.py     the files: an SAE per folder, the model card, the figure
card.py       the model card: what was trained on what, a table of all SAEs, how to load one
upload.py     the hub
"""
