"""Anchor-free detectors as plain PyTorch: networks, targets, losses and decoding, as published.

The names below are imported on first use. So `from detectors.errors import DetectorError` does not import torch, and
a command that builds no detector starts without it.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from detectors.catalogue import build, names
    from detectors.detections import Detections
    from detectors.detector import Detector, Preprocessing, Published, TestTime, View
    from detectors.errors import DetectorError, nearest
    from detectors.weights import published

__all__ = [
    "Detections",
    "Detector",
    "DetectorError",
    "Preprocessing",
    "Published",
    "TestTime",
    "View",
    "build",
    "names",
    "nearest",
    "published",
]

_MODULE_OF = {
    "build": "detectors.catalogue",
    "names": "detectors.catalogue",
    "Detections": "detectors.detections",
    "Detector": "detectors.detector",
    "Preprocessing": "detectors.detector",
    "Published": "detectors.detector",
    "TestTime": "detectors.detector",
    "View": "detectors.detector",
    "DetectorError": "detectors.errors",
    "nearest": "detectors.errors",
    "published": "detectors.weights.published",
}


if not TYPE_CHECKING:  # a type checker would take every attribute for granted

    def __getattr__(name: str) -> Any:
        """Import `name` from the module that defines it (PEP 562)."""
        if name not in _MODULE_OF:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        module = importlib.import_module(_MODULE_OF[name])
        value = module if module.__name__.endswith(f".{name}") else getattr(module, name)  # `published` is a module
        globals()[name] = value  # __getattr__ is called only for names that are missing
        return value


def __dir__() -> list[str]:
    """List the lazy names, too."""
    return sorted({*globals(), *__all__})
