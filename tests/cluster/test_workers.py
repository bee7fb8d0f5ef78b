"""The worker group: world sizes that divide the batch."""

import pytest

from cluster.errors import ClusterError
from cluster.settings import ClusterSettings
from cluster.workers import dividing_worlds


def test_elastic_worlds_divide_the_batch() -> None:
    assert dividing_worlds(24, ClusterSettings(workers="2:8")) == (2, 3, 4, 6, 8)
    with pytest.raises(ClusterError, match="is 23, which no number of workers from 5 to 7 divides"):
        dividing_worlds(24 + 1 - 2, ClusterSettings(workers="5:7"))
