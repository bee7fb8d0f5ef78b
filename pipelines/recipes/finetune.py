"""Fine-tuning on a user's own photographs; `aweigh train finetune --data FOLDER` derives what this leaves open."""

from dataclasses import replace

from pipelines.recipes.centernet import centernet_resnet18_1x
from pipelines.recipes.settings import Recipe


def finetune() -> Recipe:
    """CenterNet with a plain ResNet-18, unless --detector.name says otherwise.

    It is the default because it has ordinary convolutions only: it trains on a CPU in bearable time, fits every GPU,
    and its exported file runs anywhere. Its published rate and batch are the start of the arithmetic.
    """
    recipe = centernet_resnet18_1x()
    return replace(
        recipe,
        recipe="finetune",
        purpose="Your own photographs (--data FOLDER); batch, rate, epochs and input size are derived",
        schedule=replace(recipe.schedule, drops_at=()),
    )
