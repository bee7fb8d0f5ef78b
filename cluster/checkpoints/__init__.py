"""Checkpoints of a run: written to a folder, copied to a bucket, found again, deleted when newer ones are safe."""
