"""Weights that others have published: read safely, matched by name, with a receipt that accounts for every key."""

import dataclasses
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from detectors.detector import Detector
from detectors.errors import DetectorError
from detectors.file_layouts import FileLayout
from detectors.weights import weight_sets
from detectors.weights.class_rows import ClassRows, names_in
from detectors.weights.plain_pickle import Inert, OddTensor, printable
from detectors.weights.reading import read
from detectors.weights.weight_sets import WeightSet


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
    prefix: str = ""
    """Prefix of the file's keys, which was removed."""
    inner_wrappers: list[str] = field(default_factory=list)
    """Parts that wrappers of single layers put inside the file's keys, and which were removed."""
    other_weights: dict[str, str] = field(default_factory=dict)
    """Place of each other set of weights in the file, to what it is."""
    loaded_weights: str = ""
    """Place of the set that was loaded, and what it is, if there are others."""
    ignored_objects: dict[str, int] = field(default_factory=dict)
    """Class of objects of a training runner, which were not read, to their number."""
    library: str = ""
    """The code base that the file is from, if its keys tell."""
    variant: str = ""
    """The detector's `variant` that computes what that code base does with the file, if it has one."""
    matched_classes: dict[str, str] = field(default_factory=dict)
    """Class of the detector whose rows were copied, to its name in the file; with `class_names` only."""
    new_classes: list[str] = field(default_factory=list)
    """Classes of the detector that the file does not know, whose rows keep their start; with `class_names` only."""
    class_source: str = ""
    """Origin of the file's class list; with `class_names` only."""
    published_with: list[str] = field(default_factory=list)
    """Settings of that code base that its published numbers depend on, where this detector's differ."""

    def as_dict(self) -> dict[str, Any]:
        """The receipt as plain values, for JSON."""
        return {**dataclasses.asdict(self), "path": str(self.path)}

    def summary(self) -> str:
        """Some lines of text: the counts, what was skipped and what is missing, by reason, and the warnings."""
        lines = [
            f"{self.path}: {len(self.loaded) + len(self.renamed)} loaded ({len(self.renamed)} of them under "
            f"another name), {len(self.skipped)} skipped, {len(self.missing)} missing"
        ]
        if self.prefix:
            lines.append(f"prefix  {printable(self.prefix)} removed from the keys")
        if self.inner_wrappers:
            lines.append(f"prefix  {', '.join(self.inner_wrappers)} removed inside the keys")
        for place, kind in self.other_weights.items():
            lines.append(f"weights  {self.loaded_weights} loaded; the file also has {place} {kind}")
        for what, keys in (("adjusted", self.adjusted), ("skipped", self.skipped), ("missing", self.missing)):
            for reason in dict.fromkeys(keys.values()):
                lines.append(f"{what}  {_some([key for key in keys if keys[key] == reason])}: {reason}")
        if self.class_source:
            matched = _all(list(self.matched_classes))
            lines.append(f"classes  copied: {matched} (the file's class list is {self.class_source})")
            if self.new_classes:
                lines.append(f"classes  new, from random weights: {_all(self.new_classes)}")
        if self.ignored_objects:
            names = [name if count == 1 else f"{name} ({count})" for name, count in self.ignored_objects.items()]
            lines.append(f"ignored  {', '.join(names)}: objects of a training, not read")
        if self.library:
            lines.append(f"library  {self.library}{f', variant {self.variant}' if self.variant else ''}")
        lines += [f"published with  {text}" for text in self.published_with]
        lines += [f"note  {note}" for note in self.notes]
        return "\n".join(lines)


