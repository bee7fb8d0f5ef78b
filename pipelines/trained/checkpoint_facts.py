"""The facts of a training that a checkpoint carries beside its tensors."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from cluster.checkpoints.checkpoint import Checkpoint


@dataclass(frozen=True, kw_only=True)
class CheckpointFacts:
    """Everything that resuming, evaluating and exporting need to know about the training.

    A field that is added here needs a default, which checkpoints of earlier versions take.
    """

    detector: str
    """Name of the detector."""
    classes: list[dict[str, Any]]
    """Id and name of each class, in the order of the labels."""
    manifest: str
    """Digest of the training shards' manifest."""
    recipe: dict[str, Any]
    """The resolved recipe, as in the run's `recipe.yaml`."""
    epoch: int = 0
    """Epochs done."""
    samples_seen: int = 0
    steps_per_epoch: int = 0
    seed: int = 0
    world_size: int = 0
    zero_stage: int = 0
    precision: str = ""
    """The resolved one, never `auto`; empty in checkpoints that do not record it."""
    saved_at: float = 0.0
    """Unix time at which the state was copied; 0 in checkpoints that do not record it."""
    run: str = ""
    attempt: int = 0
    mlflow_run: str = ""
    """Id of the MLflow run; empty while there is none."""
    skipped_steps: int = 0
    """Steps skipped so far because a gradient was not finite."""
    evaluation_due: bool = False
    """True if these weights should have been evaluated, but the attempt was stopped."""
    begun_ungrouped: bool = False
    """True if a version that did not group samples by aspect ratio began the run, so that it must continue without,
    whatever its recipe says today; ask `was_begun_ungrouped`."""
    weights_sha256: str = ""
    """Of the file of initial weights; empty for random ones, and in checkpoints that do not record it."""
    thresholds: dict[str, float] = dataclasses.field(default_factory=dict)
    """Score of the best F1 of each class, by its name; empty before these weights are evaluated, and in checkpoints
    that do not record it."""

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "CheckpointFacts":
        """Read the facts of any version; fields that this version does not know are left out.

        Raises:
            TypeError: a field without a default is missing.
        """
        known = {field.name for field in dataclasses.fields(cls)}
        return cls(**{name: value for name, value in values.items() if name in known})

    def as_dict(self) -> dict[str, Any]:
        """Return the facts as JSON values by name."""
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}


def was_begun_ungrouped(facts: CheckpointFacts) -> bool:
    """Return True if the run was begun by a version that did not group samples by aspect ratio."""
    # The first checkpoints of such a run have a recipe without the field; later ones carry the fact.
    return facts.begun_ungrouped or "group_by_aspect_ratio" not in facts.recipe.get("data", {})


def facts_of(checkpoint: Checkpoint) -> CheckpointFacts:
    """Read the facts of a checkpoint."""
    return CheckpointFacts.from_dict(checkpoint.facts)


def unknown_facts(checkpoint: Checkpoint) -> str:
    """Name the fields that this version does not know, with the checkpoint and its writer; empty if there are none."""
    unknown = sorted(checkpoint.facts.keys() - {field.name for field in dataclasses.fields(CheckpointFacts)})
    if not unknown:
        return ""
    return f"{checkpoint.path} was written by {checkpoint.envelope.writer}; ignored unknown facts: {', '.join(unknown)}"
