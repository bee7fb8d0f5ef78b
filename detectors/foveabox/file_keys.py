"""Layouts of FoveaBox's weights in the files of its authors and of mmdetection.

The detector's keys are those of mmdetection today. Older files, the authors' and those that mmdetection has published,
name the last two layers differently.
"""

from detectors.file_layouts import FileLayout

AUTHORS = FileLayout(
    library="FoveaBox's authors, or an early mmdetection",
    marker="bbox_head.fovea_",
    renames=((r"^bbox_head\.fovea_(cls|reg)\.", r"bbox_head.conv_\1."),),
    renames_back=((r"^bbox_head\.conv_(cls|reg)\.", r"bbox_head.fovea_\1."),),
    wrapper="state_dict",
    beside={"meta": {}},
    published_with=(
        "boxes of mmdetection's own files (of 2020) end at x + width; train and evaluate those with "
        "--data.box_ends edge --detector.settings.box_ends edge",
    ),
)

MMDETECTION = FileLayout(library="mmdetection", marker="bbox_head.", wrapper="state_dict", beside={"meta": {}})

FCOS = FileLayout(
    library="mmdetection",
    marker="bbox_head.scales.",
    refusal="it is an FCOS, whose head computes something else. Build the detector fcos_resnet50 or fcos_resnet101",
)

# Files under mmdetection's present names need no layout: the keys are the detector's own.
LAYOUTS = (FCOS, AUTHORS)

EXPORTS = {"authors": AUTHORS, "mmdetection": MMDETECTION}
