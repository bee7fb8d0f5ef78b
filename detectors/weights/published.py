"""Weights that others have published: read safely, matched by name, with a receipt that accounts for every key."""

import dataclasses
import os
import pickle
import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from detectors.detector import Detector
from detectors.errors import DetectorError
from detectors.file_layouts import FileLayout
from detectors.weights.plain_pickle import ForbiddenGlobalError, read_arrays

_WRAPPERS = ("state_dict", "model", "model_state_dict", "blobs")

# The first bytes of torch.save before PyTorch 1.6: its magic number as a pickle.
_OLD_TORCH = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."


@dataclass
class Receipt:
    """Account of every key of a weights file, and of every key of the detector.

    Each key of the file is in exactly one of `loaded`, `renamed` and `skipped`; each key of the detector is in
    `loaded`, among the values of `renamed`, or in `missing`.
    """

    path: Path
    loaded: list[str] = field(default_factory=list)
    """Keys that are the same in the file and in the detector."""
    renamed: dict[str, str] = field(default_factory=dict)
    """Key in the file to key in the detector."""
    skipped: dict[str, str] = field(default_factory=dict)
    """Key in the file to the reason why it was not used."""
    missing: dict[str, str] = field(default_factory=dict)
    """Key in the detector, which keeps the value it had (unless the reason says otherwise), to the reason."""
    adjusted: dict[str, str] = field(default_factory=dict)
    """Key in the detector, loaded or renamed, whose value is not bit for bit the file's, to the change."""
    notes: list[str] = field(default_factory=list)
    """Warnings about the file, which loads nevertheless."""

    def as_dict(self) -> dict[str, Any]:
        """The receipt as plain values, for JSON."""
        return {**dataclasses.asdict(self), "path": str(self.path)}

    def summary(self) -> str:
        """Some lines of text: the counts, what was skipped and what is missing, by reason, and the warnings."""
        lines = [
            f"{self.path}: {len(self.loaded) + len(self.renamed)} loaded ({len(self.renamed)} of them under "
            f"another name), {len(self.skipped)} skipped, {len(self.missing)} missing"
        ]
        for what, keys in (("adjusted", self.adjusted), ("skipped", self.skipped), ("missing", self.missing)):
            for reason in dict.fromkeys(keys.values()):
                lines.append(f"{what}  {_some([key for key in keys if keys[key] == reason])}: {reason}")
        lines += [f"note  {note}" for note in self.notes]
        return "\n".join(lines)


def load(detector: Detector, path: str | os.PathLike[str], *, skip_mismatched: bool = False) -> Receipt:
    """Load a published weights file into `detector`, key by key.

    Reads the files of the authors' code, of torchvision and of PyTorch's ImageNet models: a state dict, plain or under
    "state_dict", "model" or "blobs", with or without the prefix "module." and the counters of batch norm. A file of the
    backbone alone loads into the backbone. The detector's `published.file_layouts` rename and adjust the entries of
    other libraries. The detector is changed only if the whole file fits.

    Args:
        detector: receives the weights; parameters that the file lacks keep their values.
        path: `.safetensors`, or with any other name a file of `torch.save` or a pickle of numpy arrays. No code in
            it is run.
        skip_mismatched: leave out tensors of another shape (another number of classes, say) instead of refusing.

    Raises:
        DetectorError: the file is missing, is not a checkpoint, or holds code; no key fits the detector; a shape
            differs and `skip_mismatched` is not set; a tensor is sparse, quantised or complex; or the file belongs to
            a variant that computes something else.
    """
    path = Path(path)
    receipt = Receipt(path)
    own = detector.state_dict()
    entries = _unwrap(read(path), receipt)
    layout = _layout(detector, entries, receipt)
    matched, mismatched = _match(detector, own, entries, layout, receipt)
    if mismatched and not skip_mismatched:
        raise DetectorError(_mismatch(path, detector, own, mismatched))
    if not matched:
        raise DetectorError(
            f"{path} has no key that fits {detector.name}: the file has {_some(list(entries))}, the detector has "
            f"{_some(list(own))}. Choose the detector that the file was saved from."
        )
    absent = _account_for_missing(own, matched, dict(mismatched), layout, receipt)
    if damaged := [name for name, value in matched.items() if not bool(value.isfinite().all())]:
        receipt.notes.append(f"{_some(damaged)}: values that are not finite, as in a training that diverged")
    # The only line that changes the detector: whatever is refused above leaves it as it was.
    detector.load_state_dict({**matched, **absent}, strict=False)
    return receipt


