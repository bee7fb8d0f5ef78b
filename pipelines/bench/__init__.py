"""Benchmarks of speed and memory on this machine: training, reading, detectors, the deformable convolution."""
