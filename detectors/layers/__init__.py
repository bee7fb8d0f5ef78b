"""Layers that several detectors share."""
