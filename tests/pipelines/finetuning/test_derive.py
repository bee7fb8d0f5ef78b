"""Every number of a fine-tuning, with its arithmetic."""

from dataclasses import replace

import pytest
import torch

import detectors
from detectors import Detector
from pipelines.finetuning.base_recipe import base_recipe
from pipelines.finetuning.data_facts import DataFacts
from pipelines.finetuning.derive import Start, derive, stride
from pipelines.finetuning.machine import Cost, Machine
from pipelines.recipes.recipe import flag_names, with_flags
from pipelines.recipes.settings import Recipe

FACTS = DataFacts(
    images=205,
    objects=2804,
    longer_side=640,
    small_object=0.05,
    small_object_of_shorter=0.08,
    most_objects=28,
)
CPU = Machine("cpu", 1, 4, 8_000_000_000)
GPUS = Machine("cuda", 4, 32, 24_000_000_000)
COST = Cost(parameter_bytes=250_000_000, bytes_per_pixel=2000.0, seconds_per_pixel=2e-6)


def _detector(recipe: Recipe) -> Detector:
    with torch.device("meta"):
        return detectors.build(recipe.detector.name, 3, **recipe.detector.settings)


def _derived(
    *flags: str,
    name: str = "centernet_resnet18",
    facts: DataFacts = FACTS,
    machine: Machine = CPU,
    cost: Cost = COST,
    start: Start = "detector",
) -> tuple[Recipe, dict[str, str]]:
    published = base_recipe(name, {})
    recipe = with_flags(published, ["--data.validation", "shards/val", *flags])
    recipe, lines = derive(recipe, flag_names(flags), published, facts, machine, cost, _detector(recipe), start)
    return recipe, {line.topic: line.text for line in lines}


@pytest.fixture(autouse=True)
def _named_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: "NVIDIA L4")


def test_a_small_set_on_a_cpu_has_its_numbers_with_the_arithmetic() -> None:
    recipe, lines = _derived()
    assert recipe.data.input_size == (320, 320)  # 16 pixels / 0.05 = 320
    assert recipe.batch.global_size == 16  # 205 / 10 = 20.5
    assert recipe.batch.microbatch_limit == 0
    assert recipe.optimizer.learning_rate == 6.25e-5  # 5e-4 × 16 / 128
    assert (recipe.schedule.epochs, recipe.schedule.drops_at) == (167, (107, 143))  # 2,000 steps / 12
    assert (recipe.evaluation.every_epochs, recipe.checkpoint.every_epochs) == (17, 17)
    assert (recipe.cluster.workers, recipe.cluster.cpus_per_worker) == (1, 3)
    assert lines == {
        "input": "320 × 320 pixels: a tenth of all objects measures less than 5.0% of its image's longer side; "
        "16 pixels / 5.0% = 320",
        "machine": "CPU, 4 cores, 8.0 GB to plan with; 1 worker, engine.precision auto",
        "batch": "16 images a step: the largest of 8, 16, 32 with 10 steps an epoch; 205 images / 10 = 20.5; 37 "
        "images of 320 × 320 fit the memory by estimate",
        "rate": "6.25e-05 = 0.0005 × 16 / 128, the published rate, for this batch",
        "epochs": "167 = 2,000 steps / 12 an epoch; the rate drops after epochs 107, 143, as in the published 90 and "
        "120 of 140",
        "evaluate": "10 times, after every 17 epochs; the best checkpoint is kept",
    }


def test_what_the_user_sets_stays_and_the_rest_follows_from_it() -> None:
    recipe, lines = _derived("--batch.global-size", "32", "--schedule.epochs", "10", "--data.input_size", "256", "256")
    assert (recipe.batch.global_size, recipe.schedule.epochs, recipe.data.input_size) == (32, 10, (256, 256))
    assert recipe.optimizer.learning_rate == 1.25e-4  # 5e-4 × 32 / 128
    assert recipe.schedule.drops_at == (6, 9)
    assert lines["batch"].startswith("32 images a step, as you set it")
    assert lines["epochs"].startswith("10, as you set it; 6 steps each; the rate drops after epochs 6, 9")
    assert lines["input"] == "256 × 256 pixels, as you set it"
    recipe, lines = _derived("--optimizer.learning_rate", "1e-3", "--evaluation.every_epochs", "3")
    assert (recipe.optimizer.learning_rate, recipe.evaluation.every_epochs) == (1e-3, 3)
    assert lines["rate"] == "0.001, as you set it"
    assert "evaluate" not in lines


@pytest.mark.parametrize(
    ("small", "longer", "machine", "size", "text"),
    [
        (0.01, 4000, CPU, 512, "16 pixels / 1.0% = 1,600, limited to 512, the most on a CPU"),
        (0.01, 4000, GPUS, 1024, "= 1,600, limited to 1024, the most on a GPU"),
        (0.01, 700, GPUS, 704, "= 1,600, limited to 704, the images' own size"),
        (0.5, 4000, GPUS, 256, "16 pixels / 50.0% = 32, at least 256"),
        (0.01, 60, GPUS, 256, "limited to 256, the images' own size"),
    ],
)
def test_the_input_shows_small_objects_within_limits(
    small: float, longer: int, machine: Machine, size: int, text: str
) -> None:
    recipe, lines = _derived(facts=replace(FACTS, small_object=small, longer_side=longer), machine=machine)
    assert recipe.data.input_size == (size, size)
    assert text in lines["input"]


