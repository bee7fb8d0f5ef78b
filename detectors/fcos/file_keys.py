"""Layouts of FCOS's weights in the files of its authors, AdelaiDet, mmdetection and torchvision."""

import re
from dataclasses import replace

from detectors.file_layouts import FileLayout

COCO_CATEGORY_IDS = tuple(number for number in range(1, 91) if number not in (12, 26, 29, 30, 45, 66, 68, 69, 71, 83))
"""The 80 category ids in use, in the order of the class list."""

_TOWER_BIAS = r"rpn\.head\.(cls|bbox)_tower\.[0369]\.bias"
"""Of the convolutions; the norms between them have a bias in every library."""

AUTHORS = FileLayout(
    library="FCOS's authors",
    marker="rpn.head.",
    norm_eps=0.0,
    renames_back=((r"^", "module."),),
    wrapper="model",
)

_BLOCK_PARTS = (
    ("shortcut.norm", "downsample.1"),
    ("shortcut", "downsample.0"),
    *((f"conv{number}.norm", f"bn{number}") for number in (1, 2, 3)),
    *((f"conv{number}", f"conv{number}") for number in (1, 2, 3)),
)
"""Parts of a bottleneck in detectron2 and here."""

_OTHER_MEAN = (
    "the mean 103.53, 116.28, 123.675 (blue, green, red) is subtracted; this detector subtracts 102.9801, 115.9465, "
    "122.7717"
)
_OF_DETECTRON2, _OF_MMDETECTION = (
    f"boxes end at x + width; train and evaluate with --data.box_ends edge --data.resizing {library}"
    for library in ("detectron2", "mmdetection")
)
_AREA = (
    "of several boxes around a point the one with the smallest w h is learnt; here with the smallest (w + 1) (h + 1)"
)
_MMDETECTION_SCORES = (
    "the score is class * centerness without a square root, so that a threshold t here is t² there; candidates rank by "
    "class alone; the IoU of suppression is without + 1"
)
_BIASES = "biases learn like other weights; fine-tune with --optimizer.bias_learning_rate_factor 1"

ADELAIDET = FileLayout(
    library="AdelaiDet",
    variant="adelaidet",
    marker="proposal_generator.",
    renames=(
        *(
            (
                rf"^(?:backbone\.bottom_up\.)?res{stage + 1}\.(\d+)\.{re.escape(theirs)}\.",
                rf"backbone.body.layer{stage}.\1.{ours}.",
            )
            for stage in (1, 2, 3, 4)
            for theirs, ours in _BLOCK_PARTS
        ),
        (r"^(?:backbone\.bottom_up\.)?stem\.conv1\.norm\.", "backbone.body.stem.bn1."),
        (r"^(?:backbone\.bottom_up\.)?stem\.conv1\.", "backbone.body.stem.conv1."),
        *((rf"^backbone\.fpn_lateral{level}\.", f"backbone.fpn.fpn_inner{level - 1}.") for level in (3, 4, 5)),
        *((rf"^backbone\.fpn_output{level}\.", f"backbone.fpn.fpn_layer{level - 1}.") for level in (3, 4, 5)),
        (r"^backbone\.top_block\.", "backbone.fpn.top_blocks."),
        (r"^proposal_generator\.fcos_head\.ctrness\.", "rpn.head.centerness."),
        (r"^proposal_generator\.fcos_head\.", "rpn.head."),
    ),
    norm_eps=1e-5,
    renames_back=(
        *(
            (
                rf"^backbone\.body\.layer{stage}\.(\d+)\.{re.escape(ours)}\.",
                rf"backbone.bottom_up.res{stage + 1}.\1.{theirs}.",
            )
            for stage in (1, 2, 3, 4)
            for theirs, ours in _BLOCK_PARTS
        ),
        (r"^backbone\.body\.stem\.bn1\.", "backbone.bottom_up.stem.conv1.norm."),
        (r"^backbone\.body\.stem\.conv1\.", "backbone.bottom_up.stem.conv1."),
        *((rf"^backbone\.fpn\.fpn_inner{level - 1}\.", f"backbone.fpn_lateral{level}.") for level in (3, 4, 5)),
        *((rf"^backbone\.fpn\.fpn_layer{level - 1}\.", f"backbone.fpn_output{level}.") for level in (3, 4, 5)),
        (r"^backbone\.fpn\.top_blocks\.", "backbone.top_block."),
        (r"^rpn\.head\.centerness\.", "proposal_generator.fcos_head.ctrness."),
        (r"^rpn\.head\.", "proposal_generator.fcos_head."),
    ),
    wrapper="model",
    published_with=(_OF_DETECTRON2, _BIASES),
)

DETECTRON2_IMAGENET = replace(ADELAIDET, library="detectron2", variant="", marker="stem.conv1.", published_with=())
"""detectron2's converted ImageNet files, which hold the trunk under the trunk's own names."""

