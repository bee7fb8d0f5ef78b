"""An MLflow model of a trained detector: weights that describe themselves, our packages, and pinned requirements."""

import importlib.metadata
import io
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pipelines
from pipelines.tracking.models import WEIGHTS
from pipelines.trained.trained import Trained
from pipelines.trained.weights_file import write_weights

if TYPE_CHECKING:
    from mlflow.models import ModelSignature

REQUIREMENTS = (
    "torch",
    "numpy",
    "opencv-python-headless",
    "simplejpeg",
    "pillow",
    "pydantic",
    "PyYAML",
    "safetensors",
    "jaxtyping",
    "filelock",
    "nvidia-ml-py",
    "pandas",
)
"""Distributions that a model needs, beside MLflow, to find objects in images."""

_PACKAGES = ("pipelines", "cluster", "data_shards", "detectors")


def write_model(folder: Path, trained: Trained) -> None:
    """Write a model's folder, which `mlflow models serve`, `mlflow.pyfunc` and `open_trained` read.

    No image is predicted, so this takes little more than writing the weights.

    Args:
        folder: must not exist.
        trained: the detector.

    Raises:
        ConfigError: the weights cannot be written.
    """
    description, needs = trained.describe(), trained.detector.needs
    # MLflow would copy a uv.lock of whatever project the command is run in.
    os.environ.setdefault("MLFLOW_UV_AUTO_DETECT", "false")
    import mlflow.pyfunc
    import pandas
    from mlflow.models import Model

    # It would say that it checks the example, in the middle of a training's result.
    logging.getLogger("mlflow.pyfunc").setLevel(logging.WARNING)
    model = Model()
    mlflow.pyfunc.save_model(
        str(folder),
        loader_module="pipelines.registering.served_model",
        code_paths=[str(Path(pipelines.__file__).parent.parent / name) for name in _PACKAGES],
        mlflow_model=model,
        signature=_signature(needs),
        input_example=pandas.DataFrame({"image": [_example()]}),
        pip_requirements=pinned(("mlflow", *REQUIREMENTS)),
        metadata={
            "detector": description.detector,
            "classes": [one.name for one in description.classes],
            "run": description.run,
            "step": description.step,
        },
    )
    # Not through `data_path`, which would copy a file of hundreds of megabytes once more.
    path = folder / WEIGHTS
    write_weights(trained.detector, path, description)
    model.flavors[mlflow.pyfunc.FLAVOR_NAME]["data"] = WEIGHTS
    model.model_size_bytes = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    model.save(str(folder / "MLmodel"))


def pinned(names: Sequence[str]) -> list[str]:
    """Return requirements with the versions that are installed here."""
    # "+cpu" and the like name a build that package indexes do not have.
    return [f"{name}=={importlib.metadata.version(name).partition('+')[0]}" for name in names]


def model_params(trained: Trained) -> dict[str, str]:
    """Return what MLflow shows beside a model."""
    return {
        "detector": trained.detector.name,
        "classes": str(len(trained.classes)),
        "run": trained.identity.run,
        "step": str(trained.identity.step),
    }


def _signature(needs: Sequence[str]) -> "ModelSignature":
    from mlflow.models import ModelSignature
    from mlflow.types.schema import Array, ColSpec, DataType, ParamSchema, ParamSpec, Schema

    numbers: Any = Array(DataType.double)
    outputs = [
        ColSpec(DataType.long, "width"),
        ColSpec(DataType.long, "height"),
        ColSpec(Array(numbers), "boxes"),
        ColSpec(numbers, "scores"),
        ColSpec(Array(DataType.long), "labels"),
        ColSpec(Array(DataType.string), "class_names"),
    ]
    if "keypoints" in needs:
        outputs.append(ColSpec(Array(Array(numbers)), "keypoints"))
    if "depth" in needs:
        outputs.append(ColSpec(Array(numbers), "box3d"))
    return ModelSignature(
        inputs=Schema(
            [ColSpec(DataType.binary, "image", required=False), ColSpec(DataType.string, "path", required=False)]
        ),
        outputs=Schema([*outputs, ColSpec(DataType.string, "error")]),
        params=ParamSchema([ParamSpec("threshold", DataType.double, None), ParamSpec("tta", DataType.string, None)]),
    )


def _example() -> bytes:
    """Return a small photograph of nothing: a JPEG of a gray ramp."""
    import PIL.Image

    file = io.BytesIO()
    PIL.Image.linear_gradient("L").resize((96, 64)).convert("RGB").save(file, "JPEG")
    return file.getvalue()
