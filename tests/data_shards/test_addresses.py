"""Addresses are shown without secrets, and a proxy that is in the way is named."""

import hypothesis
import hypothesis.strategies as st
import pytest

from data_shards.addresses import has_secret, proxy_hint, shown_address


@pytest.mark.parametrize(
    ("address", "shown"),
    [
        ("http://user:pw@host/ml", "http://host/ml"),
        ("http://user:p@ss@host:5000/ml", "http://host:5000/ml"),
        ("http://user:p/ss@host/ml", "http://host/ml"),
        ("postgresql://user:SECRET@host:5432/db?password=x", "postgresql://host:5432/db"),
        ("https://host/w.pth?X-Amz-Signature=abc&X-Amz-Credential=d", "https://host/w.pth"),
        ("http://host/?token=abc#x", "http://host/"),
        ("http://token@host", "http://host"),
        ("s3://bucket/prefix", "s3://bucket/prefix"),
        ("sqlite:////runs/mlflow.db", "sqlite:////runs/mlflow.db"),
        ("/runs/a@b?c", "/runs/a@b?c"),
        ("", ""),
        ("https://host/download?id=7", "https://host/download?id=7"),
        ("https://host/w?sv=1&sig=abc", "https://host/w"),
        ("cannot reach http://a:b@c/d?key=f, nor https://g:h@i; stop", "cannot reach http://c/d, nor https://i; stop"),
    ],
)
def test_an_address_is_shown_without_user_password_and_query(address: str, shown: str) -> None:
    assert shown_address(address) == shown
    assert has_secret(address) == (shown != address)


@pytest.fixture(autouse=True)
def no_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http", "https", "all", "no"):
        monkeypatch.delenv(f"{name}_proxy", raising=False)
        monkeypatch.delenv(f"{name}_proxy".upper(), raising=False)


@pytest.mark.parametrize(
    ("variables", "address", "requests", "found"),
    [
        ({}, "http://head:8265", True, ""),
        (
            {"HTTP_PROXY": "http://u:pw@proxy:9"},
            "http://head:8265",
            True,
            "HTTP_PROXY sends this request to the proxy http://proxy:9;",
        ),
        ({"http_proxy": "http://proxy:9"}, "http://head:8265", False, "http_proxy sends"),
        ({"HTTPS_PROXY": "http://proxy:9"}, "http://head:8265", True, ""),
        ({"ALL_PROXY": "http://proxy:9"}, "http://head:8265", True, "ALL_PROXY sends"),
        ({"ALL_PROXY": "http://proxy:9"}, "http://head:8265", False, ""),
        ({"HTTP_PROXY": "http://proxy:9", "NO_PROXY": "head"}, "http://head:8265", True, ""),
        ({"HTTP_PROXY": "http://proxy:9", "NO_PROXY": "head:8265"}, "http://head:8265", True, ""),
        ({"HTTP_PROXY": "http://proxy:9", "NO_PROXY": "*"}, "http://head:8265", True, ""),
        ({"HTTP_PROXY": "http://proxy:9", "NO_PROXY": "10.0.0.0/8"}, "http://10.1.2.3:9000", True, ""),
        (
            {"HTTP_PROXY": "http://proxy:9", "NO_PROXY": "10.0.0.0/8"},
            "http://10.1.2.3:9000",
            False,
            "add 10.1.2.3 to NO_PROXY",
        ),
        ({"HTTP_PROXY": "http://proxy:9", "NO_PROXY": "a/b, ,10.0.0.0/8"}, "http://head", True, "add head to NO_PROXY"),
        ({"HTTP_PROXY": "http://proxy:9"}, "sqlite:///x", True, ""),
    ],
)
def test_the_proxy_that_applies_is_named_without_its_password(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], address: str, requests: bool, found: str
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    hint = proxy_hint(address, like_requests=requests)
    assert found in hint
    assert bool(hint) == bool(found)
    assert "pw" not in hint


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("https://host/a/w.pth", "https://host/a/w.pth"),
        ("https://user:pw@host/a/w.pth", "https://host/a/w.pth"),
        ("https://token@host:8443/w.pth", "https://host:8443/w.pth"),
        ("https://user:p@ss@host/w.pth", "https://host/w.pth"),
        ("https://user:p/ss@host/w.pth", "https://host/w.pth"),
        ("https://user:p@s/s@host/w.pth", "https://host/w.pth"),
        ("https://user:p?ss#@host/w.pth", "https://…"),
        ("https://user:1234/5@host/w.pth", "https://…"),
        ("https://host:8443/w.pth?token=a@b", "https://…"),
        ("https://b.s3.amazonaws.com/w.pth?X-Amz-Signature=00&X-Amz-Date=1", "https://b.s3.amazonaws.com/w.pth"),
        ("https://host/w.pth#access_token=00", "https://host/w.pth"),
        (
            "postgresql+psycopg2://me:secret@db:5432/mlflow?sslmode=require",
            "postgresql+psycopg2://db:5432/mlflow?sslmode=require",
        ),
        ("https://host/models@v2/w.pth", "https://host/models@v2/w.pth"),
        ("http://[::1]:9000/w.pth", "http://[::1]:9000/w.pth"),
        ("http://me:pw@[::1]:9000/w.pth", "http://[::1]:9000/w.pth"),
        ("http://user:secret", "http://…"),
        ("sqlite:////a/b.db", "sqlite:////a/b.db"),
        ("s3://bucket/a/w.pth", "s3://bucket/a/w.pth"),
        ("cannot get 'http://a:b@h/x?t=1', and http://h2/y.", "cannot get 'http://h/x?t=1', and http://h2/y."),
        ("/a/folder/w.pth: no @ address", "/a/folder/w.pth: no @ address"),
    ],
)
def test_user_password_and_query_are_not_shown(text: str, expected: str) -> None:
    assert shown_address(text) == expected


@hypothesis.given(
    password=st.text(st.characters(codec="ascii", exclude_characters=' "<>', min_codepoint=33), min_size=8)
)
def test_no_password_is_shown(password: str) -> None:
    secret = f"{password}Zq7"
    assert shown_address(f"http://user:{secret}@host/w.pth") in ("http://host/w.pth", "http://…")
    assert "Zq7" not in shown_address(f"http://host/w.pth?token={secret}")
