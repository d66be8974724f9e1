"""Names of tokens that can stand in a line of text, all different.

A blank is written as sentencepiece does (U+2581), other blanks and unprintable characters
by number (<U+000A>); a name that occurs again gets its token's number behind it.
"""

from collections.abc import Sequence


def visible_names(raw: Sequence[str | None], size: int) -> tuple[str, ...]:
    """`size` names; a token without one is named by its number."""
    names: dict[str, None] = {}
    for token in range(size):
        own = raw[token] if token < len(raw) else None
        name = _visible(own) if own else f"<{token}>"
        while name in names:
            name = f"{name}<{token}>"
        names[name] = None
    return tuple(names)


def _visible(name: str) -> str:
    shown = name.replace(" ", "\u2581")
    return "".join(c if c.isprintable() and not c.isspace() else f"<U+{ord(c):04X}>" for c in shown)
