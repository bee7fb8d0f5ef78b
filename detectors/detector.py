"""The contract of all detectors; see `Detector`."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Literal, Self

import torch
import torch.utils._pytree
from torch import Tensor, nn

from detectors.detections import Detections, DetectionTensors, in_image, in_other_input
from detectors.errors import DetectorError
from detectors.file_layouts import AUTHORS_STATE_DICT, FileLayout
from detectors.shapes import Float, Int
from detectors.sizes import InputSizes
from detectors.stages import Stages


@dataclass(frozen=True)
class Preprocessing:
    """Normalisation of pixels to the network's input: `(pixel * scale - mean) / std`, channel by channel.

    `mean` and `std` are in `channel_order`. Images arrive as RGB and are swapped for "bgr".
    """

    channel_order: Literal["rgb", "bgr"]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    scale: float = 1 / 255
    """Factor on the 0 to 255 pixel before the mean is subtracted."""


TestMode = Literal["none", "flip", "multiscale"]
"""Inputs of a network at test time: the image; the image and its mirror; both at several scales."""
MODES: tuple[TestMode, ...] = ("none", "flip", "multiscale")


@dataclass(frozen=True)
class View:
    """Images of a batch at one scale, as the network receives them."""

    images: Float[Tensor, "batch 3 height width"]
    """Normalised."""
    transforms: Float[Tensor, "batch 2 3"]
    """The affine maps from each image's frame to the input frame."""
    content_sizes: Int[Tensor, "batch 2"] | None = None
    """Rows and columns that hold the photograph, if all padding is right of and below it; None if the whole input
    counts."""
    image_sizes: Int[Tensor, "batch 2"] | None = None
    """Height and width of each image in its own frame, on the CPU; None if unknown."""
    scale: float = 1.0
    """The one of `Detector.scales_shown` that this view shows."""

    @property
    def input_size(self) -> tuple[int, int]:
        """Height and width of the input, in pixels."""
        return self.images.shape[-2], self.images.shape[-1]


@dataclass(frozen=True, kw_only=True)
class Published:
    """Weights that others published for a detector, and the layouts of their files."""

    imagenet_weights: str = ""
    """Address of the ImageNet weights that the publication starts from; empty if it starts from none."""
    backbone_prefix: str = ""
    """Prefix in the state dict of the keys of an ImageNet file."""
    class_layers: tuple[str, ...] = ()
    """Layers whose first dimension counts classes: a file for other classes does not fit them."""
    file_layouts: tuple[FileLayout, ...] = ()
    """Layouts of other libraries' files; if none fits a file, its keys are taken as they are."""
    export_layouts: Mapping[str, FileLayout] = field(default_factory=lambda: {"authors": AUTHORS_STATE_DICT})
    """Layouts that the weights can be written in, by the library's name."""


@dataclass(frozen=True, kw_only=True)
class TestTime:
    """Test-time augmentation that a publication has."""

    modes: tuple[TestMode, ...] = ("none",)
    """Modes that may be chosen."""
    scales: tuple[float, ...] = (1.0,)
    """Factors on the size of the image in the mode "multiscale"."""
    soft_nms: bool = False
    """Soft-NMS is part of the publication."""
    merges_in_input: bool = False
    """`merge` measures boxes in pixels of the first scale's input, not of the image."""


