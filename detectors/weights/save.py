"""Write our weights in the layouts of other libraries: the reverse of `published.load`."""

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
from detectors.weights.description import add_to_archive


@dataclass
class Exported:
    """Account of every key of the detector, each of which is in `written` or in `left_out`."""

    path: Path
    library: str
    written: dict[str, str] = field(default_factory=dict)
    """Key in the detector to key in the file."""
    left_out: dict[str, str] = field(default_factory=dict)
    """Key in the detector to the reason why it is not in the file."""
    added: dict[str, str] = field(default_factory=dict)
    """Key in the file that the detector lacks, to its content."""
    adjusted: dict[str, str] = field(default_factory=dict)
    """Key in the file whose value is not bit for bit the detector's, to the change."""


def save_as(
    detector: Detector, path: str | os.PathLike[str], library: str = "authors", *, description: str = ""
) -> Exported:
    """Write the detector's weights in the layout that the code of `library` loads.

    Args:
        detector: its weights are written, and do not change.
        path: the file, replaced by one rename once all of it is written.
        library: a key of the detector's `published.export_layouts`.
        description: a text for `read_description`, beside the weights, where no other library sees it.

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
            if description:
                add_to_archive(unfinished, description)
            os.replace(unfinished, exported.path)
        finally:
            unfinished.unlink(missing_ok=True)
    except (OSError, RuntimeError) as error:  # torch's own writer reports a full disk as a RuntimeError
        cause = getattr(error, "strerror", None) or str(error).splitlines()[0]
        raise DetectorError(
            f"{exported.path} cannot be written: {cause}. Choose another place, or free some space."
        ) from error
    return exported


def _weights(detector: Detector, layout: FileLayout, exported: Exported) -> "OrderedDict[str, Tensor]":
    own = {name: value.detach().cpu().clone() for name, value in detector.state_dict().items()}
    superfluous = [name for name in own if layout.leaves_out_zero and re.fullmatch(layout.leaves_out_zero, name)]
    if all(not own[name].any() for name in superfluous):
        reason = f"0, the value that {layout.library} implies"
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
    # The variance makes up for the library's other epsilon, which a variance close to 0 cannot.
    if float(value.min()) + difference < 0:
        raise DetectorError(
            f"{name} has a variance of {float(value.min()):g}, to which {layout.library} adds {layout.norm_eps:g} "
            f"and this detector {norm.eps:g}: the file would need a negative variance. Choose another layout."
        )
    exported.adjusted[key] = f"{difference:+g}: {layout.library} has another epsilon in its batch norm"
    return value + difference


def _known(detector: Detector) -> list[str]:
    return sorted(detector.published.export_layouts)