def load(
    detector: Detector,
    path: str | os.PathLike[str],
    *,
    skip_mismatched: bool = False,
    averaged: bool = False,
    class_names: Sequence[str] = (),
    class_names_of_file: Sequence[str] = (),
) -> Receipt:
    """Load a published weights file into `detector`, key by key.

    Reads the files of the authors' code, of torchvision and of PyTorch's ImageNet models, and checkpoints of common
    training runners: a state dict under any key and behind any prefix, whichever fits the detector best. A file of the
    backbone alone loads into the backbone. The detector's `published.file_layouts` rename and adjust the entries of
    other libraries. The detector is changed only if the whole file fits.

    Args:
        detector: receives the weights; parameters that the file lacks keep their values.
        path: a file of safetensors, of `torch.save`, or a pickle of numpy arrays. No code in it is run.
        skip_mismatched: leave out tensors of another shape (another number of classes, say) instead of refusing.
        averaged: load the moving average of the weights, where the file also holds those of the last step.
        class_names: names of the detector's classes, in the order of the labels. In layers that count classes, only
            the rows of classes with the same name are copied from the file. Without them, rows are taken as they are.
        class_names_of_file: names of the file's classes, if they are known; otherwise those that the file holds, or
            COCO's if it has as many.

    Raises:
        DetectorError: the file is missing, damaged, is not a checkpoint, or holds code; no key fits the detector; a
            shape differs and `skip_mismatched` is not set; a tensor is sparse, quantised or complex; there is no
            average; `class_names` is set and the file's classes are unknown; or the file belongs to a variant that
            computes something else.
    """
    path = Path(path)
    receipt = Receipt(path)
    own = detector.state_dict()
    content = read(path)
    receipt.ignored_objects = content.objects
    chosen, others = _choose(content.entries, detector, own, averaged, receipt)
    layout = chosen.layout
    if layout is not None:
        receipt.library, receipt.variant = layout.library, layout.variant
        receipt.published_with = list(layout.published_with)
        if layout.note is not None:
            receipt.notes.append(f"the file is of {layout.library}, {layout.note}")
    rows = None
    if class_names:
        assert len(class_names) == detector.num_classes
        rows = ClassRows(class_names, class_names_of_file or names_in(content.entries), path)
    matched, mismatched = _match(detector, own, chosen, others, rows, receipt)
    if rows is not None:
        receipt.matched_classes, receipt.new_classes, receipt.class_source = rows.matched, rows.new, rows.source
        if not rows.source:
            receipt.notes.append("no class was matched, because the file has no layer that fits those of classes")
    if mismatched and not skip_mismatched:
        raise DetectorError(_mismatch(path, detector, own, mismatched))
    if not matched:
        raise DetectorError(_no_key_fits(path, detector, own, chosen.entries))
    absent = _account_for_missing(own, matched, dict(mismatched), layout, receipt)
    if damaged := [name for name, value in matched.items() if not bool(_comparable(value).isfinite().all())]:
        receipt.notes.append(f"{_some(damaged)}: values that are not finite, as in a training that diverged")
    # The only line that changes the detector: whatever is refused above leaves it as it was.
    detector.load_state_dict({**matched, **absent}, strict=False)
    return receipt


def variant_of(detector: Detector, path: str | os.PathLike[str]) -> str:
    """Return the detector's `variant` that a file belongs to, also one that refuses the file; empty if unknown.

    Args:
        detector: of any variant.
        path: as in `load`.

    Raises:
        DetectorError: the file is missing, damaged, is not a checkpoint, or holds code.
    """
    content = read(Path(path)).entries
    sets = weight_sets.find(content, detector, detector.state_dict())
    layout = weight_sets.layout_of(content, detector, sets[0] if sets else None)
    return layout.variant if layout is not None else ""


def _choose(
    content: Mapping[Any, Any], detector: Detector, own: Mapping[str, Tensor], averaged: bool, receipt: Receipt
) -> tuple[WeightSet, list[WeightSet]]:
    """Choose a set of weights, and account for everything beside it. Returns it, and the others."""
    sets = weight_sets.find(content, detector, own)
    refused = weight_sets.layout_of(content, detector, sets[0] if sets else None)
    if refused is not None and refused.refusal is not None:
        raise DetectorError(
            f"{receipt.path} does not fit this {detector.name}: it is of {refused.library}; {refused.refusal}."
        )
    if not sets:
        with_tensors = [entries for _, entries in weight_sets.dictionaries(content)]
        if not with_tensors:
            raise DetectorError(
                f"{receipt.path} is not a checkpoint: it holds {_some(list(content))}, but no tensor. Choose another "
                f"file."
            )
        raise DetectorError(_no_key_fits(receipt.path, detector, own, max(with_tensors, key=len)))
    chosen = next((one for one in sets if one.averaged), None) if averaged else sets[0]
    if chosen is None:
        raise DetectorError(
            f"{receipt.path} holds no moving average of the weights, only {', '.join(one.label for one in sets)}. "
            f"Leave averaged (--averaged) out."
        )
    receipt.prefix, receipt.inner_wrappers = chosen.prefix, weight_sets.inner_wrappers(chosen)
    others = [one for one in sets if one is not chosen]
    receipt.other_weights = {
        one.label: f"{_kind_of_set(one)}{'; --averaged chooses it' if one.averaged else ''}" for one in others
    }
    receipt.loaded_weights = f"{chosen.label} {_kind_of_set(chosen)}" if others else ""
    if chosen.averaged and not others:
        receipt.notes.append("the file holds a moving average of the weights, which was loaded")
    _account_for_wrappers(content, chosen, others, receipt)
    whole = weight_sets.completed(chosen, sets) if averaged else chosen
    if added := [name for key, name in whole.names.items() if key not in chosen.names]:
        receipt.notes.append(f"{_some(added)}: not in the average, so of the last step's weights")
    return whole, others


