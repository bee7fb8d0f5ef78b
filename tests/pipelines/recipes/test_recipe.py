"""Recipes: the published schedules, flags, YAML there and back, and one clear line for every mistake."""

from pathlib import Path

import numpy as np
import pytest
import yaml

from cluster.errors import ClusterError
from pipelines import recipes
from pipelines.errors import ConfigError
from pipelines.recipes.recipe import (
    as_flags,
    differences,
    field_help,
    fields,
    from_dict,
    from_yaml,
    run_name,
    to_dict,
    to_yaml,
    with_flags,
)
from pipelines.recipes.settings import Schedule
from pipelines.training.checks import split_on_most_workers


@pytest.mark.parametrize(
    ("name", "batch", "learning_rate", "epochs", "drops_at"),
    [
        ("centernet_resdcn18_1x", 114, 5e-4, 140, (90, 120)),
        ("centernet_resdcn18_2x", 114, 5e-4, 230, (180, 210)),
        ("centernet_resdcn101_1x", 96, 3.75e-4, 140, (90, 120)),
        ("centernet_resdcn101_2x", 96, 3.75e-4, 230, (180, 210)),
        ("centernet_dla34_1x", 128, 5e-4, 140, (90, 120)),
        ("centernet_dla34_2x", 128, 5e-4, 230, (180, 210)),
        ("centernet_dla34_original_1x", 128, 5e-4, 140, (90, 120)),
        ("centernet_dla34_original_2x", 128, 5e-4, 230, (180, 210)),
        ("centernet_hourglass104", 24, 2.5e-4, 50, (40,)),
        ("centernet_resnet18_1x", 128, 5e-4, 140, (90, 120)),
        ("centernet_resnet101_2x", 128, 5e-4, 230, (180, 210)),
    ],
)
def test_published_schedules(
    name: str, batch: int, learning_rate: float, epochs: int, drops_at: tuple[int, ...]
) -> None:
    recipe = recipes.get(name)
    assert recipe.recipe == name
    assert recipe.batch.global_size == batch
    assert (recipe.optimizer.name, recipe.optimizer.learning_rate) == ("adam", learning_rate)
    assert (recipe.schedule.epochs, recipe.schedule.drops_at) == (epochs, drops_at)
    assert str(epochs) in recipe.purpose


def test_the_learning_rate_falls_after_the_epochs_named() -> None:
    schedule = Schedule(epochs=140, drops_at=(90, 120))
    # 924 steps an epoch, as COCO has at batch 128: epoch 90 is over after 83,160 steps.
    assert schedule.factor(83_159, 924) == 1.0
    assert schedule.factor(83_160, 924) == pytest.approx(0.1)
    assert schedule.factor(120 * 924, 924) == pytest.approx(0.01)


def test_warm_up_rises_from_the_first_step_to_the_whole_rate() -> None:
    schedule = Schedule(epochs=2, drops_at=(), warmup_steps=4)
    assert [schedule.factor(step, 10) for step in range(5)] == [0.25, 0.5, 0.75, 1.0, 1.0]


@pytest.mark.parametrize(
    ("name", "batch", "learning_rate", "epochs", "drops_at"),
    [
        ("centernet_dla34_pose_1x", 128, 5e-4, 140, (90, 120)),
        ("centernet_dla34_pose_3x", 128, 5e-4, 320, (270, 300)),
        ("centernet_hourglass104_pose_1x", 24, 2.5e-4, 50, (40,)),
        ("centernet_hourglass104_pose_3x", 24, 2.5e-4, 150, (130,)),
        ("centernet_dla34_3d_3dop", 16, 1.25e-4, 70, (45, 60)),
        ("centernet_dla34_3d_sub", 16, 1.25e-4, 70, (45, 60)),
        ("centernet_resdcn18_voc_384", 32, 1.25e-4, 70, (45, 60)),
        ("centernet_resdcn101_voc_512", 32, 1.25e-4, 70, (45, 60)),
        ("centernet_dla34_voc_512", 32, 1.25e-4, 70, (45, 60)),
    ],
)
def test_published_schedules_of_other_tasks(
    name: str, batch: int, learning_rate: float, epochs: int, drops_at: tuple[int, ...]
) -> None:
    test_published_schedules(name, batch, learning_rate, epochs, drops_at)


