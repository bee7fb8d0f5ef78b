"""Anchor-free detectors as plain PyTorch: networks, targets, losses and decoding, as published."""

from detectors.catalogue import build, names
from detectors.detector import Detections, Detector, Preprocessing
from detectors.errors import DetectorError, nearest
from detectors.weights import published

__all__ = ["Detections", "Detector", "DetectorError", "Preprocessing", "build", "names", "nearest", "published"]
