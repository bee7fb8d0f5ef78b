"""Draw images, targets and predictions."""
