"""Imported once, by the process that ranks are forked from: importing torch and DeepSpeed takes seconds of CPU."""

import torch

from cluster.engine.engine import bootstrap

# Before DeepSpeed is imported, as in a worker.
bootstrap(torch.device("cpu"))

import deepspeed  # noqa: E402, F401
