"""jumpahead."""
