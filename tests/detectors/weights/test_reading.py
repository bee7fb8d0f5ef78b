"""Weights files as untrusted input: damage, bombs and code are one line each, and nothing is run."""

import collections
import io
import json
import os
import pickle
import struct
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hypothesis
import hypothesis.strategies as st
import pytest
import torch
from safetensors.torch import save_file

from detectors import DetectorError
from detectors.weights import plain_pickle
from detectors.weights.reading import read

WEIGHTS = {"conv.weight": torch.arange(24.0).reshape(2, 3, 4), "conv.bias": torch.ones(2)}
DAMAGED = r"is damaged|damaged or of another kind|is not a checkpoint"


def message_of(path: Path) -> str:
    """The refusal; "" if the file is read."""
    try:
        read(path)
    except DetectorError as error:
        return str(error)
    return ""


def refused(path: Path, match: str = DAMAGED) -> str:
    with pytest.raises(DetectorError, match=match) as refusal:
        read(path)
    text = str(refusal.value)
    assert "\n" not in text
    assert str(path) in text
    assert len(text) < 500 + len(str(path))
    return text


def written(content: bytes, path: Path) -> Path:
    path.write_bytes(content)
    return path


def torch_zip(path: Path, pickled: bytes, storages: dict[str, bytes] | None = None) -> Path:
    """An archive as torch.save writes it, with a pickle of our own."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", pickled)
        for key, data in (storages or {"0": bytes(96)}).items():
            archive.writestr(f"archive/data/{key}", data)
    return path


def tensor_pickle(*, count: int, offset: int, size: tuple[int, ...], stride: tuple[int, ...]) -> bytes:
    """Pickle of {"w": tensor} in storage "0", with sizes of our own."""

    class Typed:
        def __reduce__(self) -> str:
            return "FloatStorage"

    class Rebuilt:
        def __reduce__(self) -> Any:
            return torch._utils._rebuild_tensor_v2, (storage, offset, size, stride, False, collections.OrderedDict())

    storage = object()

    class Pickler(pickle.Pickler):
        def persistent_id(self, value: Any) -> Any:
            return ("storage", torch.FloatStorage, "0", "cpu", count) if value is storage else None

    file = io.BytesIO()
    Pickler(file, protocol=2).dump({"w": Rebuilt()})
    return file.getvalue()


def test_a_tensor_made_by_hand_is_read(tmp_path: Path) -> None:
    data = torch.arange(24.0).numpy().tobytes()
    path = torch_zip(tmp_path / "w.pth", tensor_pickle(count=24, offset=2, size=(2, 3), stride=(1, 4)), {"0": data})
    assert read(path).entries["w"].tolist() == [[2, 6, 10], [3, 7, 11]]


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"count": 24, "offset": 0, "size": (5, 5), "stride": (5, 1)}, "a tensor is larger than its storage"),
        ({"count": 24, "offset": 20, "size": (5,), "stride": (1,)}, "a tensor is larger than its storage"),
        ({"count": 24, "offset": 0, "size": (2,), "stride": (10**12,)}, "a tensor is larger than its storage"),
        ({"count": 24, "offset": -1, "size": (2,), "stride": (1,)}, "a tensor without sizes"),
        ({"count": 24, "offset": 0, "size": (-2,), "stride": (1,)}, "a tensor without sizes"),
        ({"count": 24, "offset": 0, "size": (2, 2), "stride": (1,)}, "a tensor without sizes"),
        ({"count": 24, "offset": 0, "size": ("2",), "stride": (1,)}, "a tensor without sizes"),
        ({"count": 10**15, "offset": 0, "size": (2,), "stride": (1,)}, "data/0 has 96 bytes instead of"),
        ({"count": -3, "offset": 0, "size": (2,), "stride": (1,)}, "a tensor without a description of its storage"),
    ],
)
def test_sizes_that_contradict_the_storage_are_refused(sizes: Any, message: str, tmp_path: Path) -> None:
    path = torch_zip(tmp_path / "w.pth", tensor_pickle(**sizes))
    assert refused(path, message).endswith("Download it again, or copy it again from where it was saved.")


def test_one_number_that_stands_for_many_takes_no_memory(tmp_path: Path) -> None:
    sizes: Any = {"count": 24, "offset": 0, "size": (10**9, 10**6), "stride": (0, 0)}
    assert read(torch_zip(tmp_path / "w.pth", tensor_pickle(**sizes))).entries["w"].kind == "expanded"


def nested(depth: int) -> bytes:
    return b"\x80\x02" + b"]" * depth + b"a" * (depth - 1) + b"."


def tuples(depth: int) -> bytes:
    """{(((), ()), ((), ())): 1}: as deep as it says, and 2^depth to hash."""
    return b"\x80\x02}" + b")" + b"2\x86" * depth + b"K\x01s."


BOMBS: dict[str, bytes] = {
    "deep lists": nested(200_000),
    "deep dictionaries": b"\x80\x02" + b"}X\x01\x00\x00\x00a" * 100_000 + b"K\x01" + b"s" * 100_000 + b".",
    "a memo of four billion": b"\x80\x02}r\xff\xff\xff\xff.",
    "bytes of many gigabytes": b"\x80\x04}\x8c\x01a\x8e" + struct.pack("<Q", 1 << 46) + b"s.",
    "a byte array of many gigabytes": b"\x80\x05}\x8c\x01a\x96" + struct.pack("<Q", 1 << 46) + b"s.",
    "a text of many gigabytes": b"\x80\x04}\x8c\x01a\x8d" + struct.pack("<Q", 1 << 46) + b"s.",
    "a frame of many gigabytes": b"\x80\x04\x95" + struct.pack("<Q", 1 << 46) + b"}.",
    "a number of many digits": b"\x80\x02}X\x01\x00\x00\x00aI" + b"9" * 1_000_000 + b"\ns.",
    "a dictionary of tuples that take years to hash": tuples(100),
    "a set of tuples that take years to hash": b"\x80\x04\x8f(" + b")" + b"2\x86" * 100 + b"\x90.",
    "an extension": b"\x80\x02\x82\x01.",
    "a persistent object": b"\x80\x02K\x01Q.",
    "an unknown operation": b"\x80\x02\xff.",
    "nothing on the stack": b"\x80\x02.",
    "a mark too few": b"\x80\x02u.",
    "a state of a name": b"\x80\x02ccollections\nOrderedDict\nN}X\x01\x00\x00\x00xK\x01s\x86b.",
    "a call of a tensor's class with too little": b"\x80\x02cnumpy\ndtype\n)R.",
    "items of a number": b"\x80\x02K\x01K\x02K\x03s.",
}


@pytest.mark.parametrize("kind", ["plain", "zip", "old"])
@pytest.mark.parametrize("bomb", BOMBS)
def test_a_bomb_is_one_line_or_nothing_and_is_fast(bomb: str, kind: str, tmp_path: Path) -> None:
    content = BOMBS[bomb]
    path = tmp_path / "bomb.pth"
    if kind == "zip":
        torch_zip(path, content)
    elif kind == "old":
        torch.save({}, path, _use_new_zipfile_serialization=False)
        head = path.read_bytes()
        path.write_bytes(head[: head.index(b"}q")] + content)  # behind the three pickles of the head
    else:
        path.write_bytes(content)
    start = time.process_time()
    assert "\n" not in message_of(path)
    assert time.process_time() - start < 20


def test_containers_without_end_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plain_pickle, "_MOST_CONTAINERS", 1000)
    for operation in (b"]", b"}", b"(", b")\x85", b"\x8f"):
        path = written(b"\x80\x04" + operation * 2000 + b".", tmp_path / "w.pkl")
        refused(path, "a pickle of more than 1,000 containers is not a detector's")
        refused(torch_zip(tmp_path / "w.pth", path.read_bytes()), "more than 1,000 containers")


class Call:
    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.called = function, arguments

    def __reduce__(self) -> Any:
        return self.called


@pytest.mark.parametrize(
    ("function", "arguments", "name"),
    [
        (os.system, ("touch ran",), "posix.system"),
        (eval, ("open('ran', 'w')",), "eval"),
        (getattr, ({}, "items"), "getattr"),
        (__import__, ("antigravity",), "__import__"),
        (open, ("ran", "w"), "io.open"),
        (torch.load, ("x",), "torch.serialization.load"),
        (torch.hub.load, ("a", "b"), "torch.hub.load"),
        (torch.jit.load, ("x",), "torch.jit"),
        (pickle.loads, (b"",), "loads"),
        (type, ("a", (), {}), "type"),
    ],
    # A function's own text has its address, which differs between processes.
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_code_is_refused_by_name(function: Any, arguments: Any, name: str, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    content = {**WEIGHTS, "x": Call(function, *arguments)}
    for old in (False, True):
        torch.save(content, tmp_path / "w.pth", _use_new_zipfile_serialization=not old)
        refused(tmp_path / "w.pth", rf"holds code or objects beside tensors \([\w.]*{name}.*refused")
    written(pickle.dumps({"x": content["x"]}), tmp_path / "w.pkl")
    refused(tmp_path / "w.pkl", rf"holds code or objects beside tensors \([\w.]*{name}.*refused")
    assert not (tmp_path / "ran").exists()


def test_a_name_in_a_file_cannot_draw_on_the_terminal(tmp_path: Path) -> None:
    name = b"a\x1b[2J\nb"
    content = b"\x80\x04" + b"".join(b"\x8c" + bytes([len(text)]) + text for text in (name, name)) + b"\x93."
    text = refused(written(content, tmp_path / "w.pkl"), "holds code or objects")
    assert text.isprintable()


def test_torchscript_is_refused_as_code(tmp_path: Path) -> None:
    torch.jit.script(torch.nn.ReLU()).save(str(tmp_path / "w.pt"))
    refused(tmp_path / "w.pt", r"holds code or objects beside tensors \(TorchScript\)")


def test_a_bit_that_fell_over_anywhere_is_damage_or_changes_nothing(tmp_path: Path) -> None:
    """Every byte of the tensors is protected by the archive's checksum; the bytes between members mean nothing."""
    path = tmp_path / "w.pth"
    torch.save({"state_dict": WEIGHTS}, path)
    whole = path.read_bytes()
    rng = torch.Generator().manual_seed(3)
    for at in torch.randint(len(whole), (150,), generator=rng).tolist():
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 16]) + whole[at + 1 :])
        if text := message_of(path):
            assert "\n" not in text
        else:
            found = read(path).entries["state_dict"]
            assert all(torch.equal(found[key], value) for key, value in WEIGHTS.items())


