"""Text as tools write it: byte order marks, other encodings than UTF-8, and invisible characters in names."""

import codecs
import unicodedata

# The marks of UTF-32 come first: that of UTF-16 is the beginning of theirs.
_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
# Letters and signs of other categories that show nothing either: fillers of Korean, and an empty braille cell.
_BLANKS = "\u115f\u1160\u2800\u3164\uffa0"
# They decide how letters of Persian and of Indian scripts join, so they stay between letters beyond ASCII.
_JOINERS = "\u200c\u200d"


def decode_text(data: bytes) -> str:
    """Decode a text file: by its byte order mark if it begins with one, otherwise as UTF-8.

    UTF-16 and UTF-32 without a mark are recognised if the text begins with ASCII characters.

    Raises:
        UnicodeDecodeError: the bytes are not text in that encoding.
    """
    return data.decode(marked_encoding(data) or _unmarked_encoding(data))


def marked_encoding(data: bytes) -> str | None:
    """Return the encoding that the byte order mark of a file stands for; None if it has no mark."""
    return next((encoding for mark, encoding in _MARKS if data.startswith(mark)), None)


def _unmarked_encoding(data: bytes) -> str:
    # In UTF-16 and UTF-32, each ASCII character has one or three zero bytes, which UTF-8 text never contains.
    return {
        b"\0x\0x": "utf-16-be",
        b"x\0x\0": "utf-16-le",
        b"\0\0\0x": "utf-32-be",
        b"x\0\0\0": "utf-32-le",
    }.get(bytes(byte and ord("x") for byte in data[:4]), "utf-8")


def visible(name: str) -> str:
    """Return a name without the characters that nobody sees, and with plain spaces for all kinds of space."""
    kept = []
    for place, character in enumerate(name):
        category = unicodedata.category(character)
        if character.isspace() or category.startswith("Z"):
            kept.append(" ")
        elif _joins(name, place) or (category not in ("Cc", "Cf", "Cs") and character not in _BLANKS):
            kept.append(character)
    return "".join(kept).strip()


def _joins(name: str, place: int) -> bool:
    around = name[max(0, place - 1) : place], name[place + 1 : place + 2]
    return name[place] in _JOINERS and not any(character.isascii() for character in around)