@pytest.mark.parametrize("name", detectors.names())
def test_every_detector_gets_an_input_that_it_takes_and_a_recipe_that_can_be_read(name: str) -> None:
    recipe, _ = _derived(name=name)
    assert _detector(recipe).sizes.fits(*recipe.data.input_size)
    assert with_flags(recipe, []) == recipe


def test_whole_images_are_scaled_alike_in_training_and_evaluation() -> None:
    recipe, lines = _derived(name="fcos_resnet50", facts=replace(FACTS, small_object_of_shorter=0.05), machine=GPUS)
    assert stride(recipe) == 8
    assert recipe.augmentation.shorter_sides == (640,)  # 32 pixels / 0.05
    assert recipe.augmentation.longer_side_limit == recipe.evaluation.longer_side_limit == 1066  # 1333 × 640 / 800
    assert recipe.evaluation.shorter_side == 640
    assert lines["input"].endswith("less than 5.0% of it; 32 pixels / 5.0% = 640")
    assert (
        "limited to 480, the most on a CPU"
        in _derived(name="fcos_resnet50", facts=replace(FACTS, small_object_of_shorter=0.05))[1]["input"]
    )
    kept, lines = _derived("--augmentation.shorter_sides", "500", "700", name="fcos_resnet50")
    assert kept.augmentation.shorter_sides == (500, 700)
    assert lines["input"] == "shorter side of 700 pixels, as you set it"


def test_a_schedule_in_steps_becomes_one_in_epochs_with_a_shorter_warm_up() -> None:
    recipe, lines = _derived(name="fcos_resnet50")
    assert (recipe.schedule.epochs, recipe.schedule.drops_at, recipe.schedule.steps) == (167, (107, 143), 0)
    assert recipe.schedule.warmup_steps == 200  # a tenth of 2,004
    assert lines["epochs"].endswith("; warm-up over 200 steps")


@pytest.mark.parametrize(
    ("images", "start", "batch", "epochs"),
    [
        (1, "detector", 1, 300),
        (3, "detector", 3, 300),
        (100, "detector", 8, 167),  # 2,000 / 12
        (205, "imagenet", 16, 300),
        (50_000, "random", 32, 12),
        (50_000, "detector", 32, 12),
    ],
)
def test_small_sets_have_small_batches_and_many_epochs(images: int, start: Start, batch: int, epochs: int) -> None:
    recipe, _ = _derived(facts=replace(FACTS, images=images), start=start)
    assert (recipe.batch.global_size, recipe.schedule.epochs) == (batch, epochs)


def test_few_images_are_said_to_be_few() -> None:
    assert _derived(facts=replace(FACTS, images=3))[1]["batch"].startswith(
        "3 images a step: at most 8, because there are few images; 37 images of"
    )


def test_workers_share_the_batch_equally_and_get_enough_for_batch_norm() -> None:
    recipe, lines = _derived("--batch.global_size", "8", machine=GPUS)
    assert (recipe.cluster.workers, recipe.data.threads) == (2, 8)
    assert lines["machine"].startswith("4 × NVIDIA L4, 24.0 GB to plan with on each; 2 workers")
    assert _derived("--batch.global_size", "12", machine=GPUS)[0].cluster.workers == 3
    assert _derived("--cluster.workers", "4", machine=GPUS)[0].cluster.workers == 4
    assert _derived(machine=replace(GPUS, workers=1))[0].cluster.workers == 1


def test_a_batch_that_does_not_fit_is_put_through_in_parts() -> None:
    # (8e9 - 0.25e9) / (25,000 × 320 × 320) = 3.03 images
    recipe, lines = _derived("--batch.global_size", "8", cost=replace(COST, bytes_per_pixel=25_000.0))
    assert recipe.batch.microbatch_limit == 2
    assert lines["batch"].endswith(
        "; 3 images of 320 × 320 fit the memory by estimate, so 8 are put through in parts of 2"
    )
    assert (
        _derived("--batch.microbatch_limit", "4", cost=replace(COST, bytes_per_pixel=25_000.0))[
            0
        ].batch.microbatch_limit
        == 4
    )


def test_images_with_many_objects_keep_all_of_them() -> None:
    recipe, lines = _derived(facts=replace(FACTS, most_objects=300))
    assert recipe.data.max_objects == 300
    assert recipe.detector.settings["max_objects"] == 300
    assert _detector(recipe).max_objects == 300
    assert lines["objects"] == "up to 300 an image, because one image has as many"
    recipe, lines = _derived(name="fcos_resnet50", facts=replace(FACTS, most_objects=300))
    assert (recipe.data.max_objects, recipe.detector.settings) == (300, {})


def test_one_epoch_has_no_drop() -> None:
    recipe, lines = _derived("--schedule.epochs", "1")
    assert recipe.schedule.drops_at == ()
    assert lines["epochs"] == "1, as you set it; 12 steps each; no drop"
    assert lines["evaluate"] == "at the end; the best checkpoint is kept"