def test_a_flipped_bit_in_a_tensor_is_named_as_damage(tmp_path: Path) -> None:
    path = tmp_path / "w.pth"
    torch.save({"a": torch.full((1000,), 7.0), "b": torch.full((1000,), 9.0)}, path)
    whole = path.read_bytes()
    at = whole.index(torch.full((1000,), 9.0).numpy().tobytes()) + 5
    text = refused(written(whole[:at] + b"?" + whole[at + 1 :], path), "is damaged: Bad CRC-32 for file 'w/data/1'")
    assert text.endswith("Download it again, or copy it again from where it was saved.")


@pytest.mark.parametrize("kind", ["zip", "old", "pickle", "safetensors"])
def test_a_file_that_ends_early_is_refused_wherever_it_ends(kind: str, tmp_path: Path) -> None:
    path = tmp_path / ("w.safetensors" if kind == "safetensors" else "w.pth")
    if kind == "safetensors":
        save_file(WEIGHTS, path)
    elif kind == "pickle":
        path.write_bytes(pickle.dumps({key: value.numpy() for key, value in WEIGHTS.items()}))
    else:
        torch.save(WEIGHTS, path, _use_new_zipfile_serialization=kind == "zip")
    whole = path.read_bytes()
    for end in range(0, len(whole) - 1, max(len(whole) // 60, 1)):
        refused(written(whole[:end], path))


def test_a_header_of_safetensors_that_contradicts_the_file_is_refused(tmp_path: Path) -> None:
    def with_header(header: Any, data: bytes = bytes(16)) -> Path:
        text = header if isinstance(header, bytes) else json.dumps(header).encode()
        return written(struct.pack("<Q", len(text)) + text + data, tmp_path / "w.safetensors")

    tensor = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
    read(with_header({"a": tensor, "b": {**tensor, "data_offsets": [8, 16]}}))
    for header in (
        {"a": tensor, "b": {**tensor, "data_offsets": [4, 12]}},  # overlap
        {"a": tensor},  # bytes that nobody has
        {"a": {**tensor, "shape": [5]}},
        {"a": {**tensor, "data_offsets": [0, 1 << 50]}},
        {"a": {**tensor, "data_offsets": [-8, 8]}},
        {"a": {**tensor, "dtype": "F99"}},
        b"[" * 100_000,
        b"{" + b'"a":{' * 50_000,
    ):
        refused(with_header(header))
    refused(written(struct.pack("<Q", 1 << 60) + b"{}", tmp_path / "w.safetensors"))


def test_an_archive_that_expands_is_refused_before_it_does(tmp_path: Path) -> None:
    path = tmp_path / "w.pth"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", b"\x80\x02}.")
        archive.writestr("archive/data/0", bytes(64 << 20))
    refused(path, "archive/data/0 would expand to 67,108,864 bytes")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"<!DOCTYPE html><html>Sign in</html>", "an HTML page, such as a download that needs a login"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n", "a Git LFS pointer; `git lfs pull`"),
        (b"\x1f\x8b\x08\x00" + bytes(40), "a gzip file; unpack it"),
        (b"", "an empty file"),
        (b"x" * 257 + b"ustar" + bytes(300), "a tar archive"),
    ],
    ids=["html", "lfs", "gzip", "empty", "tar"],
)
def test_another_kind_of_file_is_named_in_words(content: bytes, message: str, tmp_path: Path) -> None:
    refused(written(content, tmp_path / "w.pth"), message)


