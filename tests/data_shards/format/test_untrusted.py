"""Manifests and indexes from a location that others can write to: refused before anything is done because of them."""

import hashlib
import io
import json
import zipfile
from collections.abc import Callable
from contextlib import closing
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_shards.building.build import BuildReport
from data_shards.building.transfer import pull_shards
from data_shards.checking.examine import examine
from data_shards.checking.verify import verify_shards
from data_shards.errors import DataError
from data_shards.format.manifest import load_manifest, manifest_text, parse_manifest
from data_shards.format.shard_index import ShardIndex
from data_shards.reading.split import open_split
from pipelines.stand_ins.object_server import Fault, ObjectServer


def rewritten(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change the manifest's JSON, as someone would who also knows that a checksum may be left out."""
    document = json.loads((folder / "manifest.json").read_text())
    del document["sha256"]
    change(document)
    (folder / "manifest.json").write_text(json.dumps(document))


@pytest.mark.parametrize("field", ["name", "index"])
@pytest.mark.parametrize("name", ["../../escaped.tar", "/tmp/aweigh-escaped.tar", "..", "a\\b.tar", "nul.tar"])
def test_a_pull_of_a_crafted_manifest_writes_nothing_outside(
    copied: Path, tmp_path: Path, field: str, name: str
) -> None:
    rewritten(copied, lambda document: document["shards"][1].update({field: name}))
    inside = tmp_path / "a" / "b" / "copy"
    with pytest.raises(
        DataError, match=r"manifest\.json is damaged \(shard 1 names .*, which is not a plain file name"
    ):
        pull_shards(str(copied), inside)
    assert not (tmp_path / "a").exists()
    assert not Path("/tmp/aweigh-escaped.tar").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda item: item["shards"][0].update(samples=-1), r"samples of shard 0 is -1, which is not a whole number"),
        (lambda item: item["shards"][0].update(samples=0), "samples of shard 0 is 0"),
        (lambda item: item["shards"][0].update(samples=2.0), r"samples of shard 0 is 2\.0"),
        (lambda item: item["shards"][0].update(samples=True), "samples of shard 0 is True"),
        (lambda item: item["shards"][0].update(samples=10**9), "samples of shard 0 is 1000000000"),
        (lambda item: item["shards"][0].update(bytes=10**30), "bytes of shard 0 is 1"),
        (lambda item: item["shards"][0].update(bytes="7"), "bytes of shard 0 is 7"),
        (lambda item: item["shards"][0].update(sha256="../../x"), r"shard 0 has sha256 '\.\./\.\./x'"),
        (lambda item: item["shards"][0].update(index_sha256=None), "shard 0 has sha256 'None'"),
        (lambda item: item["shards"].append(dict(item["shards"][0])), "listed twice"),
        (lambda item: item["shards"].append(7), "shard 3 is not a shard"),
        (lambda item: item.update(shards={}), "shards are not a list"),
        (lambda item: item.update(classes=7), "damaged"),
        (lambda item: item.update(source=None), "damaged"),
        (lambda item: item["classes"][0].update(name=7), "the name of class 0 is '7', which is not a text"),
        (lambda item: item["classes"][0].update(name="\ud800"), "surrogates not allowed"),
        (lambda item: item["classes"][0].update(id=1.5), r"the id of class 0 is 1\.5"),
        (lambda item: item["classes"][1].update(id=item["classes"][0]["id"]), "two classes have the same id"),
        (lambda item: item["classes"][0].update(skeleton=[[1]]), "is not pairs of joints"),
        (lambda item: item["source"].update(boxes=-3), r"source\.boxes is -3"),
        (lambda item: item.update(labels=["4d"]), "labels are 4d; only keypoints and 3d are known"),
        (lambda item: item.update(ignored=[{"id": 9, "name": "x", "label": 99}]), "label of an ignored category is 99"),
        (lambda item: item.update(version=True), "has version True"),
        (lambda item: item.update(version=[1] * 99), "has version"),
    ],
)
def test_wrong_values_are_refused_when_a_manifest_is_read(
    copied: Path, change: Callable[[dict[str, Any]], object], message: str
) -> None:
    rewritten(copied, change)
    for read in (load_manifest, open_split, verify_shards, examine):
        with pytest.raises(DataError, match=message) as caught:
            read(str(copied))
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "text",
    [
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b"\xff\xfe",
        b"",
        b"null",
        b"[]",
        b"7",
        b'{"format":"aweigh-shards","version":' + b"9" * 5000,
    ],
)
def test_what_is_no_manifest_is_refused_in_one_line(text: bytes) -> None:
    with pytest.raises(DataError, match="here") as caught:
        parse_manifest(text, "here")
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500


