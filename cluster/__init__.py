"""Ray workers, the DeepSpeed engine, checkpoints, failures and job submission; nothing here knows what a box is."""