def test_the_bytes_and_not_the_name_tell_the_kind(tmp_path: Path) -> None:
    save_file(WEIGHTS, tmp_path / "a.pth")
    torch.save(WEIGHTS, tmp_path / "b.safetensors")
    for name in ("a.pth", "b.safetensors"):
        assert torch.equal(read(tmp_path / name).entries["conv.weight"], WEIGHTS["conv.weight"])


def test_dtypes_and_views_are_read_as_torch_reads_them(tmp_path: Path) -> None:
    base = torch.arange(60.0).reshape(3, 4, 5)
    content = {
        "transposed": base.permute(2, 0, 1),
        "slice": base[1:, ::2, 3],
        "empty": torch.zeros(0, 3),
        "scalar": torch.tensor(4.5),
        "parameter": torch.nn.Parameter(base),
        **{
            str(dtype): base.to(dtype)
            for dtype in (torch.float64, torch.float16, torch.bfloat16, torch.int8, torch.bool, torch.float8_e4m3fn)
        },
        "uint16": torch.tensor([1, 2, 40000], dtype=torch.uint16),
    }
    for number, options in enumerate(({}, {"pickle_protocol": 4}, {"_use_new_zipfile_serialization": False})):
        path = tmp_path / f"{number}.pth"
        if "_use_new_zipfile_serialization" in options:
            # torch itself does not read the newest dtypes from old files.
            content = {key: value for key, value in content.items() if key not in ("torch.float8_e4m3fn", "uint16")}
        torch.save(content, path, **options)
        found, expected = read(path).entries, torch.load(path, weights_only=False)
        assert found.keys() == expected.keys()
        for key, value in expected.items():
            assert found[key].dtype == value.dtype, key
            assert found[key].shape == value.shape, key
            assert torch.equal(found[key].double(), value.detach().double()), key


@hypothesis.settings(max_examples=150, deadline=None)
@hypothesis.given(st.binary(max_size=60), st.sampled_from([b"", b"\x80\x02", b"\x80\x04}", b"PK\x03\x04", b"\x08" * 8]))
def test_any_bytes_are_one_line(tmp_path_factory: pytest.TempPathFactory, content: bytes, start: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "any.pth"
    path.write_bytes(start + content)
    assert len(message_of(path).splitlines()) <= 1