def test_too_few_samples_in_the_manifest_are_found_by_every_reader(copied: Path) -> None:
    rewritten(copied, lambda document: document["shards"][0].update(samples=1))
    with pytest.raises(
        DataError, match=r"index\.npz does not fit its shard: it holds \d samples, but the manifest says 1"
    ):
        examine(str(copied))
    with closing(open_split(str(copied)).shards()) as shards, pytest.raises(DataError, match="does not fit its shard"):
        shards.read_image(0, 0)
    assert "does not fit its shard" in verify_shards(str(copied)).problems[0]


def test_an_endless_manifest_is_not_read_to_its_end(copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("data_shards.format.manifest._LARGEST_BYTES", 1 << 20)
    (copied / "manifest.json").write_bytes(b" " * (2 << 20))
    with pytest.raises(DataError, match=r"manifest\.json is larger than 1 MiB, so it is not a manifest of shards"):
        load_manifest(str(copied))


def test_a_manifest_without_a_checksum_is_still_read(built: BuildReport, copied: Path) -> None:
    rewritten(copied, lambda document: None)
    assert load_manifest(str(copied)) == built.manifest
    assert load_manifest(str(copied)).digest == built.manifest.digest


def test_a_letter_that_changes_on_the_way_is_read_again(
    built: BuildReport, served: str, object_server: ObjectServer, tmp_path: Path
) -> None:
    at = object_server.objects["bucket/train/manifest.json"].index(b'"name": "') + 10
    object_server.order("bucket/train/manifest.json", Fault("flip", at))
    assert load_manifest(served) == built.manifest
    object_server.order("bucket/train/manifest.json", Fault("flip", at))
    pull_shards(served, tmp_path / "copy")
    assert (tmp_path / "copy" / "manifest.json").read_bytes() == object_server.objects["bucket/train/manifest.json"]
    object_server.order("bucket/train/manifest.json", Fault("flip", at), always=True)
    with pytest.raises(DataError, match=r"do not match its own sha256.* It was fetched 3 times"):
        pull_shards(served, tmp_path / "other")


def _mutations(data: bytes) -> st.SearchStrategy[bytes]:
    places = st.integers(0, len(data) - 1)

    def mutate(places: list[int], values: bytes, cut: int) -> bytes:
        changed = bytearray(data)
        for place, value in zip(places, values, strict=False):
            changed[place] = value
        return bytes(changed[:-cut] if cut else changed)

    return st.builds(
        mutate, st.lists(places, max_size=4), st.binary(min_size=4, max_size=4), st.sampled_from([0, 0, 0, 1, 50])
    )


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_a_mutated_manifest_is_the_same_or_refused(built: BuildReport, data: st.DataObject) -> None:
    text = data.draw(_mutations(manifest_text(built.manifest).encode()))
    try:
        found = parse_manifest(text, "here")
    except DataError:
        return
    if found != built.manifest:
        # Only a manifest whose checksum's own name was changed counts as one of an earlier version.
        assert b'"sha256": "' + built.manifest.digest.encode() not in text


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_a_mutated_index_is_the_same_or_refused(built: BuildReport, data: st.DataObject) -> None:
    record = built.manifest.shards[0]
    whole = (Path(built.location) / record.index).read_bytes()
    expected = ShardIndex.from_bytes(whole, "here")
    changed = data.draw(_mutations(whole))
    try:
        found = ShardIndex.from_bytes(changed, "here")
        found.check(record, built.manifest, "here")
    except DataError:
        return
    for item in fields(ShardIndex):
        assert np.array_equal(getattr(found, item.name), getattr(expected, item.name)), item.name


def resealed(folder: Path, change: Callable[[ShardIndex], ShardIndex]) -> None:
    """Change the first index, and the manifest so that all checksums fit."""
    manifest = load_manifest(str(folder))
    record = manifest.shards[0]
    data = change(ShardIndex.from_bytes((folder / record.index).read_bytes(), "x")).to_bytes()
    (folder / record.index).write_bytes(data)
    record = replace(record, index_sha256=hashlib.sha256(data).hexdigest())
    (folder / "manifest.json").write_text(manifest_text(replace(manifest, shards=(record, *manifest.shards[1:]))))


def _with(name: str, change: Callable[[np.ndarray], object]) -> Callable[[ShardIndex], ShardIndex]:
    def changed(index: ShardIndex) -> ShardIndex:
        change(getattr(index, name))
        return index

    return changed


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            _with("boxes", lambda boxes: boxes.__setitem__((0, 1), np.nan)),
            "boxes has a value that is not a finite number",
        ),
        (
            _with("boxes", lambda boxes: boxes.__setitem__((0, 1), np.inf)),
            "boxes has a value that is not a finite number",
        ),
        (_with("labels", lambda labels: labels.__setitem__(0, 3)), "label 3 is not one of the manifest's 3 labels"),
        (_with("labels", lambda labels: labels.__setitem__(0, -1)), "label -1 is not one of"),
        (_with("labels", lambda labels: labels.__setitem__(0, -2)), "label -2 is not one of"),
        (_with("row_splits", lambda splits: splits.__setitem__(1, 99)), "row_splits does not ascend"),
        (_with("row_splits", lambda splits: splits.__setitem__(0, -1)), "row_splits does not ascend"),
        (_with("image_offsets", lambda array: array.__setitem__(0, -1)), "image_offsets and image_sizes reach outside"),
        (
            _with("image_sizes", lambda array: array.__setitem__(0, 2**62)),
            "image_offsets and image_sizes reach outside",
        ),
        (_with("json_offsets", lambda array: array.__setitem__(0, 2**63 - 1)), "json_offsets and json_sizes reach"),
        (_with("widths", lambda array: array.__setitem__(0, 0)), "an image has 1 pixel or more"),
    ],
)
def test_a_resealed_index_that_does_not_fit_is_refused_by_every_reader(
    copied: Path, change: Callable[[ShardIndex], ShardIndex], message: str
) -> None:
    resealed(copied, change)
    with closing(open_split(str(copied)).shards()) as shards, pytest.raises(DataError, match=message):
        shards.index(0)
    (problem,) = verify_shards(str(copied)).problems
    assert "does not fit its shard" in problem
    with pytest.raises(DataError, match=message):
        pull_shards(str(copied), copied.parent / "pulled")
    assert not (copied.parent / "pulled" / "manifest.json").exists()