_OTHER_WEIGHTS = "of the other weights in the file"


def _kind_of_set(one: WeightSet) -> str:
    return "(the moving average)" if one.averaged else "(the last step)"


def _account_for_wrappers(
    content: Mapping[Any, Any], chosen: WeightSet, others: list[WeightSet], receipt: Receipt
) -> None:
    """Give a reason for every key beside the chosen dictionary, on the way to it and in it."""
    elsewhere = {one.path[: depth + 1] for one in others for depth in range(len(one.path))}
    level: Any = content
    for depth, wrapper in enumerate(chosen.path):
        for key, value in level.items():
            if key != wrapper:
                place = (*chosen.path[:depth], str(key))
                reason = f"beside {wrapper!r}: not a weight"
                if isinstance(value, Inert):
                    reason = f"an object of class {value.name}, not read"
                receipt.skipped[".".join(place)] = _OTHER_WEIGHTS if place in elsewhere else reason
        level = level[wrapper]
    for key in level:
        if not isinstance(key, str):
            receipt.skipped[str(key)] = "its key is not a name"


def _match(
    detector: Detector,
    own: Mapping[str, Tensor],
    chosen: WeightSet,
    others: list[WeightSet],
    rows: ClassRows | None,
    receipt: Receipt,
) -> tuple[dict[str, Tensor], list[tuple[str, Tensor]]]:
    """Match the file's keys to the detector's. Returns the tensors that fit, by name, and those of another shape."""
    matched: dict[str, Tensor] = {}
    mismatched: list[tuple[str, Tensor]] = []
    layout, trunk = chosen.layout, detector.published.backbone_prefix
    of_others = {key for one in others if one.path == chosen.path for key in one.names} - chosen.names.keys()
    for key, value in chosen.entries.items():
        name = chosen.names.get(key)
        if not isinstance(value, Tensor | OddTensor):
            receipt.skipped[key] = f"an object of class {value.name}" if isinstance(value, Inert) else "not a tensor"
            continue
        if key in of_others:
            receipt.skipped[key] = _OTHER_WEIGHTS
            continue
        if name is None:
            # A few keys may lack the prefix of the others.
            name = weight_sets.own_name(key.removeprefix("module."), own, trunk, layout)
        if name is None:
            receipt.skipped[key] = "the detector has no such parameter"
            continue
        value = _ordinary(receipt.path, key, value)
        # Before shapes are compared, since a layout may keep more class rows, or a number without a dimension.
        counts_classes = name.rpartition(".")[0] in detector.published.class_layers
        copied = rows.copied(value, own[name]) if rows is not None and counts_classes else None
        if copied is None:
            value, adjustment = _adjusted(detector, layout, name, value, own[name])
        else:
            value, adjustment = copied, "only the rows of classes with the same name"
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


def _ordinary(path: Path, key: str, value: Tensor | OddTensor) -> Tensor:
    """Refuse tensors that cannot be copied into a parameter, or only with a loss."""
    kind = "complex" if isinstance(value, Tensor) and value.is_complex() else getattr(value, "kind", "")
    if kind or not isinstance(value, Tensor):
        raise DetectorError(f"{printable(key)} in {path} is a {kind} tensor; save the file with ordinary ones.")
    return value


def _comparable(value: Tensor) -> Tensor:
    """A tensor of a dtype that torch compares: not all operations know the floating types of 8 bits."""
    return value.float() if value.is_floating_point() and value.dtype.itemsize == 1 else value


def _no_key_fits(path: Path, detector: Detector, own: Mapping[str, Tensor], entries: Mapping[str, Any]) -> str:
    return (
        f"{path} has no key that fits {detector.name}: the file has {_some(list(entries))}, the detector has "
        f"{_some(list(own))}. Choose the detector that the file was saved from."
    )


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
        f"Build it for {trained_on} (num_classes), copy the rows of classes with the same name (match_classes), or "
        "train these layers from random weights (skip_mismatched)."
    )


def _shape(tensor: Tensor) -> str:
    return "x".join(map(str, tensor.shape)) or "a single number"


def _all(names: list[str]) -> str:
    return ", ".join(map(printable, names)) or "none"


def _some(keys: list[str]) -> str:
    shown = ", ".join(map(printable, keys[:3]))
    return f"{shown} and {len(keys) - 3} more" if len(keys) > 3 else shown or "nothing"