class Detector(nn.Module, ABC):
    """One published detector: its network, targets, losses and decoding.

    A new one implements `forward`, `encode`, `losses` and `decode`, and sets the attributes without a default. The
    other methods have bodies that fit most detectors.
    """

    name: str = "detector"
    """The name that `build` was called with."""
    preprocessing: Preprocessing
    sizes: InputSizes
    """Input sizes that the network takes."""
    num_classes: int
    published: Published = Published()
    test_time: TestTime = TestTime()
    stages: Stages = MappingProxyType({})
    """The trunk and the neck. Heads are not stages. Stages can be frozen, or learn at rates of their own."""
    frozen: tuple[str, ...] = ()
    """Stages that `freeze` has excluded from training."""
    needs: tuple[str, ...] = ()
    """Names of the further annotations that `encode` cannot do without."""
    takes_rotated_images: bool = False
    """`encode` can use images that augmentation has rotated, though their boxes are those from before (`rotated`)."""
    box_corners: Literal["indexes", "edges"] = "indexes"
    """Meaning of the corners of boxes in cropped inputs: indexes of pixels, as CenterNet has them, or edges, which are
    half a pixel from them. Boxes in resized whole images are always edges."""

    @property
    def max_objects(self) -> int | None:
        """Annotations of an image that `encode` uses, the first ones in file order; None for all."""
        return None

    @abstractmethod
    def forward(self, images: Float[Tensor, "batch 3 height width"]) -> Any:
        """Run the network. Returns raw logits, as the authors' forward does.

        Args:
            images: normalised as `preprocessing` says, of a size that fits `sizes`.
        """

    @abstractmethod
    def encode(
        self,
        boxes: Float[Tensor, "batch objects 4"],
        labels: Int[Tensor, "batch objects"],
        input_size: tuple[int, int],
        **extra: Tensor,
    ) -> Any:
        """Encode the targets of a whole batch, on the device of `boxes`, without gradient or a loop over objects.

        Args:
            boxes: x1, y1, x2, y2, unclipped, in the input frame; float32.
            labels: index into the class list, -1 for padding.
            input_size: height and width of the input, in pixels.
            extra: further annotations by their names: those of `needs`, and `rotated` or `rescaled`.
        """

    @abstractmethod
    def losses(self, outputs: Any, targets: Any) -> dict[str, Tensor]:
        """Compute the parts of the loss by name, in float32, and their weighted sum under "loss"."""

    @abstractmethod
    def decode(self, outputs: Any, input_size: tuple[int, int], limit: int = 100) -> list[Detections]:
        """Find the best `limit` objects of each image, in the input frame; more if the publication keeps ties."""

    def decode_tensors(self, outputs: Any, input_size: tuple[int, int], limit: int = 100) -> DetectionTensors:
        """Find the first `limit` of the objects that `decode` returns, in tensors whose shapes the data cannot change.

        `torch.compile` and `torch.export` trace this without a graph break: it neither reads a value from the device
        nor loops over images.

        Args:
            outputs: result of `forward`.
            input_size: height and width of the input, in pixels.
            limit: places an image.

        Raises:
            DetectorError: the detector does not implement this.
        """
        raise DetectorError(
            f"{self.name} cannot be exported, because it has no decode_tensors. Implement this method of Detector."
        )

    def detect_tensors(self, images: Float[Tensor, "batch 3 height width"], limit: int = 100) -> DetectionTensors:
        """Run the network and decode, as a portable file does. A detector that looks twice overrides this.

        Args:
            images: normalised, of a size that fits `sizes`.
            limit: places an image.

        Raises:
            DetectorError: the detector has no `decode_tensors`.
        """
        return self.decode_tensors(self(images), (images.shape[-2], images.shape[-1]), limit)

    def heatmaps(self, targets: Any) -> dict[str, Float[Tensor, "batch planes height width"]]:
        """Maps among the targets, for pictures, under the words that their captions begin with.

        Each has one plane for all classes or one a class, values from 0 to 1, and 1 where an object is.
        """
        return {}

    def biases(self) -> list[str]:
        """Names of the parameters that are biases, which some publications train with a rate and decay of their own."""
        return [name for name, _ in self.named_parameters() if name.endswith("bias")]

    def stage_of(self, parameter: str) -> str:
        """Return the stage that a parameter belongs to; empty for those of heads."""
        return next(
            (stage for stage, paths in self.stages.items() if any(parameter.startswith(f"{path}.") for path in paths)),
            "",
        )

    def check_stages(self, stages: Iterable[str]) -> None:
        """Refuse names that are not stages of this detector.

        Raises:
            DetectorError: with the stages that it has.
        """
        for stage in stages:
            if stage not in self.stages:
                known = ", ".join(self.stages)
                raise DetectorError(
                    f"{self.name} has no stage {stage!r}; "
                    + (f"its stages are {known}." if known else "it names none, so all of it is trained alike.")
                )

    def freeze(self, stages: Sequence[str]) -> None:
        """Exclude stages from training: no gradient is computed for them, and their batch norms keep their statistics.

        Parameters that the publication does not train stay frozen, whichever stages are named.

        Raises:
            DetectorError: there is no such stage.
        """
        self.check_stages(stages)
        self.frozen = tuple(stage for stage in self.stages if stage in {*self.frozen, *stages})
        for module in self._frozen_modules():
            module.requires_grad_(False)
        self.train(self.training)

    def train(self, mode: bool = True) -> Self:
        """Set training or evaluation mode; batch norms of frozen stages stay in evaluation mode."""
        super().train(mode)
        # Only norms: other modules do other things in evaluation, such as keep what they would recompute in backward.
        for module in self._frozen_modules():
            for norm in module.modules():
                if isinstance(norm, nn.modules.batchnorm._BatchNorm):
                    norm.training = False
        return self

    def _frozen_modules(self) -> list[nn.Module]:
        return [self.get_submodule(path) for stage in self.frozen for path in self.stages[stage]]

    @torch.no_grad()
    def detect(
        self,
        views: Sequence[View],
        *,
        mode: TestMode = "none",
        soft: bool = False,
        limit: int = 100,
        watch: Callable[[int, Any], None] = lambda number, outputs: None,
    ) -> list[Detections]:
        """Find objects in a batch of images: run each view, decode, merge, and map back to the image frame.

        A detector that looks twice, at the whole image and then at parts of it, overrides this: a view has the pixels
        to cut the parts from, and `transforms` map the results back.

        Args:
            views: the images at each of `scales_shown`, on the detector's device, which is in evaluation mode.
            mode: test-time augmentation.
            soft: soft-NMS also for a single scale.
            limit: detections an image; more are returned if the publication keeps ties.
            watch: called with the number of each view and the outputs for its images (to compute losses, say).

        Returns:
            One for each image, in the image frame, on the CPU.

        Raises:
            DetectorError: this detector was not published with the mode, or with soft-NMS.
        """
        self.check_test_mode(mode, soft)
        # float64, because scales of one image are compared and inverted.
        transforms = [view.transforms.cpu().double() for view in views]
        parts: list[list[Detections]] = [[] for _ in views[0].images]
        for number, view in enumerate(views):
            outputs, mirrored = self._run(view, flip=mode != "none")
            watch(number, outputs)
            found = self.candidates(
                outputs, view.input_size, limit, mirrored=mirrored, content_sizes=view.content_sizes
            )
            for row, one in enumerate(found):
                here, first = transforms[number][row], transforms[0][row]
                parts[row].append(
                    in_other_input(one, here, first) if self.test_time.merges_in_input else in_image(one, here)
                )
        detections = []
        for row, of_image in enumerate(parts):
            merged = self.merge(of_image, limit, soft=soft)
            detections.append(in_image(merged, transforms[0][row]) if self.test_time.merges_in_input else merged)
        return detections

    def scales_shown(self, mode: TestMode, soft: bool = False, scales: Sequence[float] = ()) -> tuple[float, ...]:
        """Scales of the views that `detect` takes, in the order in which it merges them.

        Args:
            mode: test-time augmentation.
            soft: soft-NMS also for a single scale.
            scales: of the mode "multiscale", instead of the published ones.

        Raises:
            DetectorError: this detector was not published with the mode, or with soft-NMS.
        """
        self.check_test_mode(mode, soft)
        return (tuple(scales) or self.test_time.scales) if mode == "multiscale" else (1.0,)

    def mirror(
        self, images: Float[Tensor, "batch 3 height width"], content_widths: Int[Tensor, " batch"]
    ) -> Float[Tensor, "batch 3 height width"]:
        """Mirror the images of a view; `candidates` turns the outputs back.

        Args:
            images: normalised.
            content_widths: columns that hold the photograph, if all padding is to its right.
        """
        return images.flip(-1)

    def candidates(
        self,
        outputs: Any,
        input_size: tuple[int, int],
        limit: int = 100,
        *,
        mirrored: Any = None,
        content_sizes: Int[Tensor, "batch 2"] | None = None,
    ) -> list[Detections]:
        """Decode one scale for `merge`, image by image, in the input frame.

        Args:
            outputs: result of `forward`.
            input_size: height and width of the input, in pixels.
            limit: detections an image.
            mirrored: result of `forward` for the mirrored images.
            content_sizes: rows and columns that hold the photograph; see `View`.

        Raises:
            DetectorError: there is a mirror, which this detector was not published with.
        """
        if mirrored is not None:
            self.check_test_mode("flip")
        return self.decode(outputs, input_size, limit)

    def merge(self, parts: Sequence[Detections], limit: int = 100, *, soft: bool = False) -> Detections:
        """Merge the candidates of one image at each scale into its final detections.

        Args:
            parts: one for each scale, all in one frame: the first scale's input frame if
                `test_time.merges_in_input`, otherwise the image frame.
            limit: detections an image.
            soft: soft-NMS also for a single scale.

        Raises:
            DetectorError: this detector was not published with several scales, or with soft-NMS.
        """
        self.check_test_mode("multiscale" if len(parts) > 1 else "none", soft)
        return parts[0]

    def check_input_size(self, input_size: tuple[int, int]) -> None:
        """Refuse an input that the network does not take.

        Raises:
            DetectorError: with the sizes that it takes.
        """
        height, width = input_size
        if not self.sizes.fits(height, width):
            raise DetectorError(
                f"the input is {height} x {width} pixels; height and width have to be {self.sizes}. Pad or resize it."
            )

    def check_labels(self, labels: Tensor) -> None:
        """Refuse labels of classes that the detector does not have; negative ones are not classes.

        Raises:
            DetectorError: with the highest label and the number of classes.
        """
        highest = int(labels.max()) if labels.numel() else -1
        if highest >= self.num_classes:
            raise DetectorError(
                f"an object has label {highest}, but the detector was built for {self.num_classes} classes "
                f"(labels 0 to {self.num_classes - 1}). Build it with num_classes={highest + 1}, or check the "
                "class list."
            )

    def check_test_mode(self, mode: str, soft: bool = False) -> None:
        """Refuse test-time augmentation that this detector was not published with.

        Raises:
            DetectorError: with the modes that it has, or because of soft-NMS.
        """
        if soft and not self.test_time.soft_nms:
            raise DetectorError(f"{self.name} was not published with soft-NMS. Leave it off.")
        if mode not in self.test_time.modes:
            raise DetectorError(
                f"{self.name} has no test mode {mode!r}, only {', '.join(self.test_time.modes)}; its authors published "
                "no other. Choose one of these."
            )

    def _run(self, view: View, *, flip: bool) -> tuple[Any, Any]:
        """Outputs for the images and, with `flip`, for their mirrors, from one batch of both."""
        images, content = view.images, view.content_sizes
        if not flip:
            return self(images), None
        widths = (
            torch.full((len(images),), images.shape[-1], device=images.device) if content is None else content[:, 1]
        )
        # One batch of both keeps a GPU busier than two runs.
        both = self(torch.cat((images, self.mirror(images, widths))))
        half = len(images)
        tree_map = torch.utils._pytree.tree_map
        return tree_map(lambda maps: maps[:half], both), tree_map(lambda maps: maps[half:], both)
