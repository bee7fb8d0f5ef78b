"""Where the files of FCOS's authors, AdelaiDet, mmdetection and torchvision keep FCOS's parameters."""

from detectors.file_layouts import FileLayout

COCO_CATEGORY_IDS = tuple(number for number in range(1, 91) if number not in (12, 26, 29, 30, 45, 66, 68, 69, 71, 83))
"""The 80 category ids in use, in the order of the class list."""

_TOWER_BIAS = r"rpn\.head\.(cls|bbox)_tower\.\d+\.bias"

AUTHORS = FileLayout(library="FCOS's authors", marker="rpn.head.", norm_eps=0.0)

ADELAIDET = FileLayout(
    library="AdelaiDet",
    marker="proposal_generator.",
    renames=(
        *(
            (rf"^backbone\.bottom_up\.res{stage + 1}\.(\d+)\.{theirs}\.", rf"backbone.body.layer{stage}.\1.{ours}.")
            for stage in (1, 2, 3, 4)
            for theirs, ours in (
                (r"shortcut\.norm", "downsample.1"),
                ("shortcut", "downsample.0"),
                *((rf"conv{number}\.norm", f"bn{number}") for number in (1, 2, 3)),
                *((f"conv{number}", f"conv{number}") for number in (1, 2, 3)),
            )
        ),
        (r"^backbone\.bottom_up\.stem\.conv1\.norm\.", "backbone.body.stem.bn1."),
        (r"^backbone\.bottom_up\.stem\.conv1\.", "backbone.body.stem.conv1."),
        *((rf"^backbone\.fpn_lateral{level}\.", f"backbone.fpn.fpn_inner{level - 1}.") for level in (3, 4, 5)),
        *((rf"^backbone\.fpn_output{level}\.", f"backbone.fpn.fpn_layer{level - 1}.") for level in (3, 4, 5)),
        (r"^backbone\.top_block\.", "backbone.fpn.top_blocks."),
        (r"^proposal_generator\.fcos_head\.ctrness\.", "rpn.head.centerness."),
        (r"^proposal_generator\.fcos_head\.", "rpn.head."),
    ),
    norm_eps=1e-5,
)

MMDETECTION = FileLayout(
    library="mmdetection",
    marker="bbox_head.",
    renames=(
        (r"^backbone\.(conv1|bn1)\.", r"backbone.body.stem.\1."),
        (r"^backbone\.layer", "backbone.body.layer"),
        *((rf"^neck\.lateral_convs\.{i}\.conv\.", f"backbone.fpn.fpn_inner{i + 2}.") for i in range(3)),
        *((rf"^neck\.fpn_convs\.{i}\.conv\.", f"backbone.fpn.fpn_layer{i + 2}.") for i in range(3)),
        *((rf"^neck\.fpn_convs\.{i + 3}\.conv\.", f"backbone.fpn.top_blocks.p{i + 6}.") for i in range(2)),
        *(
            (rf"^bbox_head\.{theirs}_convs\.{i}\.{layer}\.", f"rpn.head.{ours}_tower.{3 * i + offset}.")
            for theirs, ours in (("cls", "cls"), ("reg", "bbox"))
            for i in range(4)
            for layer, offset in (("conv", 0), ("gn", 1))
        ),
        # The library's early files say fcos_ where later ones say conv_.
        (r"^bbox_head\.(conv|fcos)_cls\.", "rpn.head.cls_logits."),
        (r"^bbox_head\.(conv|fcos)_reg\.", "rpn.head.bbox_pred."),
        (r"^bbox_head\.(conv|fcos)_centerness\.", "rpn.head.centerness."),
        (r"^bbox_head\.scales\.", "rpn.head.scales."),
    ),
    norm_eps=1e-5,
    absent_is_zero=_TOWER_BIAS,
)

TORCHVISION = FileLayout(
    library="torchvision",
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


def _refused(layout: FileLayout, variant: str) -> FileLayout:
    return FileLayout(
        library=layout.library,
        marker=layout.marker,
        refusal=f"its strides, points and heads are others. Build the detector with variant={variant}",
    )


AUTHORS_LAYOUTS = (AUTHORS, ADELAIDET, MMDETECTION, IMAGENET, _refused(TORCHVISION, '"torchvision"'))
"""For the variants "original" and "improved", whose files cannot be told apart by their keys."""
TORCHVISION_LAYOUTS = (
    TORCHVISION,
    *(_refused(layout, '"original" or "improved"') for layout in (AUTHORS, ADELAIDET, MMDETECTION)),
)
"""For the variant "torchvision"."""
