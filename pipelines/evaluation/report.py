"""Report of an evaluation: the AP table, curves and pictures, in the run's folder and in MLflow."""

import math
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pipelines.evaluation.coco_metrics import FIGURES, precision_recall_figure
from pipelines.evaluation.evaluate import Evaluation
from pipelines.files import write_json
from pipelines.pictures.prediction_page import prediction_page
from pipelines.tracking import Tracker


def write_report(
    evaluation: Evaluation, class_names: Sequence[str], run: str, step: int, tracker: Tracker | None, folder: Path
) -> None:
    """Write `folder/evaluation`, replacing the report of an earlier step, and pass it to the tracker.

    Files: `ap.txt`, `precision_recall.png`, `predictions.png` and, written last, `metrics.json`.
    """
    out = folder / "evaluation"
    out.mkdir(parents=True, exist_ok=True)
    table, curves, page = out / "ap.txt", out / "precision_recall.png", out / "predictions.png"
    table.write_text(f"{run}, step {step:,}, {evaluation.num_images:,} images\n\n{tables(evaluation)}\n")
    precision_recall_figure(evaluation.coco, curves)
    if evaluation.drawn.fixed:
        header = f"{run}   step {step:,}   AP {evaluation.coco.AP:.3f}   AP50 {evaluation.coco.AP50:.3f}"
        prediction_page(evaluation.drawn.fixed, class_names, page, header=header, worst=evaluation.drawn.worst)
    if tracker:
        tracker.log_artifact(table, "evaluation")
        tracker.log_artifact(curves, "evaluation")
        if evaluation.drawn.fixed:
            tracker.log_artifact(page, "evaluation")
            tracker.log_image("predictions", step, page)
    write_json(out / "metrics.json", figures(evaluation, step))


def tables(evaluation: Evaluation) -> str:
    """Format the figures of keypoints, if there are any, and of boxes as plain text."""
    of_boxes = evaluation.coco.table()
    if evaluation.keypoints is None:
        return of_boxes
    return f"keypoints\n{evaluation.keypoints.table()}\n\nboxes\n{of_boxes}"


def figures(evaluation: Evaluation, step: int) -> dict[str, Any]:
    """Convert an evaluation to plain JSON values, with null for figures that have nothing to measure."""
    found = evaluation.coco
    return {
        "step": step,
        "images": evaluation.num_images,
        **{name: _number(getattr(found, name)) for name in FIGURES},
        "per_class": {
            name: {key: _number(value) for key, value in each._asdict().items()}
            for name, each in found.per_class.items()
        },
        **(
            {"keypoints": {name: _number(value) for name, value in asdict(evaluation.keypoints).items()}}
            if evaluation.keypoints
            else {}
        ),
        "losses": evaluation.losses,
        "highest_score": evaluation.highest_score,
        "milliseconds_per_image": evaluation.milliseconds_per_image,
    }


def _number(value: float) -> float | None:
    return None if math.isnan(value) else value
