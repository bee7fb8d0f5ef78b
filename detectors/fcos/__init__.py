"""FCOS in the variants of its paper, of its improved version and of torchvision."""
