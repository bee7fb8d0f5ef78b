"""The evaluation loader: each image once, in the published test geometry."""

from collections.abc import Sequence

from data_shards.errors import DataError
from data_shards.loading.batch import check_input_size
from data_shards.loading.evaluation_batches import EvaluationSource
from data_shards.loading.evaluation_inputs import EvaluationInputs, Geometry, View, check_view
from data_shards.loading.shared_memory import RingLoader
from data_shards.order.plan import World
from data_shards.reading.reading import Reading
from data_shards.settings import InputSizes


class EvaluationLoader(RingLoader):
    """This rank's share of a split's images, each exactly once, in the published test geometry.

    - "fixed": the whole image in the middle of `input_size`; its longer side fills the input's width.
    - "width": the same, but the image's width fills the input's (KITTI).
    - "keep": the image at its own resolution, in the middle of a larger input of a size from `sizes`.
    - "shorter_side": the image resized to a shorter side, or to a smaller one where the longer side would exceed its
      limit, and padded on the right and below to a size from `sizes` (FCOS).

    If inputs differ in size, a batch holds only images whose inputs have the same size.

    A `scale` other than 1 resizes the image first. As published, "fixed" and "width" still zoom as for the image at
    scale 1, which leaves a border around a smaller image and cuts a larger one; "shorter_side" multiplies that side.

    Args:
        reading: the split, and how to read it.
        world: this rank's place.
        geometry: one of the four above.
        input_size: height and width of the input, in pixels, for "fixed" and "width".
        sizes: sizes that the network takes; needed for "keep" and "shorter_side".
        shorter_side, longer_side_limit: in pixels, for "shorter_side".
        scale: factor on the image's size.
        beside: scale and longer_side_limit of each loader that is read together with this one: their batches hold the
            same images, in the same order.
        batch_size: most images of a batch.
        limit: use only the first samples of the split, this many in all ranks together; None uses all.

    Raises:
        DataError, LoaderError: as for `TrainingLoader`.
    """

    def __init__(
        self,
        reading: Reading,
        world: World,
        *,
        geometry: Geometry = "fixed",
        input_size: tuple[int, int] = (512, 512),
        sizes: InputSizes | None = None,
        shorter_side: int = 800,
        longer_side_limit: int = 1333,
        scale: float = 1.0,
        beside: Sequence[tuple[float, int]] = (),
        batch_size: int = 1,
        limit: int | None = None,
    ) -> None:
        own = View(scale, longer_side_limit)
        inputs = EvaluationInputs(
            geometry=geometry,
            input_size=input_size,
            sizes=sizes,
            shorter_side=shorter_side,
            resizing=reading.resizing,
            boxes=reading.boxes,
        )
        check_view(own, shorter_side)
        check_input_size(input_size)
        if batch_size < 1:
            raise DataError(f"batch_size is {batch_size}; set it to 1 or more.")
        if limit is not None and limit < 1:
            raise DataError(f"limit is {limit}; set it to 1 or more, or leave it out.")
        self.manifest = reading.split.manifest
        self.world = world
        self.num_samples = min(limit or self.manifest.num_samples, self.manifest.num_samples)
        """Images over all ranks."""
        source = EvaluationSource(
            reading=reading,
            world=world,
            inputs=inputs,
            view=own,
            views=tuple(sorted({own, *(View(*view) for view in beside)})),
            batch_size=batch_size,
            num_samples=self.num_samples,
        )
        super().__init__(source, threads=reading.threads, prefetch=reading.prefetch)