@pytest.mark.parametrize(
    ("name", "steps", "drops"),
    [
        ("fcos_resnet50_1x", 90_000, (60_000, 80_000)),
        ("fcos_resnet101_2x", 180_000, (120_000, 160_000)),
        ("fcos_improved_resnet50_1x", 90_000, (60_000, 80_000)),
        ("fcos_improved_resnet101_2x", 180_000, (120_000, 160_000)),
    ],
)
def test_published_schedules_of_fcos(name: str, steps: int, drops: tuple[int, int]) -> None:
    recipe = recipes.get(name)
    assert recipe.batch.global_size == 16
    optimizer = recipe.optimizer
    assert (optimizer.name, optimizer.learning_rate, optimizer.momentum) == ("sgd", 0.01, 0.9)
    assert (optimizer.weight_decay, optimizer.bias_weight_decay, optimizer.bias_learning_rate_factor) == (1e-4, 0, 2)
    assert recipe.engine.clip_norm == 0
    schedule = recipe.schedule
    assert (schedule.last_step(7000), schedule.drops_at_steps) == (steps, drops)
    # 500 steps of a third, then the whole rate until the drops.
    factors = [schedule.factor(step, 7000) for step in (0, 499, 500, drops[0] - 1, drops[0], drops[1], steps - 1)]
    assert factors == pytest.approx([1 / 3, 1 / 3, 1, 1, 0.1, 0.01, 0.01])


def test_fcos_on_our_schedules_and_torchvisions() -> None:
    ours = recipes.get("fcos_improved_resnet50_140")
    assert (ours.schedule.epochs, ours.schedule.drops_at, ours.schedule.warmup_steps) == (140, (90, 120), 500)
    assert recipes.get("fcos_resnet50_230").schedule.drops_at == (180, 210)
    theirs = recipes.get("fcos_torchvision_resnet50")
    assert (theirs.schedule.epochs, theirs.schedule.drops_at) == (26, (16, 22))
    assert (theirs.optimizer.bias_learning_rate_factor, theirs.optimizer.bias_weight_decay) == (1, None)
    # 0.001 + 0.999 * 500 / 1000 = 0.5005
    assert [theirs.schedule.factor(step, 7000) for step in (0, 500, 1000)] == pytest.approx([0.001, 0.5005, 1])


@pytest.mark.parametrize(
    ("name", "batch", "steps", "side", "mode"),
    [
        ("cornernet_hourglass104", 49, 500_000, 511, "flip"),
        ("cornernet_squeeze", 55, 500_000, 511, "none"),
        ("cornernet_saccade", 48, 500_000, 255, "none"),
        ("keypoint_triplets_hourglass104", 48, 480_000, 511, "flip"),
        ("keypoint_triplets_hourglass52", 48, 480_000, 511, "flip"),
    ],
)
def test_published_schedules_of_the_cornernet_family(name: str, batch: int, steps: int, side: int, mode: str) -> None:
    recipe = recipes.get(name)
    assert recipe.batch.global_size == batch
    assert (recipe.schedule.last_step(7000), recipe.schedule.drops_at_steps) == (steps, (450_000,))
    assert recipe.data.input_size == (side, side)
    assert (recipe.data.crowd, recipe.data.box_ends, recipe.data.max_objects) == ("keep", "edge", 128)
    evaluation = recipe.evaluation
    assert (evaluation.geometry, evaluation.tta, evaluation.published_rounding) == ("keep", mode, True)
    for variant in (recipe, recipes.get(f"{name}_140"), recipes.get(f"{name}_230")):
        optimizer = variant.optimizer
        assert (optimizer.name, optimizer.learning_rate, optimizer.weight_decay) == ("adam", 2.5e-4, 0)
        assert (variant.schedule.warmup_steps, variant.engine.clip_norm) == (0, 0)
        assert (variant.detector.name, variant.detector.weights, variant.augmentation) == (
            name,
            None,
            recipe.augmentation,
        )
    assert recipes.get(f"{name}_140").schedule.drops_at == (90, 120)
    assert recipes.get(f"{name}_230").schedule.drops_at == (180, 210)


