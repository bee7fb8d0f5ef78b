"""From samples to batches: drawing, filling, the loader process, augmentation on the device."""
