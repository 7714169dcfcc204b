"""A whole cluster in one process, from a seed: the real machines and session layers on a simulated network."""
