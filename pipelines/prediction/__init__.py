"""Predictions of a trained detector on images of any kind: from Python, from the command line, on a cluster."""
