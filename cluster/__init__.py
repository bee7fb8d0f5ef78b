"""Ray workers, the DeepSpeed engine, checkpoints and failures; nothing here knows what a box is."""
