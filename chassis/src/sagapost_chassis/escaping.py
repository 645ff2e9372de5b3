"""Makes text from outside harmless on a terminal; it must not know where the text comes from or how it is printed.

A terminal acts on control characters (ESC begins colours, links and titles; CSI is also the one character U+009B), and bidirectional,
zero-width and other invisible characters make a line look like another one. Each of them becomes an escape, as Python writes it.
"""

import unicodedata
from typing import Final

_NOT_SHOWN: Final = frozenset({"Cc", "Cf", "Co", "Cn", "Cs", "Zl", "Zp"})
# shown as nothing, although their category is that of a letter or a mark: Default_Ignorable_Code_Point of the Unicode Character Database
_INVISIBLE: Final = frozenset(
    {
        *(0x034F, 0x115F, 0x1160, 0x17B4, 0x17B5, 0x180B, 0x180C, 0x180D, 0x180F, 0x3164, 0xFFA0),
        *range(0xFE00, 0xFE10),
        *range(0xE0100, 0xE01F0),
    }
)
_LINE_END: Final = "\n"


def line(text: str) -> str:
    r"""Return the text as one line; a line end in it is shown as \n."""
    return text if text.isascii() and text.isprintable() else "".join(_escaped(sign) if _acts(sign) else sign for sign in text)


def block(text: str) -> str:
    """Return the text with its line ends, every line harmless."""
    return _LINE_END.join(line(one) for one in text.split(_LINE_END))


def document(text: str) -> str:
    r"""Return a JSON document with the same value; what a terminal would act on in its strings is written as \u and four digits."""
    if text.isascii() and text.replace(_LINE_END, "").isprintable():
        return text
    return "".join(_json(sign) if sign != _LINE_END and _acts(sign) else sign for sign in text)


def _acts(sign: str) -> bool:
    return unicodedata.category(sign) in _NOT_SHOWN or ord(sign) in _INVISIBLE


def _escaped(sign: str) -> str:
    return sign.encode("unicode_escape", "surrogatepass").decode("ascii")


def _json(sign: str) -> str:
    units = sign.encode("utf-16-be", "surrogatepass")
    return "".join(f"\\u{units[at : at + 2].hex()}" for at in range(0, len(units), 2))
