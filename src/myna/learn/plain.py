"""Plain strings worth a number of tokens, drawn from the empty prefix.

Strings that stop early leave tokens for others, so they are drawn in rounds: each asks for as many
as would fit if all reached the cut, until one more might not.
"""

from myna.errors import InputError
from myna.lowrank.student import Strings, stacked, strings
from myna.teachers.ledger import SamplesView
from myna.teachers.prefixes import Prefixes


def plain_strings(view: SamplesView, tokens: int, max_tokens: int) -> Strings:
    """Strings of at most `tokens` tokens together; draws 0, 1, 2, ... of the view's stream.

    max_tokens: without a horizon, strings are cut here

    Raises:
        BudgetExhausted: where the ledger allows fewer tokens.
        InputError: fewer than two strings.
    """
    if tokens < 1 or max_tokens < 1:
        raise InputError(f"tokens and their cut must be at least 1, got {tokens} and {max_tokens}")
    length = max_tokens if view.spec.horizon is None else view.spec.horizon
    text, left = strings([]), tokens
    while left >= length:
        asked = left // length
        drawn = view.complete(
            Prefixes.of([[]]), asked, max_tokens=length, first_draw=len(text.lengths)
        )
        text = stacked(text, Strings(drawn.tokens[0], drawn.lengths[0]))
        if not int(drawn.lengths.sum()):
            break  # a language of empty strings would never spend them
        left = tokens - int(text.lengths.sum())
    if len(text.lengths) < 2:
        raise InputError(
            f"{tokens} tokens allow {len(text.lengths)} strings of {length}; 2 are needed"
        )
    return text


def not_empty(text: Strings) -> Strings:
    """Without its empty strings, which say nothing of any token."""
    some = text.lengths > 0
    return Strings(text.tokens[some], text.lengths[some])
