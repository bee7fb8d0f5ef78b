"""Addresses are shown without what may be a secret."""

import hypothesis
import hypothesis.strategies as st
import pytest

from data_shards.addresses import shown_address as shown


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
    assert shown(text) == expected


@hypothesis.given(
    password=st.text(st.characters(codec="ascii", exclude_characters=' "<>', min_codepoint=33), min_size=8)
)
def test_no_password_is_shown(password: str) -> None:
    secret = f"{password}Zq7"
    assert shown(f"http://user:{secret}@host/w.pth") in ("http://host/w.pth", "http://…")
    assert "Zq7" not in shown(f"http://host/w.pth?token={secret}")