@pytest.mark.parametrize(
    ("name", "array"),
    [
        ("boxes", np.zeros((8, 4))),
        ("boxes", np.zeros((7, 4), np.float32)),
        ("boxes", np.zeros((8, 5), np.float32)),
        ("image_ids", np.arange(5)),
        ("image_ids", np.int64(3)),
        ("image_ids", np.array(["a"] * 6)),
        ("row_splits", np.zeros(0, np.int64)),
        ("keypoints", np.zeros((8, 2, 3), np.float32)),
    ],
)
def test_arrays_of_another_type_or_shape_are_refused(copied: Path, name: str, array: np.ndarray) -> None:
    manifest = load_manifest(str(copied))
    record = manifest.shards[0]
    with np.load(copied / record.index) as arrays:
        file = io.BytesIO()
        np.savez(file, **{**arrays, name: array})
    # The tests' own checks of array types may come first.
    with pytest.raises(DataError, match=r"does not fit its shard|is not the index of a shard"):
        ShardIndex.from_bytes(file.getvalue(), "here").check(record, manifest, "here")


def _npz(kind: int = zipfile.ZIP_STORED, **members: bytes) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", kind) as archive:
        for name, data in members.items():
            archive.writestr(f"{name}.npy", data)
    return file.getvalue()


def _npy(header: str) -> bytes:
    text = header.encode()
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text


@pytest.mark.parametrize(
    "data",
    [
        _npz(zipfile.ZIP_DEFLATED, boxes=bytes(50_000_000)),
        _npz(boxes=_npy("{'descr': '<f4', 'fortran_order': False, 'shape': (1000000000000, 4), }")),
        _npz(boxes=_npy("{'descr': '<f4', 'fortran_order': False, 'shape': (-1, 4), }")),
        _npz(boxes=_npy("{'descr': '|O', 'fortran_order': False, 'shape': (0,), }")),
        _npz(boxes=_npy("(" * 5000)),
        _npz(boxes=_npy("{'descr': [('a', '<f4')], 'fortran_order': False, 'shape': (0,), }")),
        _npz(boxes=b""),
        _npz(),
        b"",
        b"PK\x05\x06" + bytes(18),
    ],
)
def test_what_is_no_index_is_refused_in_one_line(data: bytes) -> None:
    with pytest.raises(DataError, match="here is not the index of a shard") as caught:
        ShardIndex.from_bytes(data, "here")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (b'{"image_id":', b'["image_id",', "its JSON does not match the index"),
        (b'"bbox":[', b'"bbox":{', "its JSON does not match the index"),
        (b'"bbox":[2', b'"bbox":[a', "its JSON does not match the index"),
        (b'"bbox"', b'"bbux"', "has a bbox that is not four finite numbers"),
        (b'"category_id":', b'"category_ix":', "has category None, which the manifest does not list"),
        (b'"width":', b'"wodth":', "width, height, id and number of annotations are"),
    ],
)
def test_json_that_evaluation_cannot_use_is_refused(copied: Path, old: bytes, new: bytes, message: str) -> None:
    manifest = load_manifest(str(copied))
    record = manifest.shards[0]
    data = (copied / record.name).read_bytes()
    (copied / record.name).write_bytes(data.replace(old, new))
    record = replace(record, sha256=hashlib.sha256((copied / record.name).read_bytes()).hexdigest())
    changed = replace(manifest, shards=(record, *manifest.shards[1:]))
    (copied / "manifest.json").write_text(manifest_text(changed))
    with closing(open_split(str(copied)).shards()) as shards, pytest.raises(DataError, match=message):
        [shards.read_json(0, row) for row in range(record.samples)]
