"""Programs for any size are traced with symbols in place of sizes, which checks of types take for no int."""

from collections.abc import Iterator

import jaxtyping
import pytest


@pytest.fixture(autouse=True)
def unchecked_shapes() -> Iterator[None]:
    """Leave out the checks of shapes while a test traces."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)
