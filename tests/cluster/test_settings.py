"""Settings that the cluster cannot honour are refused by name."""

import pytest

from cluster.errors import ClusterError
from cluster.settings import ClusterSettings


def test_workers_are_a_number_or_a_range() -> None:
    assert ClusterSettings(workers="4").workers == 4
    assert not ClusterSettings(workers=4).elastic
    elastic = ClusterSettings(workers="2:8")
    assert (elastic.min_workers, elastic.max_workers, elastic.elastic) == (2, 8, True)
    assert elastic.workers_in_words == "2 to 8 workers"
    assert [ClusterSettings(workers=number).workers_in_words for number in (1, 2)] == ["1 worker", "2 workers"]
    for wrong in ("two", "8:2", "0:3", "2:2", "1.5"):
        with pytest.raises(ClusterError, match=r"cluster\.workers is .*2:8"):
            ClusterSettings(workers=wrong)
    with pytest.raises(ClusterError, match=r"cluster\.workers is 0; it must be 1 or more"):
        ClusterSettings(workers=0)
