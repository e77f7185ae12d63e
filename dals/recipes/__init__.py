"""Compositions: the eighteen strategies, what the released code made of them, and the trajectories that hold both to account."""
