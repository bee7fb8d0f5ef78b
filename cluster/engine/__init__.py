"""The training engine: a step in DeepSpeed, the optimizer's state, the average of the weights, the loss scale."""
