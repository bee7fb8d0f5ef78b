"""Finding the weights in a file: under whichever keys, behind whichever prefix, once or twice.

A runner writes a dictionary with the state dict somewhere in it, and wrappers (DataParallel, torch.compile, Lightning,
a student beside its teacher) put a prefix before every key. No list of such names is complete, so the content decides:
every dictionary with tensors and every prefix of its keys are tried, and the one that fits the detector best is taken.

A file may hold the weights twice: those of the last step, and their moving average.
"""

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from detectors.detector import Detector
from detectors.file_layouts import FileLayout
from detectors.weights.plain_pickle import OddTensor, printable

_DEEPEST = 5
"""Levels of dictionaries that are searched, and parts of a prefix."""
_MOST_DICTIONARIES = 2000
_MOST_PREFIXES = 8
"""Prefixes of one dictionary that are tried as a whole, the most promising first."""

_AVERAGE = re.compile(r"(?:^|[^a-z])(?:ema|swa|avg|averages?|averaged|polyak|shadow|teacher)(?![a-z])")


_INNER_WRAPPER = re.compile(r"(?<=\.)_(?:orig_mod|fsdp_wrapped_module|checkpoint_wrapped_module|forward_module)\.")
"""Parts that torch's wrappers of a single layer put inside its keys. No network has a part of such a name."""


@dataclass
class WeightSet:
    """One set of weights in a file."""

    path: tuple[str, ...]
    """Keys of the file that lead to its dictionary."""
    prefix: str
    """Prefix of its keys."""
    entries: Mapping[str, Any]
    """The dictionary, which may have other keys, too."""
    names: dict[str, str]
    """Key of the dictionary to key of the detector."""
    layout: FileLayout | None
    """The library that wrote it, if it is not the authors' code."""
    fit: int
    """Keys of the detector that it has, and tensors of the same shape."""
    named_average: bool
    """Its name says that it is a moving average."""
    averaged: bool
    """It is a moving average."""

    @property
    def label(self) -> str:
        """Its place in the file, for messages."""
        place = repr(".".join(self.path)) if self.path else ""
        keys = f"the keys {printable(self.prefix)}…" if self.prefix else ""
        return " under ".join(part for part in (keys, place) if part) or "the plain keys"


def find(content: Mapping[Any, Any], detector: Detector, own: Mapping[str, Tensor]) -> list[WeightSet]:
    """Return the sets of weights that fit the detector, best first. The first is what the file's own code would load.

    Sets that fit half as well as the best one or less are parts of something else.
    """
    sets: list[WeightSet] = []
    for path, entries in dictionaries(content):
        sets += _sets_of(path, entries, detector, own)
    best = max((one.fit for one in sets), default=0)
    # Some save each part of a network in a dictionary of its own. Two sets of weights side by side look alike, so the
    # parts are joined only where no dictionary has most of the detector.
    if best < len(own):
        joined = [one for path, entries in _joined(content) for one in _sets_of(path, entries, detector, own)]
        if (better := max((one.fit for one in joined), default=0)) > best:
            best, sets = better, joined
    sets = [one for one in sets if 2 * one.fit > best]
    if _swaps_averages(content):
        for one in sets:
            one.averaged = one.path == ("state_dict",)
    return sorted(sets, key=lambda one: (one.named_average, -one.fit))


def dictionaries(content: Mapping[Any, Any]) -> Iterator[tuple[tuple[str, ...], dict[str, Any]]]:
    """Yield the dictionaries with tensors, outer ones first, each with the keys that lead to it."""
    waiting: list[tuple[tuple[str, ...], Mapping[Any, Any]]] = [((), content)]
    seen = {id(content)}
    for path, mapping in waiting:
        entries = {key: value for key, value in mapping.items() if isinstance(key, str)}
        if any(isinstance(value, Tensor | OddTensor) for value in entries.values()):
            yield path, entries
        for key, value in entries.items():
            inner = isinstance(value, Mapping) and id(value) not in seen and len(path) < _DEEPEST
            # The state of an optimizer has a dictionary for each parameter, and none of them is a weight.
            if inner and len(waiting) < _MOST_DICTIONARIES and not key.startswith("optimizer"):
                seen.add(id(value))
                waiting.append(((*path, key), value))


def _joined(content: Mapping[Any, Any]) -> Iterator[tuple[tuple[str, ...], dict[str, Any]]]:
    """Yield the dictionaries of dictionaries with tensors, as if their content was theirs."""
    inner: dict[tuple[str, ...], dict[str, Any]] = {}
    for path, entries in dictionaries(content):
        if path:
            inner.setdefault(path[:-1], {}).update({f"{path[-1]}.{key}": value for key, value in entries.items()})
    yield from inner.items()


def inner_wrappers(one: WeightSet) -> list[str]:
    """Return the wrappers inside the keys of a set, without its prefix."""
    return sorted({found for key in one.names for found in _INNER_WRAPPER.findall(key[len(one.prefix) :])})


def layout_of(content: Mapping[Any, Any], detector: Detector, best: WeightSet | None) -> FileLayout | None:
    """Return the layout of a file: of its best set, or one that this detector refuses, even if no key of it fits.

    The trunk of a refused file may fit as if it were a file of its own.
    """
    for entries in [best.entries] if best else [entries for _, entries in dictionaries(content)]:
        for prefix in _prefixes(entries, detector, {}):
            layout = _layout(entries, prefix, detector)
            around = best is None or best.prefix.startswith(prefix)
            if around and layout is not None and layout.refusal is not None:
                return layout
    return best.layout if best else None


