"""Names of files from a manifest: directly in their folder, on any system."""

import pytest

from data_shards.format.plain_name import is_plain_name

_BAD_NAMES = (
    *("", ".", "..", "../x.tar", "a/b.tar", "/etc/x.tar", "..\\x.tar", "C:x.tar", "C:\\x.tar", "x\0.tar", "x\n.tar"),
    *("x\x7f.tar", "NUL", "con.tar", "Com1.index.npz", "x.tar.", "x ", ".transfer.lock", "\u202ex.tar", "x" * 256),
)


@pytest.mark.parametrize("name", [*_BAD_NAMES, None, 7, ["x"]])
def test_a_name_that_could_leave_its_folder_is_not_plain(name: object) -> None:
    assert not is_plain_name(name)


@pytest.mark.parametrize(
    "name", ["train-000000.tar", "Bilder mit Ö.tar", "console.tar", "写真-000001.index.npz", "a..b"]
)
def test_ordinary_names_are_plain(name: str) -> None:
    assert is_plain_name(name)
