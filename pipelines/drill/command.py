"""`aweigh drill`: train once undisturbed and once under each fault, and report every difference."""

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from data_shards.order.plan import Plan
from pipelines import console, recipes
from pipelines.drill.fault import Fault
from pipelines.drill.faults import FAULTS
from pipelines.drill.runs import Course, DrillError, running
from pipelines.drill.verdict import Verdict, compare_runs
from pipelines.errors import ConfigError
from pipelines.recipes.recipe import absolute, with_flags
from pipelines.training.checks import check


def run_drill(recipe_name: str, flags: Sequence[str], names: Sequence[str], folder: Path, *, as_json: bool) -> bool:
    """Drill one fault after the other; returns True if none of them left a trace.

    Args:
        recipe_name: a recipe's name or file.
        flags: flags that make it short; the drill's own settings override them.
        names: the faults; empty for all.
        folder: folder of the runs; an undisturbed run that is already there is reused.
        as_json: print one JSON object.

    Raises:
        ConfigError: a fault is not known, or the recipe cannot be drilled.
    """
    if unknown := [name for name in names if name not in FAULTS]:
        raise ConfigError(f"unknown fault {unknown[0]!r}; choose from {', '.join(FAULTS)}.")
    course, plan = _course(recipe_name, flags, folder)
    rows: list[dict[str, Any]] = []
    began = time.monotonic()
    if not (folder / "whole" / "result.json").exists():
        console.say("drill", f"{course.steps} steps undisturbed")
        with running(course.start("whole")) as attempt:
            attempt.finish()
    console.say("drill", f"the undisturbed run is in {folder / 'whole'}, {console.duration(time.monotonic() - began)}")
    for name in names or FAULTS:
        began = time.monotonic()
        console.say("drill", f"{name}: {FAULTS[name].meaning}")
        verdict = _one(FAULTS[name], course, plan)
        seconds = time.monotonic() - began
        rows.append(
            {
                "fault": name,
                "passed": verdict.equal,
                "summary": verdict.summary,
                "seconds": round(seconds, 1),
                "problems": list(verdict.problems),
            }
        )
        console.say("drill", f"{name}: {verdict.summary} ({console.duration(seconds)})")
        for problem in verdict.problems:
            console.say("drill", f"{name}: {problem}")
    if as_json:
        print(json.dumps({"steps": course.steps, "faults": rows}))
    else:
        width = max(len(row["fault"]) for row in rows)
        for row in rows:
            passed = "passed" if row["passed"] else "FAILED"
            print(f"{row['fault']:<{width}} {passed:<7} {row['summary']}  {row['seconds']:.0f} s")
    return all(row["passed"] for row in rows)


def _one(fault: Fault, course: Course, plan: Plan) -> Verdict:
    run = f"{fault.name}-{time.time_ns():x}"
    try:
        fault.happen(course, run)
    except DrillError as error:
        return Verdict(False, "not carried out", (str(error),))
    return compare_runs(course.folder / "whole", course.folder / run, plan, course.steps, rounding=fault.rounding)


def _course(recipe_name: str, flags: Sequence[str], folder: Path) -> tuple[Course, Plan]:
    recipe = absolute(with_flags(recipes.get(recipe_name), [*flags, *_needed(1)]))
    size, workers = recipe.batch.global_size, 4
    if size % workers:
        raise ConfigError(
            f"batch.global_size is {size}; a drill needs a multiple of {workers}, its largest number of workers."
        )
    _, plan = check(recipe)
    steps = recipe.schedule.last_step(plan.steps_per_epoch)
    if steps < 8:
        raise ConfigError(f"the recipe has {steps} steps with these flags; a drill needs 8 or more.")
    folder = folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    given = [*flags, *_needed(size // workers)]
    # Absolute paths: a submitted attempt starts in another folder.
    shards = {"train": recipe.data.train, "validation": recipe.data.validation}
    paths = [f"--data.{split}={place}" for split, place in shards.items() if place]
    return Course(recipe_name, (*given, *paths), folder, steps, shards), plan


def _needed(microbatch: int) -> list[str]:
    """Return the drill's own flags: keep all checkpoints, log all steps, one microbatch size for 1, 2 and 4 workers."""
    return [
        *("--cluster.workers", "2", "--batch.microbatch_limit", str(microbatch), "--tracking.ledger", "true"),
        *("--tracking.every_steps", "1", "--checkpoint.keep", "1000", "--checkpoint.every_minutes", "0"),
    ]
