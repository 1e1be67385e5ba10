"""Training SAEs: many on one stream of activations (loop.py), each with its state, log and checkpoint (job.py)."""
