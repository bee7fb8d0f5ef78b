import codecs

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_shards.building.text_files import decode_text, visible


@pytest.mark.parametrize(
    ("mark", "encoding"),
    [
        (b"", "utf-8"),
        (codecs.BOM_UTF8, "utf-8"),
        (codecs.BOM_UTF16_LE, "utf-16-le"),
        (codecs.BOM_UTF16_BE, "utf-16-be"),
        (codecs.BOM_UTF32_LE, "utf-32-le"),
        (codecs.BOM_UTF32_BE, "utf-32-be"),
        (b"", "utf-16-le"),
        (b"", "utf-16-be"),
        (b"", "utf-32-le"),
        (b"", "utf-32-be"),
    ],
)
def test_text_is_read_in_the_encoding_of_its_mark_or_its_zero_bytes(mark: bytes, encoding: str) -> None:
    assert decode_text(mark + '{"name": "Zelle 细胞"}'.encode(encoding)) == '{"name": "Zelle 细胞"}'


def test_bytes_that_are_no_text_are_refused() -> None:
    for data in ("细胞".encode("gbk"), b"\xff\xfe\x00\xd8", b"\x89PNG\r\n"):
        with pytest.raises(UnicodeDecodeError):
            decode_text(data)


@pytest.mark.parametrize(
    ("name", "seen"),
    [
        ("cell", "cell"),
        ("\ufeffcell", "cell"),
        ("ce\u200bll\u2060", "cell"),
        ("\u00a0cell\u3000", "cell"),
        ("traffic\u00a0light", "traffic light"),
        ("traffic\tlight\r\n", "traffic light"),
        ("cell\x00\x07", "cell"),
        ("ce\u00adll", "cell"),  # a soft hyphen
        ("\u202ecell\u202c", "cell"),  # writing from right to left
        ("cell\u200d", "cell"),
        ("ce\u200dll", "cell"),
        ("می\u200cخواهم", "می\u200cخواهم"),  # the joiner changes how letters look
        ("\ud800cell", "cell"),  # half a character
        ("细胞", "细胞"),
        ("\u200b \u2800\u3164", ""),
    ],
)
def test_a_name_keeps_what_can_be_seen(name: str, seen: str) -> None:
    assert visible(name) == seen


@given(st.text())
def test_a_visible_name_stays_as_it_is(name: str) -> None:
    assert visible(visible(name)) == visible(name)
