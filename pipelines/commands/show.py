"""The end of a training: its result, where everything lies, and what to type next."""

from pipelines.console import say
from pipelines.recipes.settings import Recipe
from pipelines.tracking import tracking_uri
from pipelines.training.train import TrainingResult


def show_result(result: TrainingResult, recipe: Recipe) -> None:
    """Print the AP table on stdout and the places and next commands on stderr."""
    if result.evaluation is not None:
        print((result.folder / "evaluation" / "ap.txt").read_text(), end="")
    say("done", f"run {result.run}, {result.step:,} steps")
    if (pictures := result.folder / "evaluation" / "predictions.png").exists():
        say("pictures", str(pictures))
    say("weights", str(result.folder / "checkpoints"))
    say("logs", str(result.folder / "logs"))
    tracked = tracking_uri(recipe)
    ui = f"aweigh ui --folder {recipe.run.folder}" if tracked.startswith("sqlite") else tracked
    say("next", f"{ui}    curves, pictures and comparison of runs in MLflow")
    if result.evaluation is not None:
        say("", f"aweigh evaluate {result.folder}    AP of the best checkpoint, on any shards with --data")
    say("", f"aweigh recipe show {recipe.recipe}    everything that can be set")
