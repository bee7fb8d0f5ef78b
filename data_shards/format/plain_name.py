"""Names of files that someone else wrote down, such as those in a manifest."""

import re

# Devices of Windows, with any ending and in any case: writing to `nul.tar` there writes to no file.
_DEVICES = re.compile(r"(con|prn|aux|nul|com[0-9¹²³]|lpt[0-9¹²³])\s*(\..*)?", re.IGNORECASE)
_LONGEST_BYTES = 255


def is_plain_name(name: object) -> bool:
    """Return True if a value is the name of a file directly in its folder, on any system, and nothing more.

    Separators, `..`, absolute paths, drive letters, control characters and names of devices are refused, and so is a
    leading point: hidden files are locks and parts of unfinished files.
    """
    if not isinstance(name, str) or not name or name.startswith(".") or name[-1] in " .":
        return False
    if not name.isprintable() or any(character in name for character in '/\\:*?"<>|'):
        return False
    return len(name.encode(errors="replace")) <= _LONGEST_BYTES and _DEVICES.fullmatch(name) is None