def completed(one: WeightSet, sets: list[WeightSet]) -> WeightSet:
    """Add what an average lacks, such as the statistics of batch norm, from the set that it is the average of."""
    source = next((other for other in sets if not other.averaged), None)
    if source is None or source.layout is not one.layout:
        return one
    present = set(one.names.values())
    missing = {key: name for key, name in source.names.items() if name not in present}
    places = {key: ".".join((*source.path, key)) for key in missing}
    return replace(
        one,
        entries={**one.entries, **{places[key]: source.entries[key] for key in missing}},
        names={**one.names, **{places[key]: name for key, name in missing.items()}},
    )


def own_name(key: str, own: Mapping[str, Tensor], backbone_prefix: str, layout: FileLayout | None) -> str | None:
    """Return the detector's name for a key without prefix; None if the detector has no such parameter."""
    key = _INNER_WRAPPER.sub("", key)
    translated = key if layout is None else layout.own_name(key)
    return next((name for name in (key, translated, backbone_prefix + key) if name in own), None)


def _sets_of(
    path: tuple[str, ...], entries: dict[str, Any], detector: Detector, own: Mapping[str, Tensor]
) -> list[WeightSet]:
    tried = []
    for prefix in _prefixes(entries, detector, own):
        layout = _layout(entries, prefix, detector)
        names = {
            key: name
            for key in entries
            if key.startswith(prefix)
            and (name := own_name(key[len(prefix) :], own, detector.published.backbone_prefix, layout))
        }
        if names:
            same = sum(getattr(entries[key], "shape", None) == own[name].shape for key, name in names.items())
            tried.append((len(set(names.values())) + same, prefix, names, layout))
    tried.sort(key=lambda one: (-one[0], len(one[1])))
    sets: list[WeightSet] = []
    for fit, prefix, names, layout in tried:
        # A trunk is a part of its detector, not a second set.
        if any(not names.keys().isdisjoint(other.names) for other in sets):
            continue
        named = _is_average(".".join((*path, prefix)))
        counted = f"{prefix.removesuffix('module.')}n_averaged" in entries and prefix.endswith("module.")
        sets.append(WeightSet(path, prefix, entries, names, layout, fit, named, named or counted))
    return sets + [flat for one in sets if (flat := _with_flat_average(one, own)) is not None]


def _prefixes(entries: Mapping[str, Any], detector: Detector, own: Mapping[str, Tensor]) -> list[str]:
    """Return the prefixes behind which there may be weights: a known name, or the mark of a library."""
    markers = tuple(layout.marker for layout in detector.published.file_layouts)
    trunk = detector.published.backbone_prefix
    keys, known, marked = Counter[str](), Counter[str](), set[str]()
    for key in entries:
        start = 0
        for _ in range(_DEEPEST):
            prefix, rest = key[:start], _INNER_WRAPPER.sub("", key[start:])
            keys[prefix] += 1
            known[prefix] += rest in own or trunk + rest in own
            if markers and rest.startswith(markers):
                marked.add(prefix)
            start = key.find(".", start) + 1
            if start == 0:
                break
    promise = {prefix: keys[prefix] if prefix in marked else known[prefix] for prefix in keys}
    promising = sorted((prefix for prefix in keys if promise[prefix]), key=lambda one: (-promise[one], len(one)))
    return promising[:_MOST_PREFIXES]


def _layout(entries: Mapping[str, Any], prefix: str, detector: Detector) -> FileLayout | None:
    """Recognise the library that wrote the file by its keys; the first layout that fits decides."""
    for layout in detector.published.file_layouts:
        if prefix.endswith(layout.behind) and any(key.startswith(prefix + layout.marker) for key in entries):
            return layout
    return None


def _with_flat_average(one: WeightSet, own: Mapping[str, Tensor]) -> WeightSet | None:
    """Return the set whose average is in buffers of the same dictionary, named without dots.

    mmcv's hook names them `ema_backbone_conv1_weight`, others `model_ema.backboneconv1weight`. Such an average has
    parameters only; the statistics of batch norm are those of the set itself.
    """
    names: dict[str, str] = {}
    for key, name in one.names.items():
        rest = key[len(one.prefix) :]
        flat = [f"ema_{part.replace('.', '_')}" for part in (key, rest)]
        flat += [f"model_ema.{part.replace('.', '')}" for part in (key, rest)]
        average = next((other for other in flat if other in one.entries), None)
        names[average or key] = name
    found = [key for key in names if key not in one.names]
    if 2 * len(found) <= len([name for name in names.values() if not name.endswith(_STATISTICS)]):
        return None
    prefix = "model_ema." if found[0].startswith("model_ema.") else "ema_"
    return WeightSet(one.path, prefix, one.entries, names, one.layout, one.fit, named_average=True, averaged=True)


_STATISTICS = ("running_mean", "running_var", "num_batches_tracked")


def _swaps_averages(content: Mapping[Any, Any]) -> bool:
    """Recognise files of mmengine, whose EMAHook exchanges the two sets: `state_dict` then holds the average.

    Source:
        open-mmlab/mmengine, mmengine/hooks/ema_hook.py, before_save_checkpoint.
    """
    meta = content.get("meta")
    of_mmengine = "message_hub" in content or (isinstance(meta, Mapping) and "mmengine_version" in meta)
    return of_mmengine and "ema_state_dict" in content


def _is_average(name: str) -> bool:
    return bool(_AVERAGE.search(re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).lower()))