def read(path: Path) -> Mapping[str, Any]:
    """Read a weights file to the CPU, as it was saved.

    Raises:
        DetectorError: the file is missing, is not a checkpoint, or holds code.
    """
    if not path.is_file():
        state = "is a folder, not a file" if path.is_dir() else "is not there"
        raise DetectorError(f"weights file {path} {state}. Check the path.")
    no_checkpoint = f"{path} is not a checkpoint: "
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        if _is_plain_pickle(path):
            with path.open("rb") as file:
                content = read_arrays(file)
        else:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # torch asks to report an issue if a file is not a checkpoint at all
                content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        named = error.args[0] if isinstance(error, ForbiddenGlobalError) else None
        found = re.search(r"GLOBAL ([\w.]+)", str(error))
        if code := named or (found and found.group(1)):
            raise DetectorError(
                f"{path} holds code or objects beside tensors ({code}), which loading would run; refused. "
                "Where you trust it, save it again as torch.save(model.state_dict(), path)."
            ) from error
        raise DetectorError(
            f"{no_checkpoint}neither a file of torch.save nor a pickle of arrays. Choose another file."
        ) from error
    except Exception as error:  # the parsers raise whatever they meet in a damaged file
        raise DetectorError(
            f"{no_checkpoint}damaged or of another kind ({type(error).__name__}). Fetch it again."
        ) from error
    if not isinstance(content, Mapping):
        raise DetectorError(
            f"{no_checkpoint}it holds a {type(content).__name__}, not a state dict. Choose another file."
        )
    return content


def _is_plain_pickle(path: Path) -> bool:
    """Tell files of Python's pickle from those of torch.save, old or new."""
    with path.open("rb") as file:
        start = file.read(len(_OLD_TORCH))
    return start != _OLD_TORCH and start[:1] == b"\x80" and start[1:2] <= b"\x05"


def _unwrap(content: Mapping[str, Any], receipt: Receipt) -> Mapping[str, Any]:
    for wrapper in _WRAPPERS:
        if isinstance(content.get(wrapper), Mapping):
            for key in content:
                if key != wrapper:
                    receipt.skipped[key] = f"beside {wrapper!r}: not a weight"
            content = content[wrapper]
            break
    for key in content:
        if not isinstance(key, str):
            receipt.skipped[str(key)] = "its key is not a name"
    content = {key: value for key, value in content.items() if isinstance(key, str)}
    if not any(isinstance(value, Tensor) for value in content.values()):
        raise DetectorError(
            f"{receipt.path} is not a checkpoint: it holds {_some(list(content))}, but no tensor. Choose another file."
        )
    return content


def _layout(detector: Detector, entries: Mapping[str, Any], receipt: Receipt) -> FileLayout | None:
    """Recognise the library that wrote the file by its keys; the first layout that fits decides."""
    bare = [str(key).removeprefix("module.") for key in entries]
    for layout in detector.published.file_layouts:
        if not any(key.startswith(layout.marker) for key in bare):
            continue
        if layout.refusal is not None:
            raise DetectorError(
                f"{receipt.path} does not fit this {detector.name}: it is of {layout.library}; {layout.refusal}."
            )
        if layout.note is not None:
            receipt.notes.append(f"the file is of {layout.library}, {layout.note}")
        return layout
    return None


def _match(
    detector: Detector,
    own: Mapping[str, Tensor],
    entries: Mapping[str, Any],
    layout: FileLayout | None,
    receipt: Receipt,
) -> tuple[dict[str, Tensor], list[tuple[str, Tensor]]]:
    """Match the file's keys to the detector's. Returns the tensors that fit, by name, and those of another shape."""
    matched: dict[str, Tensor] = {}
    mismatched: list[tuple[str, Tensor]] = []
    for key, value in entries.items():
        name = _own_name(key, own, detector.published.backbone_prefix, layout)
        if not isinstance(value, Tensor):
            receipt.skipped[key] = "not a tensor"
            continue
        if name is None:
            receipt.skipped[key] = "the detector has no such parameter"
            continue
        _check_kind(receipt.path, key, value)
        # Before shapes are compared, since a layout may keep more class rows, or a number without a dimension.
        value, adjustment = _adjusted(detector, layout, name, value, own[name])
        if name in matched:
            receipt.skipped[key] = f"{name} is in the file twice"
        elif value.shape != own[name].shape:
            mismatched.append((name, value))
            receipt.skipped[key] = f"shape {_shape(value)}, the detector's is {_shape(own[name])}"
        else:
            matched[name] = value
            if adjustment is not None:
                receipt.adjusted[name] = adjustment
            if name == key:
                receipt.loaded.append(key)
            else:
                receipt.renamed[key] = name
    return matched, mismatched


