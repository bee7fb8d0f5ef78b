"""Shapes of tensors in signatures: `Float[Tensor, "batch objects 4"]`, checked in tests.

They are jaxtyping's, which only development needs. Without it, as on a machine with nothing but torch and numpy, each
annotation is just its tensor type.
"""

from typing import TYPE_CHECKING, Any

__all__ = ["Bool", "Float", "Int"]

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int
else:
    try:
        from jaxtyping import Bool, Float, Int
    except ImportError:

        class _Unchecked:
            def __class_getitem__(cls, tensor_and_shape: tuple[Any, str]) -> Any:
                return tensor_and_shape[0]

        Bool = Float = Int = _Unchecked
