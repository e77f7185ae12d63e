"""The laboratory: tasks, the one training loop, the store of records, sweeps, and what a set of seeds can decide."""
