"""A `.pt2` file cannot run code of its own; torch itself would run each of these."""

import io
import json
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from pipelines.errors import ConfigError
from pipelines.trained.exported_file import open_exported
from pipelines.trained.pt2_screening import metadata_of, screened
from tests.pipelines.trained.tiny_files import description, write_pt2


class Trap:
    """A pickle that would write a file when it is read."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.write_text, (self.path, "run"))


def rewritten(path: Path, change: Callable[[dict[str, bytes]], None]) -> Path:
    """Change the entries of an archive, by their names inside it."""
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
        top = names[0].partition("/")[0]
        entries = {name.partition("/")[2]: archive.read(name) for name in names}
    change(entries)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for name, data in entries.items():
            archive.writestr(name if name.startswith("!") else f"{top}/{name}", data)
    return path


def in_program(change: Callable[[dict[str, Any]], Any]) -> Callable[[dict[str, bytes]], None]:
    def apply(entries: dict[str, bytes]) -> None:
        program = json.loads(entries["models/model.json"])
        change(program)
        entries["models/model.json"] = json.dumps(program).encode()

    return apply


def first_node(program: dict[str, Any]) -> dict[str, Any]:
    return program["graph_module"]["graph"]["nodes"][0]


def config(program: dict[str, bytes], name: str, **changes: Any) -> None:
    values = json.loads(program[name])
    next(iter(values["config"].values())).update(changes)
    program[name] = json.dumps(values).encode()


def test_a_file_of_ours_passes_and_its_metadata_is_read(tmp_path: Path) -> None:
    path = write_pt2(tmp_path / "tiny.pt2")
    content = path.read_bytes()
    assert metadata_of(content, path)["detector"] == description().as_metadata()["detector"]
    module = torch.export.load(io.BytesIO(screened(content, path))).module()
    assert module(torch.full((1, 3, 32, 32), 51, dtype=torch.uint8))[1].tolist() == [pytest.approx(3 * [0.2])]


EXPRESSION = "__import__('os').system('true')"


@pytest.mark.parametrize(
    ("name", "change", "words"),
    [
        ("library", lambda entries: entries.update({"data/aotinductor/model/model.so": b""}), "an entry"),
        ("custom object", lambda entries: entries.update({"data/constants/custom_obj_0": b""}), "an entry"),
        ("legacy weights", lambda entries: entries.update({"data/weights/model.pt": b""}), "an entry"),
        ("second model", lambda entries: entries.update({"models/other.json": b"{}"}), "an entry"),
        ("second archive", lambda entries: entries.update({"!other/version": b"3"}), "several archives"),
        (
            "pickled weight",
            lambda entries: config(entries, "data/weights/model_weights_config.json", use_pickle=True),
            "a pickled object",
        ),
        (
            "weight elsewhere",
            lambda entries: config(entries, "data/weights/model_weights_config.json", path_name="../constants/x"),
            "a pickled object",
        ),
        (
            "operator outside of tensors",
            in_program(lambda program: first_node(program).update(target="torch.ops.aten.from_file.default")),
            "a call of 'torch.ops.aten.from_file.default'",
        ),
        (
            "function of torch",
            in_program(lambda program: first_node(program).update(target="torch.hub.load")),
            "a call of 'torch.hub.load'",
        ),
        (
            "function of Python",
            in_program(lambda program: first_node(program).update(target="_operator.methodcaller")),
            "a call of '_operator.methodcaller'",
        ),
        (
            "another library",
            in_program(lambda program: first_node(program).update(target="#namespace:op")),
            "a call of",
        ),
        (
            "operator as an argument",
            in_program(lambda program: first_node(program)["inputs"][0].update(arg={"as_operator": "torch.load"})),
            "a call of 'torch.load'",
        ),
        ("guard", in_program(lambda program: program["guards_code"].append(EXPRESSION)), "the expression"),
        ("range", in_program(lambda program: program["range_constraints"].update({EXPRESSION: {}})), "the expression"),
        (
            "size",
            in_program(lambda program: first_node(program)["metadata"].update(expr_str=EXPRESSION)),
            "the expression",
        ),
        (
            "type of arguments",
            in_program(
                lambda program: program["graph_module"]["module_call_graph"][0]["signature"].update(
                    in_spec='[1, {"type": "collections.defaultdict", "context": "{}", "children_spec": []}]'
                )
            ),
            "an argument of type 'collections.defaultdict'",
        ),
    ],
)
def test_what_torch_would_run_is_refused(
    tmp_path: Path, name: str, change: Callable[[dict[str, bytes]], None], words: str
) -> None:
    path = rewritten(write_pt2(tmp_path / "tiny.pt2"), change)
    with pytest.raises(ConfigError, match=r"tiny\.pt2 holds .*which no detector needs") as refused:
        open_exported(path, torch.device("cpu"))
    assert words in str(refused.value), name


@pytest.mark.parametrize("entry", ["data/sample_inputs/model.pt", "data/weights/weight_0"])
def test_a_pickle_is_not_run(tmp_path: Path, entry: str) -> None:
    trap = tmp_path / "trap"
    buffer = io.BytesIO()
    torch.save(Trap(trap), buffer)

    def spring(entries: dict[str, bytes]) -> None:
        entries[entry] = buffer.getvalue()
        if "weight" in entry:
            config(entries, "data/weights/model_weights_config.json", use_pickle=True)

    path = rewritten(write_pt2(tmp_path / "tiny.pt2"), spring)
    with pytest.raises(ConfigError, match="a pickled object"):
        open_exported(path, torch.device("cpu"))
    assert not trap.exists()
    # The trap works: this is what torch does with it.
    pickle.loads(pickle.dumps(Trap(trap)))
    assert trap.exists()


@pytest.mark.parametrize(
    "expression",
    [
        "Mul(Integer(32), Symbol('s16', positive=True, integer=True))",
        "32*s16",
        "(1 + (((-1) + L['images'].size()[3]) // 2)) != 1",
        "FloorDiv(Add(Symbol('s77', integer=True), Integer(-1)), Integer(2))",
        "4*s0 >= 5 and s1 < 7",
    ],
)
def test_arithmetic_with_sizes_passes(tmp_path: Path, expression: str) -> None:
    path = write_pt2(tmp_path / "tiny.pt2")
    path = rewritten(path, in_program(lambda program: program["guards_code"].append(expression)))
    assert screened(path.read_bytes(), path)


@pytest.mark.parametrize(
    "expression",
    [
        EXPRESSION,
        "().__class__",
        "L['x'].__class__",
        "L['x'].size.__globals__['os']",
        "open('/etc/passwd')",
        "eval('1')",
        "[x for x in (1,)]",
        "lambda: 1",
        "f'{1}'",
        "Symbol('s0); import os')",
        "(yield)",
        "s0 := 1",
        "9" * 30_000,
        "",
        None,
    ],
)
def test_anything_else_in_an_expression_is_refused(tmp_path: Path, expression: str | None) -> None:
    path = write_pt2(tmp_path / "tiny.pt2")
    path = rewritten(path, in_program(lambda program: program["guards_code"].append(expression)))
    with pytest.raises(ConfigError, match=r"which no detector needs|is damaged"):
        screened(path.read_bytes(), path)
