"""Speed and memory on this machine: of a training step, of every detector, of the deformable convolution."""
