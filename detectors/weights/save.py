"""Weights of ours written as other code keeps them: the reverse of `published.load`."""

import os
import re
import uuid
from collections import OrderedDict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from detectors.detector import Detector
from detectors.errors import DetectorError, nearest
from detectors.file_layouts import FileLayout


@dataclass
class Exported:
    """What became of every key of the detector: it is in `written` or in `left_out`."""

    path: Path
    library: str
    written: dict[str, str] = field(default_factory=dict)
    """Key in the detector to key in the file."""
    left_out: dict[str, str] = field(default_factory=dict)
    """Key in the detector to the reason why it is not in the file."""
    added: dict[str, str] = field(default_factory=dict)
    """Key in the file that the detector does without, to what it holds."""
    adjusted: dict[str, str] = field(default_factory=dict)
    """Key in the file whose value is not bit for bit the detector's, to what was done."""


def save_as(detector: Detector, path: str | os.PathLike[str], library: str = "authors") -> Exported:
    """Write the detector's weights in the layout of `library`, as its own code loads them.

    Args:
        detector: whose weights are written; they stay as they are.
        path: the file, replaced in one rename when all of it is written.
        library: a key of the detector's `published.export_layouts`.

    Raises:
        DetectorError: the library has no such detector, or cannot hold a value of this one; the file cannot be
            written.
    """
    if library not in detector.published.export_layouts:
        raise DetectorError(f"{detector.name} cannot be written as {library!r}{nearest(library, _known(detector))}")
    layout = detector.published.export_layouts[library]
    exported = Exported(Path(path), layout.library)
    weights = _weights(detector, layout, exported)
    content: Any = weights if layout.wrapper is None else {**layout.beside, layout.wrapper: weights}
    try:
        exported.path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = exported.path.with_name(f".{exported.path.name}.{uuid.uuid4().hex}.part")
        try:
            torch.save(content, unfinished)
            os.replace(unfinished, exported.path)
        finally:
            unfinished.unlink(missing_ok=True)
    except (OSError, RuntimeError) as error:  # torch's own writer reports a full disk so
        cause = getattr(error, "strerror", None) or str(error).splitlines()[0]
        raise DetectorError(f"{exported.path} cannot be written: {cause}.") from error
    return exported


def _weights(detector: Detector, layout: FileLayout, exported: Exported) -> "OrderedDict[str, Tensor]":
    own = {name: value.detach().cpu().clone() for name, value in detector.state_dict().items()}
    superfluous = [name for name in own if layout.leaves_out_zero and re.fullmatch(layout.leaves_out_zero, name)]
    if all(not own[name].any() for name in superfluous):
        reason = f"0, as it is where {layout.library} does without"
        exported.left_out |= dict.fromkeys(superfluous, reason)
    weights: OrderedDict[str, Tensor] = OrderedDict()
    for name, value in own.items():
        if name in exported.left_out:
            continue
        key = layout.their_name(name)
        weights[key] = _adjusted(detector, layout, exported, name, key, value)
        exported.written[name] = key
        if layout.counters and re.fullmatch(layout.counters, key):
            counter = key.replace("running_var", "num_batches_tracked")
            weights[counter] = torch.tensor(0)
            exported.added[counter] = "0, a counter of batch norm"
    return weights


def _adjusted(detector: Detector, layout: FileLayout, exported: Exported, name: str, key: str, value: Tensor) -> Tensor:
    if layout.single_numbers and re.fullmatch(layout.single_numbers, key):
        exported.adjusted[key] = "a single number instead of a list of one"
        return value.reshape(())
    if layout.norm_eps is None or not name.endswith(".running_var"):
        return value
    norm: Any = detector.get_submodule(name.rpartition(".")[0])
    difference = norm.eps - layout.norm_eps
    if not difference:
        return value
    if float(value.min()) + difference < 0:
        raise DetectorError(
            f"{name} has a variance of {float(value.min()):g}, and {layout.library} adds {layout.norm_eps:g} to it "
            f"where this detector adds {norm.eps:g}: it cannot be written there. Choose another layout."
        )
    exported.adjusted[key] = f"{difference:+g}: {layout.library} has another epsilon in its batch norm"
    return value + difference


def _known(detector: Detector) -> list[str]:
    return sorted(detector.published.export_layouts)
