"""What a run needs before GPUs are rented: memory, split, tokens and FLOPs, cost; from the config alone."""
