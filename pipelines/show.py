"""The end of a training: its result, where everything lies, and what to type next."""

from pipelines.console import say
from pipelines.recipe import Recipe
from pipelines.train import TrainingResult


def show_result(result: TrainingResult, recipe: Recipe) -> None:
    """Print the AP table on stdout and the places and next commands on stderr."""
    if result.evaluation is not None:
        print((result.folder / "evaluation" / "ap.txt").read_text(), end="")
    say("done", f"run {result.run}, {result.step:,} steps")
    if result.evaluation is not None:
        say("pictures", str(result.folder / "evaluation" / "predictions.png"))
    say("weights", str(result.folder / "checkpoints"))
    say("logs", str(result.folder / "logs"))
    say("next", f"aweigh ui --folder {recipe.run.folder}    curves, pictures and comparison of runs in MLflow")
    if result.evaluation is not None:
        say("", f"aweigh evaluate {result.folder}    AP of the best checkpoint, on any shards with --data")
    say("", f"aweigh recipe show {recipe.recipe}    everything that can be set")
