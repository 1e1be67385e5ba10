"""Language models: load them, read activations at sites, splice activations in, score text."""
