from data_shards.checking.findings import Finding, SampleName
from pipelines.finetuning.findings import sort_findings


def _finding(kind: str, number: int, text: str = "why") -> Finding:
    return Finding(kind, "train", (SampleName("train", f"{number:012d}", f"photo {number}.jpg"),), text)


def test_what_is_wrong_is_serious_with_examples_and_a_remedy() -> None:
    found = sort_findings([_finding("same_bytes", number, "the same bytes") for number in range(5)], 1000)
    assert found.serious == (
        "duplicate images, byte for byte (5): photo 0.jpg (the same bytes); photo 1.jpg (the same bytes); photo 2.jpg "
        "(the same bytes); and 2 more. → keep one, with the annotations of all",
    )
    assert found.lesser == 0


def test_copies_in_both_splits_name_each_file() -> None:
    samples = (SampleName("train", "1", "a.jpg"), SampleName("val", "2", "b.jpg"))
    found = sort_findings([Finding("same_picture_across_splits", "train", samples, "the same picture")], 1000)
    assert found.serious[0].startswith(
        "images that the other split has too, recompressed or resized (1): a.jpg, val/b.jpg (the same picture). →"
    )


def test_checks_are_serious_if_they_are_common_or_spoil_labels() -> None:
    small = [_finding("below_stride", number) for number in range(5)]
    assert sort_findings(small, 100).lesser == 5
    assert (
        sort_findings(small, 99)
        .serious[0]
        .startswith("objects smaller than a cell of the output (5): photo 0.jpg (why); and 4")
    )
    assert sort_findings([_finding("exif", 1), _finding("gray", 2)], 1000).lesser == 1
    classes = sort_findings([Finding("class_without_objects", "train", (), "class 3 'cat'")], 1000)
    assert classes.serious[0].startswith("classes without a single object (1): train, class 3 'cat'. →")