_MMDETECTION_TOWERS = tuple(
    (f"{theirs}_convs.{i}.{layer}", f"{ours}_tower.{3 * i + offset}")
    for theirs, ours in (("cls", "cls"), ("reg", "bbox"))
    for i in range(4)
    for layer, offset in (("conv", 0), ("gn", 1))
)
"""Layers of the towers in mmdetection and here."""

MMDETECTION_BASE = FileLayout(
    library="mmdetection",
    variant="mmdetection_base",
    marker="bbox_head.",
    renames=(
        (r"^backbone\.(conv1|bn1)\.", r"backbone.body.stem.\1."),
        (r"^backbone\.layer", "backbone.body.layer"),
        *((rf"^neck\.lateral_convs\.{i}\.conv\.", f"backbone.fpn.fpn_inner{i + 2}.") for i in range(3)),
        *((rf"^neck\.fpn_convs\.{i}\.conv\.", f"backbone.fpn.fpn_layer{i + 2}.") for i in range(3)),
        *((rf"^neck\.fpn_convs\.{i + 3}\.conv\.", f"backbone.fpn.top_blocks.p{i + 6}.") for i in range(2)),
        *((rf"^bbox_head\.{re.escape(theirs)}\.", f"rpn.head.{ours}.") for theirs, ours in _MMDETECTION_TOWERS),
        # Early files of the library have fcos_ where later ones have conv_.
        (r"^bbox_head\.(conv|fcos)_cls\.", "rpn.head.cls_logits."),
        (r"^bbox_head\.(conv|fcos)_reg\.", "rpn.head.bbox_pred."),
        (r"^bbox_head\.(conv|fcos)_centerness\.", "rpn.head.centerness."),
        (r"^bbox_head\.scales\.", "rpn.head.scales."),
    ),
    norm_eps=1e-5,
    absent=((_TOWER_BIAS, 0.0),),
    renames_back=(
        (r"^backbone\.body\.stem\.", "backbone."),
        (r"^backbone\.body\.layer", "backbone.layer"),
        *((rf"^backbone\.fpn\.fpn_inner{i + 2}\.", f"neck.lateral_convs.{i}.conv.") for i in range(3)),
        *((rf"^backbone\.fpn\.fpn_layer{i + 2}\.", f"neck.fpn_convs.{i}.conv.") for i in range(3)),
        *((rf"^backbone\.fpn\.top_blocks\.p{i + 6}\.", f"neck.fpn_convs.{i + 3}.conv.") for i in range(2)),
        *((rf"^rpn\.head\.{re.escape(ours)}\.", f"bbox_head.{theirs}.") for theirs, ours in _MMDETECTION_TOWERS),
        (r"^rpn\.head\.cls_logits\.", "bbox_head.conv_cls."),
        (r"^rpn\.head\.bbox_pred\.", "bbox_head.conv_reg."),
        (r"^rpn\.head\.centerness\.", "bbox_head.conv_centerness."),
        (r"^rpn\.head\.scales\.", "bbox_head.scales."),
    ),
    wrapper="state_dict",
    beside={"meta": {}},
    counters=r"backbone\..*running_var",
    single_numbers=r"bbox_head\.scales\..*",
    published_with=(_OF_MMDETECTION,),
)
"""mmdetection's configurations of the paper's version, without biases in the towers."""

MMDETECTION = replace(MMDETECTION_BASE, variant="mmdetection", marker="bbox_head.cls_convs.0.conv.bias")
"""mmdetection's configurations of the improved version, with biases in the towers."""

TORCHVISION = FileLayout(
    library="torchvision",
    variant="torchvision",
    marker="head.classification_head.",
    norm_eps=1e-5,
    class_rows={len(COCO_CATEGORY_IDS): COCO_CATEGORY_IDS},
)

IMAGENET = FileLayout(
    library="an ImageNet classifier",
    marker="conv1.weight",
    renames=((r"^(conv1|bn1)\.", r"backbone.body.stem.\1."), (r"^layer", "backbone.body.layer")),
    norm_eps=1e-5,
)


_CAFFE_PARTS = (
    *((f"branch2{letter}", f"conv{number}", f"bn{number}") for number, letter in ((1, "a"), (2, "b"), (3, "c"))),
    ("branch1", "downsample.0", "downsample.1"),
)

CAFFE_IMAGENET = FileLayout(
    library="Detectron",
    marker="conv1_w",
    renames=(
        (r"^conv1_w$", "backbone.body.stem.conv1.weight"),
        (r"^res_conv1_bn_s$", "backbone.body.stem.bn1.weight"),
        (r"^res_conv1_bn_b$", "backbone.body.stem.bn1.bias"),
        *(
            (rf"^res{stage + 1}_(\d+)_{branch}{theirs}$", rf"backbone.body.layer{stage}.\1.{ours}")
            for stage in (1, 2, 3, 4)
            for branch, convolution, norm in _CAFFE_PARTS
            for theirs, ours in (
                ("_w", f"{convolution}.weight"),
                ("_bn_s", f"{norm}.weight"),
                ("_bn_b", f"{norm}.bias"),
            )
        ),
    ),
    # Statistics are folded into scale and shift.
    absent=((r"backbone\.body\..*running_mean", 0.0), (r"backbone\.body\..*running_var", 1.0)),
)
"""The ResNets of the paper's authors as Detectron pickled them (R-50.pkl), which FCOS's authors start from.

Source:
    tianzhi0549/FCOS, fcos_core/utils/c2_model_loading.py.
"""


