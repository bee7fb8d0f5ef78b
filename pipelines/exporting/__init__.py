"""Portable files of trained detectors, with a receipt of what they compute."""
