"""Benchmarks of speed and memory on this machine: training, reading, detectors, single layers."""