def _account_for_missing(
    own: Mapping[str, Tensor],
    matched: Mapping[str, Tensor],
    of_other_shape: Mapping[str, Tensor],
    layout: FileLayout | None,
    receipt: Receipt,
) -> dict[str, Tensor]:
    """Give a reason for every key of the detector that the file lacks. Returns fixed values, by name."""
    absent: dict[str, Tensor] = {}
    for name in own:
        if name in matched:
            continue
        if name in of_other_shape:
            receipt.missing[name] = "another shape in the file"
        elif layout is not None and (value := layout.value_of_absent(name)) is not None:
            receipt.missing[name] = f"{layout.library} does without it; set to {value:g}"
            absent[name] = torch.full_like(own[name], value)
        elif name.endswith("num_batches_tracked"):
            # PyTorch before 0.4.1 did not count, so that files of that age lack the counter.
            receipt.missing[name] = "not in the file, which may be older than this counter of batch norm"
        else:
            receipt.missing[name] = "not in the file"
    return absent


def _own_name(key: str, own: Mapping[str, Tensor], backbone_prefix: str, layout: FileLayout | None) -> str | None:
    bare = key.removeprefix("module.")
    translated = bare if layout is None else layout.own_name(bare)
    return next((name for name in (key, bare, translated, backbone_prefix + bare) if name in own), None)


def _adjusted(
    detector: Detector, layout: FileLayout | None, name: str, value: Tensor, own: Tensor
) -> tuple[Tensor, str | None]:
    """A file's tensor as the detector needs it, and a description of the change, if any."""
    if layout is None:
        return value, None
    # mmdetection keeps FCOS's factors as single numbers, its authors as lists of one.
    if value.shape != own.shape and value.numel() == own.numel() == 1:
        return value.reshape(own.shape), f"{_shape(value)} in the file, {_shape(own)} in the detector"
    rows = layout.class_rows.get(detector.num_classes)
    if rows and name.rpartition(".")[0] in detector.published.class_layers and value.shape[0] > max(rows):
        return value[list(rows)], f"{len(rows)} of the file's {value.shape[0]} rows: the classes in use"
    if name.endswith(".running_var") and layout.norm_eps is not None:
        norm: Any = detector.get_submodule(name.rpartition(".")[0])
        difference = layout.norm_eps - norm.eps
        if difference:
            # Only the sum of variance and epsilon is used, so the layer computes the same.
            return value + difference, f"{difference:+g}: the file's batch norm has another epsilon"
    return value, None


def _check_kind(path: Path, key: str, value: Tensor) -> None:
    """Refuse tensors that cannot be copied into a parameter, or only with a loss."""
    kinds = {
        "sparse": value.layout != torch.strided,
        "quantised": value.is_quantized,
        "complex": value.is_complex(),
        "meta": value.is_meta,
    }
    if found := [kind for kind, holds in kinds.items() if holds]:
        raise DetectorError(f"{key} in {path} is a {found[0]} tensor; save the file with ordinary ones.")


def _mismatch(path: Path, detector: Detector, own: Mapping[str, Tensor], mismatched: list[tuple[str, Tensor]]) -> str:
    by_class = [
        (name, value) for name, value in mismatched if name.rpartition(".")[0] in detector.published.class_layers
    ]
    name, value = (by_class if len(by_class) == len(mismatched) else mismatched)[0]
    shapes = f"{name} is {_shape(value)} in {path} but {_shape(own[name])} in {detector.name}"
    more = f" (and {len(mismatched) - 1} more)" if len(mismatched) > 1 else ""
    if len(by_class) < len(mismatched):
        return f"{shapes}{more}; choose the detector and settings that the file was saved with."
    per_class = own[name].shape[0] // detector.num_classes
    trained_on = value.shape[0] // per_class
    return (
        f"{shapes}{more}: the file was trained on {trained_on} classes, the detector has {detector.num_classes}. "
        f"Build it for {trained_on} (num_classes), or leave these layers out and train them from "
        "random weights (skip_mismatched)."
    )


def _shape(tensor: Tensor) -> str:
    return "x".join(map(str, tensor.shape)) or "a single number"


def _some(keys: list[str]) -> str:
    shown = ", ".join(map(str, keys[:3]))
    return f"{shown} and {len(keys) - 3} more" if len(keys) > 3 else shown or "nothing"
