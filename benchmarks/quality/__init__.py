"""SAEs of jumpahead and of other libraries, trained on the same activations and judged by one evaluator."""
