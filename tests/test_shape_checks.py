"""The checks of shapes are on while tests run, and refuse what does not fit."""

import inspect
from dataclasses import dataclass, field

import pytest
import torch
from jaxtyping import Float, TypeCheckError, jaxtyped
from torch import Tensor

from tests.shape_checks import check_shapes


@jaxtyped(typechecker=check_shapes)
def widths(boxes: Float[Tensor, "objects 4"], scale: float = 1.0) -> Float[Tensor, " objects"]:
    return scale * (boxes[:, 2] - boxes[:, 0])


@jaxtyped(typechecker=check_shapes)
@dataclass
class Found:
    scores: Float[Tensor, " objects"] | None
    boxes: Float[Tensor, "objects 4"]
    notes: list[str] = field(default_factory=list)


@jaxtyped(typechecker=check_shapes)
def doubled(number: int) -> int:
    return 2 * number


def test_a_shape_that_fits_passes_with_an_int_for_a_float() -> None:
    assert widths(torch.ones(3, 4), 2).tolist() == [0, 0, 0]
    assert Found(torch.ones(3), torch.ones(3, 4)).notes == []


@pytest.mark.parametrize("boxes", [torch.ones(3, 5), torch.ones(4), torch.ones(3, 4, dtype=torch.int64)])
def test_another_shape_or_type_is_refused(boxes: Tensor) -> None:
    with pytest.raises(TypeCheckError, match="boxes"):
        widths(boxes)


def test_sizes_of_one_name_agree() -> None:
    with pytest.raises(TypeCheckError, match="boxes"):
        Found(torch.ones(2), torch.ones(3, 4))


def test_a_function_without_arrays_is_left_to_mypy() -> None:
    assert doubled(1.5) == 3.0  # type: ignore[arg-type]


def test_the_packages_with_arrays_are_checked() -> None:
    import detectors
    from data_shards.order.plan import make_plan

    for function in (detectors.build, make_plan):
        assert inspect.unwrap(function) is not function
