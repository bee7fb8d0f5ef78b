"""A test is found by the name of its module: tests/PACKAGE/folder/test_X.py tests PACKAGE/folder/X.py."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("cluster", "data_shards", "detectors", "pipelines")

WITHOUT_A_MODULE = {
    "data_shards/format/test_untrusted.py": "manifest.py and shard_index.py against bytes that somebody else wrote",
    "data_shards/storage/test_s3_answers.py": "s3.py and s3_object.py against servers that only resemble S3",
    "detectors/centernet/test_decode.py": "one step of centernet.py, against an independent search",
    "detectors/centernet/test_targets.py": "one step of centernet.py, against the published procedure",
    "detectors/centernet/test_tasks.py": "pose.py and boxes_3d.py together",
    "detectors/fcos/test_decode.py": "one step of fcos.py, against a loop with the published rules",
    "detectors/fcos/test_ranks.py": "the losses of fcos.py in two processes",
    "detectors/fcos/test_targets.py": "one step of fcos.py, against a loop over points and boxes",
    "detectors/foveabox/test_decode.py": "one step of foveabox.py, against a loop with the published rules",
    "detectors/foveabox/test_targets.py": "one step of foveabox.py, against painting one box after the other",
    "detectors/test_wiring.py": "every network against its publication's forward pass",
    "detectors/weights/test_layouts.py": "the state dicts of every detector against the published keys",
    "pipelines/bench/test_bench.py": "bench/detectors.py, deformable.py and corner_pooling.py through the command line",
    "pipelines/drill/test_drill.py": "verdict.py and the list of faults",
}


def module_of(test: Path) -> Path:
    """Path of the module that a test file mirrors, both relative to the root."""
    name = test.relative_to("tests")
    return name.with_name(name.name.removeprefix("test_"))


def test_every_test_module_mirrors_a_module() -> None:
    lost = []
    for path in sorted(path for package in PACKAGES for path in (ROOT / "tests" / package).rglob("test_*.py")):
        test = path.relative_to(ROOT)
        if not (ROOT / module_of(test)).exists() and str(test.relative_to("tests")) not in WITHOUT_A_MODULE:
            lost.append(f"{test}: there is no {module_of(test)}")
    assert not lost, "Rename the test after its module, or add it to WITHOUT_A_MODULE:\n" + "\n".join(lost)


def test_every_exception_is_needed() -> None:
    tests = {name: Path("tests") / name for name in WITHOUT_A_MODULE}
    stale = [name for name, test in tests.items() if not (ROOT / test).exists() or (ROOT / module_of(test)).exists()]
    assert not stale, f"Remove from WITHOUT_A_MODULE: {', '.join(stale)}"