def test_crops_of_the_cornernet_family_have_the_published_scales() -> None:
    squeeze, saccade = (recipes.get(name).augmentation for name in ("cornernet_squeeze", "cornernet_saccade"))
    assert (squeeze.geometry, squeeze.crop_border) == ("pixel_crop", 128)
    assert squeeze.crop_scales == tuple(np.arange(0.6, 1.4, 0.1).tolist())
    assert saccade.geometry == "object_crop"
    assert saccade.crop_scales == tuple(np.arange(0.5, 1.1, 0.1).tolist())


def test_a_batch_that_no_workers_share_has_near_ones_that_they_do() -> None:
    recipe = with_flags(recipes.get("cornernet_hourglass104"), ["--cluster.workers", "8"])
    with pytest.raises(
        ClusterError, match=r"batch\.global_size 49 does not divide among 8 workers; set it to 48 or 56"
    ):
        split_on_most_workers(recipe)
    split = split_on_most_workers(with_flags(recipe, ["--batch.global_size", "48"]))
    assert split.microbatch_size == 6


def test_whole_images_are_resized_as_their_variant_was_published() -> None:
    for name in recipes.names():
        library = next((part for part in ("torchvision", "adelaidet", "mmdetection") if part in name), "authors")
        if name.startswith("foveabox"):
            library = "mmdetection"
        elif not name.startswith("fcos"):
            library = "plain"
        # AdelaiDet resizes as detectron2 does.
        assert recipes.get(name).data.resizing == library.replace("adelaidet", "detectron2"), name


def test_a_run_of_a_version_without_resizing_is_found_and_its_rule_is_named() -> None:
    recipe = recipes.get("fcos_resnet50_1x")
    recorded = to_dict(recipe)
    del recorded["data"]["resizing"]
    earlier = from_dict(recorded)
    assert run_name(earlier) == run_name(recipe)
    assert differences(to_dict(earlier), to_dict(recipe)) == ["data.resizing: plain → authors"]
    assert differences(to_dict(earlier), to_dict(with_flags(recipe, ["--data.resizing", "plain"]))) == []


@pytest.mark.parametrize(
    ("name", "epochs", "drops", "sides", "align", "published"),
    [
        ("foveabox_resnet50_1x", 12, (8, 11), (800,), False, "36.5"),
        ("foveabox_resnet50_2x", 24, (16, 22), (800,), False, "36.9"),
        ("foveabox_align_resnet50_2x", 24, (16, 22), (800,), True, "37.9"),
        ("foveabox_align_resnet50_2x_two_scales", 24, (16, 22), (640, 800), True, "40.1"),
        ("foveabox_resnet101_1x", 12, (8, 11), (800,), False, "38.5"),
        ("foveabox_resnet101_2x", 24, (16, 22), (800,), False, "38.5"),
        ("foveabox_align_resnet101_2x", 24, (16, 22), (800,), True, "39.4"),
        ("foveabox_align_resnet101_2x_two_scales", 24, (16, 22), (640, 800), True, "41.9"),
    ],
)
def test_published_schedules_of_foveabox(
    name: str, epochs: int, drops: tuple[int, int], sides: tuple[int, ...], align: bool, published: str
) -> None:
    recipe = recipes.get(name)
    assert recipe.recipe == name
    assert recipe.detector.name == f"foveabox_{'resnet101' if 'resnet101' in name else 'resnet50'}"
    assert recipe.detector.settings == ({"align": True} if align else {})
    assert recipe.detector.weights == "imagenet"
    assert f"(published: {published} AP on COCO)" in recipe.purpose
    assert f"{epochs} epochs" in recipe.purpose
    assert ("aligned" in recipe.purpose, "two scales" in recipe.purpose) == (align, len(sides) == 2)
    assert (recipe.batch.global_size, recipe.engine.clip_norm) == (16, 35)
    optimizer = recipe.optimizer
    assert (optimizer.name, optimizer.learning_rate, optimizer.momentum) == ("sgd", 0.01, 0.9)
    assert (optimizer.weight_decay, optimizer.bias_weight_decay, optimizer.bias_learning_rate_factor) == (1e-4, None, 1)
    assert (recipe.data.crowd, recipe.data.box_ends) == ("drop", "last_pixel")
    augmentation = recipe.augmentation
    assert (augmentation.geometry, augmentation.shorter_sides, augmentation.longer_side_limit) == (
        *("shorter_side", sides),
        1333,
    )
    assert (augmentation.shorter_side_range, augmentation.flip_probability, augmentation.brightness) == (None, 0.5, 0)
    schedule = recipe.schedule
    assert (schedule.epochs, schedule.drops_at) == (epochs, drops)
    # From a third, 1/3 + 2/3 × 250/500 halfway, to the whole rate.
    assert [schedule.factor(step, 7000) for step in (0, 250, 500)] == pytest.approx([1 / 3, 2 / 3, 1])


