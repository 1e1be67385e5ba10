"""Training of many SAEs on one stream of activations (loop.py); each SAE has a state, log and checkpoint (job.py)."""
