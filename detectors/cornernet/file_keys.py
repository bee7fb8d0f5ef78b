"""Layouts of the weights of CornerNet, CornerNet-Squeeze and CornerNet-Saccade in the files of others.

The authors' files are the state dict itself, with "module." before every key. Files from PyTorch 0.4.0 lack the
counters of batch norm.
"""

import re
from collections.abc import Iterator
from dataclasses import replace

from detectors.file_layouts import FileLayout

_MODULE = ((r"^", "module."),)

CORNERNET = FileLayout(library="CornerNet's authors", marker="tl_cnvs.", renames_back=_MODULE)

CORNERNET_LITE = FileLayout(
    library="CornerNet-Lite's own CornerNet",
    marker="hg.",
    renames=(
        (r"^hg\.hgs\.", "kps."),
        (r"^hg\.", ""),
        (r"^(tl|br)_modules\.", r"\1_cnvs."),
        (r"^(tl|br)_offs\.", r"\1_regrs."),
    ),
    renames_back=(
        (r"^kps\.", "module.hg.hgs."),
        (r"^(pre|cnvs|inters|inters_|cnvs_)\.", r"module.hg.\1."),
        (r"^(tl|br)_cnvs\.", r"module.\1_modules."),
        (r"^(tl|br)_regrs\.", r"module.\1_offs."),
        *_MODULE,
    ),
)
"""The authors' later code names the layers of CornerNet in another way."""

SQUEEZE = FileLayout(library="CornerNet-Squeeze's authors", marker="hg.pre.2.", renames_back=_MODULE)

SACCADE = FileLayout(library="CornerNet-Saccade's authors", marker="att_modules.", renames_back=_MODULE)

TRIPLETS = FileLayout(library="Keypoint Triplets' authors", marker="ct_cnvs.", renames_back=_MODULE)


_MMDETECTION_NAMES = (
    ("backbone.stem.1.0.downsample.", "pre.1.skip."),
    ("backbone.stem.1.0.", "pre.1."),
    ("backbone.stem.", "pre."),
    ("backbone.hourglass_modules.{path}.downsample.", "kps.{path}.skip."),
    ("backbone.hourglass_modules.", "kps."),
    ("backbone.out_convs.", "cnvs."),
    ("backbone.inters.", "inters."),
    *(
        (f"backbone.{theirs}.{{stack}}.{part}.", f"{ours}.{{stack}}.{number}.")
        for theirs, ours in (("conv1x1s", "inters_"), ("remap_convs", "cnvs_"))
        for number, part in enumerate(("conv", "bn"))
    ),
    *(
        (f"bbox_head.{{corner}}_pool.{{stack}}.{theirs}.", f"{{corner}}_cnvs.{{stack}}.{ours}.")
        for theirs, ours in (
            ("direction1_conv", "p1_conv1"),
            ("direction2_conv", "p2_conv1"),
            ("aftpool_conv.conv", "p_conv1"),
            ("aftpool_conv.bn", "p_bn1"),
            ("conv1.conv", "conv1"),
            ("conv1.bn", "bn1"),
            ("conv2", "conv2"),
        )
    ),
    *(
        (f"bbox_head.{{corner}}_{theirs}.{{stack}}.{layer}.", f"{{corner}}_{ours}.{{stack}}.{own_layer}.")
        for theirs, ours in (("heat", "heats"), ("emb", "tags"), ("off", "regrs"))
        for layer, own_layer in (("0", "0"), ("1.conv", "1"))
    ),
)
"""Beginnings of mmdetection's keys and of ours."""

_PLACEHOLDERS = {"stack": r"\d+", "corner": "tl|br", "path": ".+"}


def _renames(pairs: tuple[tuple[str, str], ...]) -> Iterator[tuple[str, str]]:
    for before, after in pairs:
        pattern = re.escape(before).replace(r"\{", "{").replace(r"\}", "}")
        pattern = pattern.format(**{name: f"(?P<{name}>{values})" for name, values in _PLACEHOLDERS.items()})
        yield f"^{pattern}", after.format(**{name: rf"\g<{name}>" for name in _PLACEHOLDERS})


MMDETECTION = FileLayout(
    library="mmdetection",
    marker="bbox_head.tl_pool.",
    renames=tuple(_renames(_MMDETECTION_NAMES)),
    renames_back=tuple(_renames(tuple((ours, theirs) for theirs, ours in _MMDETECTION_NAMES))),
    wrapper="state_dict",
    beside={"meta": {}},
    note="which trains on RGB images with ImageNet's mean and deviation. This detector takes BGR images with COCO's, "
    "and has no setting for it: fine-tune the weights",
    published_with=("scores below 0.05 are dropped before soft-NMS",),
)


def _refused(layout: FileLayout, reason: str, renames: tuple[tuple[str, str], ...] = ()) -> FileLayout:
    return replace(layout, renames=renames, refusal=reason)


LAYOUTS = {
    "cornernet": (
        # Some layers of the others have the same names and shapes. Renamed, they are recognised behind any prefix.
        _refused(SACCADE, "build cornernet_saccade for it", CORNERNET_LITE.renames),
        _refused(SQUEEZE, "build cornernet_squeeze for it", CORNERNET_LITE.renames),
        _refused(TRIPLETS, "it also has centres. Build keypoint_triplets_hourglass104 or _hourglass52 for it"),
        CORNERNET,
        CORNERNET_LITE,
        MMDETECTION,
    ),
    "squeeze": (_refused(SACCADE, "build cornernet_saccade for it"), SQUEEZE),
    "saccade": (_refused(SQUEEZE, "build cornernet_squeeze for it"), SACCADE),
}
"""Layouts that a file is compared with, by network; the first that fits decides."""
