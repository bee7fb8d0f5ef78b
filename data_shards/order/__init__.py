"""The order of samples and its cost: pure functions of the seed and the manifest."""
