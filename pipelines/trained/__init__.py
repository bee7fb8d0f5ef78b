"""A trained detector, wherever it is kept: a run, a checkpoint, a file."""