@pytest.mark.parametrize("depth", ["50", "101"])
@pytest.mark.parametrize("align", ["", "align_"])
def test_foveabox_on_our_schedules(align: str, depth: str) -> None:
    for epochs, drops in ((140, (90, 120)), (230, (180, 210))):
        name = f"foveabox_{align}resnet{depth}_{epochs}"
        recipe = recipes.get(name)
        assert recipe.recipe == name
        assert (recipe.schedule.epochs, recipe.schedule.drops_at, recipe.schedule.steps) == (epochs, drops, 0)
        assert recipe.augmentation.shorter_sides == ((640, 800) if align else (800,))
        assert "published" not in recipe.purpose
        assert f"ResNet-{depth}: {epochs} epochs" in recipe.purpose


def test_fcos_of_libraries_has_their_variant_boxes_and_schedule() -> None:
    factors = {}
    for variant in ("adelaidet", "mmdetection", "mmdetection_base"):
        recipe = recipes.get(f"fcos_{variant}_resnet50_1x")
        assert recipe.recipe == f"fcos_{variant}_resnet50_1x"
        assert recipe.detector.settings == {"variant": variant}
        assert (recipe.data.box_ends, recipe.data.crowd, recipe.batch.global_size) == ("edge", "drop", 16)
        assert recipe.engine.clip_norm == (35 if variant == "mmdetection_base" else 0)
        biases = recipe.optimizer.bias_learning_rate_factor, recipe.optimizer.bias_weight_decay
        assert biases == ((1, None) if variant == "adelaidet" else (2, 0))
        factors[variant] = [recipe.schedule.factor(step, 7500) for step in (0, 250, 500, 1000)]
    assert recipes.get("fcos_adelaidet_resnet50_1x").schedule.last_step(7500) == 90_000
    assert recipes.get("fcos_mmdetection_resnet50_1x").schedule.last_step(7500) == 90_000
    assert factors["adelaidet"] == pytest.approx([0.001, 0.25075, 0.5005, 1])
    assert factors["mmdetection"] == pytest.approx([1 / 3, 2 / 3, 1, 1])
    assert factors["mmdetection_base"] == pytest.approx([1 / 3, 1 / 3, 1, 1])


def test_the_ablations_change_one_thing_each() -> None:
    base = recipes.get("centernet_dla34_1x")
    names = ("test_resolution_384", "size_weight_0_2", "size_weight_0_02", "loss_smooth_l1", "epochs_230")
    named = {name: recipes.get(f"ablation_{name}") for name in names}
    smaller = named["test_resolution_384"]
    assert smaller.data.input_size == (512, 512)
    assert (smaller.evaluation.geometry, smaller.evaluation.input_size) == ("fixed", (384, 384))
    assert recipes.get("ablation_test_resolution_original").evaluation.geometry == "keep"
    changed = {name: differences(to_dict(base), to_dict(recipe)) for name, recipe in named.items()}
    assert {name: [line for line in lines if not line.startswith("recipe:")] for name, lines in changed.items()} == {
        "test_resolution_384": [],
        "size_weight_0_2": ["detector.settings: {} → None", "detector.settings.size_weight: None → 0.2"],
        "size_weight_0_02": ["detector.settings: {} → None", "detector.settings.size_weight: None → 0.02"],
        "loss_smooth_l1": ["detector.settings: {} → None", "detector.settings.regression_loss: None → smooth_l1"],
        "epochs_230": ["schedule.drops_at: [90, 120] → [180, 210]", "schedule.epochs: 140 → 230"],
    }


def test_published_recipes_name_the_weights_they_start_from() -> None:
    of_imagenet = {name for name in recipes.names() if recipes.get(name).detector.weights == "imagenet"}
    assert set(recipes.names()) - of_imagenet == {
        "demo",
        "centernet_hourglass104",
        *(name for name in recipes.names() if name.startswith(("cornernet_", "keypoint_triplets_"))),
        *(f"centernet_{network}_pose_{times}" for network in ("dla34", "hourglass104") for times in ("1x", "3x")),
    }
    assert with_flags(recipes.get("centernet_dla34_1x"), ["--detector.weights", "none"]).detector.weights is None


