"""Train a recipe: the driver, the worker, and what happens at the end of a step."""
