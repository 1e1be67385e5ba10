"""The sparsity that was asked for, and every architecture at its best: tuning by a protocol, and tables."""
