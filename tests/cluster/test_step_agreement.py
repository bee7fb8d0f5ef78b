"""Requests of one rank become decisions of all, at the same step."""

from cluster.step_agreement import Agreement
from tests.cluster.processes import run_processes


def _exchange(rank: int) -> None:
    agreement = Agreement(("save", "stop"))
    wishes = {0: [["save"], [], [], []], 1: [[], [], ["stop"], ["stop"]]}[rank]
    agreed = [agreement.exchange(one) for one in wishes]
    assert agreed == [set(), {"save"}, set(), {"stop"}]
    agreement.close()
    assert agreement.exchange([]) == set()
    agreement.close()


def test_all_ranks_know_a_request_one_step_later() -> None:
    run_processes(_exchange, 2)
