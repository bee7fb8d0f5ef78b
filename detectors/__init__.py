"""Anchor-free detectors as plain PyTorch: networks, targets, losses and decoding, as published."""

from detectors import published
from detectors.detector import (
    Detections,
    Detector,
    DetectorError,
    Preprocessing,
    build,
    names,
    nearest,
)

__all__ = ["Detections", "Detector", "DetectorError", "Preprocessing", "build", "names", "nearest", "published"]
