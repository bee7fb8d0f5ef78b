"""Exported files made by hand: their scores are the means of the image's channels."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from data_shards.format.manifest import CocoClass
from detectors import Preprocessing
from pipelines.recipes.settings import DetectorSettings, EvaluationSettings, Recipe
from pipelines.trained.file_description import (
    EXTRA_FILE,
    DescribedInput,
    FileDescription,
    FileIdentity,
    FileSizes,
    described_recipe,
)

BOXES = ((0.0, 0.0, 8.0, 4.0), (4.0, 4.0, 40.0, 20.0), (0.0, 0.0, 0.0, 0.0))
LABELS = (2, 0, -1)
BATCH, HEIGHT, WIDTH = 2, 16, 32
MEAN = (0.25, 0.4, 0.75)


def description(**changes: Any) -> FileDescription:
    """A file that takes two images of 16 x 32 pixels and finds two objects in three places."""
    recipe = Recipe(
        recipe="tiny",
        detector=DetectorSettings(name="tiny"),
        evaluation=EvaluationSettings(limit=3, input_size=(HEIGHT, WIDTH)),
    )
    values: dict[str, Any] = {
        "aweigh": 1,
        "detector": "tiny",
        "precision": "float32",
        "classes": (CocoClass(18, "dog"), CocoClass(1, "person", ("nose",)), CocoClass(44, "bottle")),
        "preprocessing": Preprocessing(channel_order="bgr", mean=MEAN, std=(1.0, 1.0, 1.0)),
        "input": DescribedInput(dtype="uint8", batch=BATCH, height=HEIGHT, width=WIDTH),
        "outputs": ("boxes", "scores", "labels"),
        "sizes": FileSizes(kind="multiples", divisor=16),
        "limit": 3,
        "recipe": described_recipe(recipe),
        "thresholds": {"dog": 0.25},
        "identity": FileIdentity(run="first", step=7, mlflow_run="abc"),
    }
    return FileDescription(**{**values, **changes})


def write_onnx(path: Path, about: FileDescription | None = None, **metadata: str) -> Path:
    """Write an ONNX file; metadata replaces that of the description."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    kind = TensorProto.UINT8 if about is None or about.input.dtype == "uint8" else TensorProto.FLOAT
    boxes = np.tile(np.array(BOXES, dtype=np.float32), (BATCH, 1, 1))
    labels = np.tile(np.array(LABELS, dtype=np.int64), (BATCH, 1))
    shape = (BATCH, 3, HEIGHT, WIDTH)
    graph = helper.make_graph(
        [
            helper.make_node("Cast", ["images"], ["pixels"], to=TensorProto.FLOAT),
            helper.make_node("ReduceMean", ["pixels", "axes"], ["means"], keepdims=0),
            helper.make_node("Div", ["means", "most"], ["scores"]),
            helper.make_node("Identity", ["all_boxes"], ["boxes"]),
            helper.make_node("Identity", ["all_labels"], ["labels"]),
        ],
        "tiny",
        [helper.make_tensor_value_info("images", kind, shape)],
        [
            helper.make_tensor_value_info("boxes", TensorProto.FLOAT, boxes.shape),
            helper.make_tensor_value_info("scores", TensorProto.FLOAT, labels.shape),
            helper.make_tensor_value_info("labels", TensorProto.INT64, labels.shape),
        ],
        [
            numpy_helper.from_array(np.array([2, 3], dtype=np.int64), "axes"),
            numpy_helper.from_array(np.array(255, dtype=np.float32), "most"),
            numpy_helper.from_array(boxes, "all_boxes"),
            numpy_helper.from_array(labels, "all_labels"),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    helper.set_model_props(model, (description() if about is None else about).as_metadata() | metadata)
    onnx.save(model, path)
    return path


class TinyModule(nn.Module):
    """The same in torch."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("boxes", torch.tensor(BOXES))
        self.register_buffer("labels", torch.tensor(LABELS))
        self.most = nn.Parameter(torch.tensor(255.0))

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        batch = images.shape[0]
        scores = images.float().mean(dim=(2, 3)) / self.most
        return self.boxes.expand(batch, -1, -1).clone(), scores, self.labels.expand(batch, -1).clone()


def write_pt2(path: Path, module: nn.Module | None = None) -> Path:
    """Write a `.pt2` file that takes any number of images of any size."""
    about = description(input=DescribedInput(dtype="uint8", batch=None, height=None, width=None, least_side=16))
    dimensions = {0: torch.export.Dim("batch"), 2: torch.export.Dim("height"), 3: torch.export.Dim("width")}
    program = torch.export.export(
        module or TinyModule(), (torch.zeros(2, 3, 32, 48, dtype=torch.uint8),), dynamic_shapes=(dimensions,)
    )
    torch.export.save(program, path, extra_files={EXTRA_FILE: json.dumps(about.as_metadata())})
    return path
