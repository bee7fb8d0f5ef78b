"""The training engine: DeepSpeed, its settings, the optimizer's state, the average of the weights."""