def test_a_schedule_in_steps_says_its_arithmetic() -> None:
    assert Schedule(epochs=1, drops_at=()).describe(25) == "25 steps × 1 epoch = 25 steps"
    schedule = recipes.get("fcos_resnet50_1x").schedule
    assert schedule.describe(7329) == (
        "90,000 steps = 12.28 epochs of 7,329, ÷10 after steps 60,000, 80,000, "
        "constant warm-up over 500 steps from 0.333"
    )
    assert (
        Schedule(epochs=12, drops_at=(8, 11)).describe(25) == "25 steps × 12 epochs = 300 steps, ÷10 after epochs 8, 11"
    )


@pytest.mark.parametrize("name", recipes.names())
def test_a_recipe_names_a_detector_that_exists_with_settings_it_knows(name: str) -> None:
    import torch

    import detectors

    recipe = recipes.get(name)
    with torch.device("meta"):
        detector = detectors.build(recipe.detector.name, 3, **recipe.detector.settings)
    assert detector.sizes.fits(*recipe.data.input_size)


@pytest.mark.parametrize("name", recipes.names())
def test_a_recipe_shown_as_yaml_can_be_read_again(name: str, tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(to_yaml(recipes.get(name)))
    assert recipes.get(str(path)) == recipes.get(name)


def test_flags_set_any_field() -> None:
    recipe = with_flags(
        recipes.get("centernet_resdcn18_1x"),
        [
            "--schedule.epochs",
            "12",
            "--schedule.drops-at",
            "8",
            "11",
            "--engine.zero_stage=2",
            "--data.train",
            "007",
            "--detector.settings.size_weight",
            "2e-2",
            "--engine.deepspeed.zero_optimization.overlap_comm",
            "true",
            "--optimizer.learning_rate",
            "1e-3",
            "--data.input_size",
            "384",
            "384",
        ],
    )
    assert recipe.schedule == Schedule(epochs=12, drops_at=(8, 11))
    assert recipe.engine.zero_stage == 2
    assert recipe.engine.deepspeed == {"zero_optimization": {"overlap_comm": True}}
    assert recipe.detector.settings == {"size_weight": 0.02}
    assert recipe.data.train == "007"  # text stays text
    assert recipe.data.input_size == (384, 384)
    assert recipe.optimizer.learning_rate == 1e-3


@pytest.mark.parametrize(
    "settings",
    [
        {"width": 24, "deconv_channels": [64, 48, 32], "trunk_start": "he"},
        {"sizes": [8], "nothing": None, "on": True, "rate": 1e-05, "text": "8", "empty": [], "yes": "yes"},
    ],
)
def test_settings_written_as_flags_are_read_back(settings: dict[str, object]) -> None:
    flags = as_flags(settings, "detector.settings")
    assert with_flags(recipes.get("centernet_resdcn18_1x"), flags).detector.settings == settings
    if "width" in settings:
        assert flags[2:6] == ["--detector.settings.deconv_channels", "64", "48", "32"]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--schedule.epoch 12", "unknown field --schedule.epoch; did you mean --schedule.epochs?"),
        ("--schedule.epochs twelve", "schedule.epochs is 'twelve': input should be a valid integer"),
        ("--schedule.epochs", "--schedule.epochs needs a value; schedule.epochs is 140 now."),
        ("--evaluation.input_size 512", "evaluation.input_size is [512]; it takes more values than that."),
        ("--data.input_size 1 2 3", "data.input_size is [1, 2, 3]; it takes 2 values."),
        ("--engine.zero_stage 4", "engine.zero_stage is 4: input should be 0, 1, 2 or 3"),
        ("--optimizer.name lion", "optimizer.name is 'lion': input should be 'adam', 'adamw' or 'sgd'"),
        ("--schedule.drops_at 90 140", "schedule.drops_at contains 140, but training ends after epoch 140."),
        ("--schedule.drops_at 120 90", "schedule.drops_at is [120, 90]; give rising numbers, each 1 or more."),
        ("--optimizer.learning_rate -1", "optimizer.learning_rate is -1; it must be above 0."),
        ("--optimizer.learning_rate .nan", "optimizer.learning_rate is nan; it must be above 0."),
        ("--optimizer.betas 0.9 2", "optimizer.betas is 0.9, 2.0; it must be 0 or more and below 1."),
        ("--optimizer.weight_decay -1", "optimizer.weight_decay is -1; it must be 0 or more."),
        ("--schedule.epochs 0", "schedule.epochs and schedule.steps are both 0"),
        ("--schedule.steps 300", "schedule.steps is 300 beside epochs 140 and drops_at [90, 120]; use one unit only"),
        ("--schedule.drops_at_steps 300", "schedule.drops_at_steps is [300], but training ends after epoch 140"),
        (
            "--schedule.epochs 0 --schedule.drops_at [] --schedule.steps 9 --schedule.drops_at_steps 9",
            "schedule.drops_at_steps contains 9, but training ends after step 9. Remove them or raise schedule.steps.",
        ),
        ("--schedule.steps -1", "schedule.steps is -1; it must be 0 or more."),
        ("--schedule.warmup constant", "schedule.warmup_factor is 0; it must be above 0 and at most 1."),
        ("--schedule.warmup_factor 2", "schedule.warmup_factor is 2; it must be 0 or more and at most 1."),
        ("--optimizer.bias_weight_decay -1", "optimizer.bias_weight_decay is -1; it must be 0 or more."),
        ("--optimizer.bias_learning_rate_factor 0", "optimizer.bias_learning_rate_factor is 0; it must be above 0."),
        ("--evaluation.input_size 0 64", "evaluation.input_size is [0, 64]; height and width must be 1 or more."),
        ("--detector.weights_sha256 abc", "detector.weights_sha256 is 'abc'; give the first 8 to 64 of the digits"),
        ("--schedule.drop_factor 0", "schedule.drop_factor is 0; it must be above 0 and at most 1."),
        ("--tracking.system_seconds -1", "tracking.system_seconds is -1; it must be 0 (none) or more."),
        ("--evaluation.pictures -3", "evaluation.pictures is -3; it must be 0 (none) or more."),
        ("--engine.deepspeed.zero_optimization.stage 3", "is derived by aweigh; set engine.zero_stage."),
        ("--run.folder s3://bucket/runs", "run.folder is s3://bucket/runs; it must be a folder that every node mounts"),
        (
            "--cluster.hang_seconds 600",
            "cluster.hang_seconds is 600, but cluster.timeout_seconds is 600: the other ranks",
        ),
        ("--batch.global_size 0", "batch.global_size is 0; it must be 1 or more."),
        ("--cluster.workers 0", "cluster.workers is 0; it must be 1 or more."),
        ("--checkpoint.keep 0", "checkpoint.keep is 0; at least 1 has to stay to resume from."),
        ("--engine.deepspeed.bf16.enabled true", "bf16 is derived by aweigh; set engine.precision instead."),
        ("--augmentation.flip_probability 2", "flip_probability is 2"),
        ("--data.input_size 512", "data.input_size"),
        ("--data.cache_gb -1", "data.cache_gb is -1; it must be 0 (no limit) or more."),
        ("--data.read_timeout_seconds 0", "data.read_timeout_seconds is 0; it must be above 0."),
        ("--data.read_deadline_seconds .nan", "data.read_deadline_seconds is nan; it must be above 0."),
        ("--optimizer.layer_decay 0", "optimizer.layer_decay is 0; it must be above 0 and at most 1."),
        ("--optimizer.layer_decay 1.1", "optimizer.layer_decay is 1.1; it must be above 0 and at most 1."),
        (
            "--optimizer.stage_learning_rate_factors.stem 0",
            "optimizer.stage_learning_rate_factors.stem is 0; it must be above 0. To leave the stage untrained, name "
            "it in detector.freeze.",
        ),
        ("--optimizer.stage_learning_rate_factors.stem much", "optimizer.stage_learning_rate_factors.stem is 'much'"),
        ("--schedule.patience -1", "schedule.patience is -1; it must be 0 (train to the end) or more."),
        ("--schedule.min_improvement 2", "schedule.min_improvement is 2; it must be 0 or more and below 1, since an"),
        ("surplus", "'surplus' is not a flag"),
    ],
)
def test_a_wrong_flag_is_named_in_one_line(flags: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        with_flags(recipes.get("centernet_resdcn18_1x"), flags.split())
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("recipe: x\nschedul:\n  epochs: 3\n", "unknown field schedul; did you mean schedule"),
        ("recipe: x\nschedule:\n  epoch: 3\n", "unknown field schedule.epoch; did you mean schedule.epochs?"),
        ("recipe: x\nbatch: 12\n", "batch is 12"),
        ("purpose: none\n", "recipe is missing; add it."),
        ("- a\n- b\n", "must be fields and values"),
        ("recipe: [", "is not YAML"),
    ],
)
def test_a_wrong_recipe_file_is_named_with_its_field(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        from_yaml(path)
    assert message in str(caught.value)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_unknown_recipe_suggests_its_variants_and_a_missing_file_is_reported() -> None:
    with pytest.raises(ConfigError, match="did you mean 'centernet_resdcn18_1x', 'centernet_resdcn18_2x', 'centern"):
        recipes.get("centernet_resdcn18")
    with pytest.raises(
        ConfigError,
        match=r"recipe nowhere\.yaml cannot be read: No such file or directory. Give the path of a YAML",
    ):
        recipes.get("nowhere.yaml")


def test_only_fields_that_decide_what_is_learnt_count_as_different() -> None:
    recipe = recipes.get("demo")
    free = with_flags(
        recipe,
        [
            "--cluster.workers",
            "4",
            "--engine.zero_stage",
            "2",
            "--data.train",
            "moved",
            "--tracking.uri",
            "http://a",
            "--run.name",
            "b",
        ],
    )
    assert differences(to_dict(recipe), to_dict(free)) == []
    bound = with_flags(recipe, ["--seed", "7", "--detector.settings.width", "8"])
    assert differences(to_dict(recipe), to_dict(bound)) == ["detector.settings.width: 24 → 8", "seed: 0 → 7"]


def test_the_derived_run_name_follows_what_is_learnt() -> None:
    recipe = recipes.get("demo")
    name = run_name(recipe)
    assert name.startswith("demo-")
    assert run_name(with_flags(recipe, ["--cluster.workers", "1"])) == name
    assert run_name(with_flags(recipe, ["--seed", "1"])) != name
    assert run_name(with_flags(recipe, ["--run.name", "mine"])) == "mine"


def test_fields_of_fine_tuning_change_a_derived_name_only_if_they_are_set() -> None:
    recipe = recipes.get("demo")
    name = run_name(recipe)
    # The name that the version without these fields derived.
    assert name == "demo-70ed70"
    for flags in (
        "--detector.freeze stem layer1",
        "--detector.match_classes true",
        "--optimizer.layer_decay 0.8",
        "--optimizer.stage_learning_rate_factors.stem 0.1",
    ):
        changed = with_flags(recipe, flags.split())
        assert run_name(changed) != name, flags
        assert differences(to_dict(recipe), to_dict(changed)), flags
    assert with_flags(recipe, ["--detector.freeze", "stem"]).detector.freeze == ("stem",)
    # Patience decides when a run ends, not what it learns.
    assert run_name(with_flags(recipe, ["--schedule.patience", "3"])) == name


def test_a_recipe_of_a_version_without_fields_of_fine_tuning_is_read() -> None:
    recipe = recipes.get("demo")
    recorded = to_dict(recipe)
    for group, name in (
        *(("detector", "freeze"), ("detector", "match_classes"), ("optimizer", "layer_decay")),
        *(("optimizer", "stage_learning_rate_factors"), ("schedule", "patience"), ("schedule", "min_improvement")),
    ):
        del recorded[group][name]
    assert from_dict(recorded) == recipe


def test_every_field_has_a_default_and_a_meaning() -> None:
    rows = {name: (default, meaning) for name, default, meaning in field_help()}
    assert set(rows) == set(fields())
    assert rows["schedule.drops_at"] == (
        "[90, 120]",
        "Epochs after which the learning rate is multiplied by drop_factor (Objects as Points, section 5).",
    )
    assert [name for name, (_, meaning) in rows.items() if not meaning] == []


def test_a_resolved_recipe_is_complete() -> None:
    values = yaml.safe_load(to_yaml(recipes.get("demo")))
    assert from_dict(values) == recipes.get("demo")
    for name in fields():
        node = values
        for part in name.split("."):
            node = node[part]
