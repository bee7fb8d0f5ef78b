"""The network interface of gloo, from the addresses of this machine."""

import os

import pytest

from cluster.network import choose_gloo_network


def test_gloo_uses_the_interface_that_has_the_address_of_the_node(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "")
    assert choose_gloo_network("127.0.0.1") == "lo"
    assert os.environ["GLOO_SOCKET_IFNAME"] == "lo"


def test_a_network_that_the_user_has_named_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "ens5")
    assert choose_gloo_network("127.0.0.1") == "ens5"


def test_without_such_an_interface_gloo_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "")
    assert choose_gloo_network("203.0.113.7") == ""
    assert os.environ["GLOO_SOCKET_IFNAME"] == ""