def _caffe(norm_eps: float) -> FileLayout:
    # The folded norms stay the identity: the variance makes up for the epsilon.
    absent = ((r"backbone\.body\..*running_mean", 0.0), (r"backbone\.body\..*running_var", 1 - norm_eps))
    return replace(CAFFE_IMAGENET, absent=absent)


_DIFFERENCES = {
    "adelaidet": (
        _OTHER_MEAN,
        _OF_DETECTRON2,
        _AREA,
        "boxes are suppressed before they are clipped, by an IoU without + 1; here afterwards, with + 1",
        _BIASES,
    ),
    "mmdetection": (_OTHER_MEAN, _OF_MMDETECTION, _AREA, _MMDETECTION_SCORES),
    "mmdetection_base": (
        _OF_MMDETECTION,
        _AREA,
        _MMDETECTION_SCORES,
        "suppression begins at an IoU of 0.5; set --detector.settings.nms_threshold 0.5",
    ),
}
"""Differences of the libraries from the authors' own variants, by the library's variant."""


def _in_other_variant(layout: FileLayout, variant: str) -> FileLayout:
    """The layout of a file that loads into a detector of another variant, with a note."""
    belongs_to = f'variant="{layout.variant}"' if layout.variant else 'variant="original" or variant="improved"'
    remedy = f"set --detector.settings.variant {layout.variant}" if layout.variant else "set that variant"
    return replace(
        layout,
        note=f'which computes {belongs_to} with these weights; this detector has variant="{variant}". For the '
        f"published results, {remedy}",
        # The libraries differ from one another, too, but each has a variant that differs in nothing.
        published_with=_DIFFERENCES.get(layout.variant, ()) if variant in ("original", "improved") else (),
    )


def _refused(layout: FileLayout, why: str) -> FileLayout:
    variant = f'"{layout.variant}"' if layout.variant else '"original" or "improved"'
    return FileLayout(
        library=layout.library,
        variant=layout.variant,
        marker=layout.marker,
        refusal=f"{why}. Build the detector with variant={variant}",
    )


_OTHER_NETWORK = "its strides, points and heads differ"
_BIASED_TOWERS = 'its towers have biases, which variant="mmdetection_base" lacks'


def _of_authors_network(variant: str) -> tuple[FileLayout, ...]:
    """Layouts of a variant with the network of the authors, biases in the towers included."""
    # A marker of mmdetection's is the start of another one's, which has to come first.
    libraries = tuple(
        layout if layout.variant == variant else _in_other_variant(layout, variant)
        for layout in (ADELAIDET, MMDETECTION, MMDETECTION_BASE)
    )
    of_authors = variant in ("original", "improved")
    return (
        # The libraries' variants have the authors' keys, so that their own files are told from the authors' by the
        # prefix that DistributedDataParallel has left in these.
        AUTHORS if of_authors else _in_other_variant(replace(AUTHORS, behind="module."), variant),
        *libraries,
        *(IMAGENET, CAFFE_IMAGENET if of_authors else _caffe(1e-5), DETECTRON2_IMAGENET),
        _refused(TORCHVISION, _OTHER_NETWORK),
    )


LAYOUTS = {
    **{variant: _of_authors_network(variant) for variant in ("original", "improved", "adelaidet", "mmdetection")},
    "mmdetection_base": (
        *(_refused(layout, _BIASED_TOWERS) for layout in (AUTHORS, ADELAIDET, MMDETECTION)),
        *(MMDETECTION_BASE, IMAGENET, _caffe(1e-5), DETECTRON2_IMAGENET),
        _refused(TORCHVISION, _OTHER_NETWORK),
    ),
    "torchvision": (
        TORCHVISION,
        *(_refused(layout, _OTHER_NETWORK) for layout in (AUTHORS, ADELAIDET, MMDETECTION, MMDETECTION_BASE)),
    ),
}
"""By variant. The authors' own files of "original" and "improved" cannot be distinguished by their keys."""

_IMPROVED = {"authors": AUTHORS, "mmdetection": MMDETECTION, "adelaidet": ADELAIDET}
EXPORTS = {
    # Without biases in the towers this is the library's own configuration of the paper's version.
    "original": {"authors": AUTHORS, "mmdetection": replace(MMDETECTION, leaves_out_zero=_TOWER_BIAS)},
    **dict.fromkeys(("improved", "adelaidet", "mmdetection"), _IMPROVED),
    "mmdetection_base": {"mmdetection": MMDETECTION_BASE},
    "torchvision": {"torchvision": TORCHVISION},
}
"""Layouts that can hold a variant's network, by variant."""
