"""Layouts of the weights of CornerNet, CornerNet-Squeeze and CornerNet-Saccade in their authors' files.

A file is the state dict itself, with "module." before every key. Files from PyTorch 0.4.0 lack the counters of batch
norm.
"""

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
    ),
    "squeeze": (_refused(SACCADE, "build cornernet_saccade for it"), SQUEEZE),
    "saccade": (_refused(SQUEEZE, "build cornernet_squeeze for it"), SACCADE),
}
"""Layouts that a file is compared with, by network; the first that fits decides."""
