"""What a language model is a distribution over.

A language model P is a distribution over token sequences x = x_1 ... x_T with
tokens in {0, ..., O-1}. A sequence ends in one of two ways:

- at the *horizon* H, when T = H (every sequence has at most H tokens), or
- at the *stop token*, an ordinary token that may only come last.

With both, whichever comes first ends it; with neither, P is a process, defined by
its next-token laws alone.
"""

import dataclasses
import hashlib
from collections.abc import Iterable

import torch

from myna.errors import InputError


@dataclasses.dataclass(frozen=True)
class Spec:
    """The immutable description of a language model that anyone may see.

    alphabet: the name of each token, so O = len(alphabet)
    stop: the token that ends a sequence, or None
    horizon: H, the largest number of tokens (the stop token counts), or None
    fingerprint: a hexadecimal digest that changes when the model changes
    """

    alphabet: tuple[str, ...]
    stop: int | None
    horizon: int | None
    fingerprint: str

    def __post_init__(self) -> None:
        """Refuse a description that no distribution can have."""
        if not self.alphabet:
            raise InputError("a language needs at least one token; the alphabet is empty")
        if len(set(self.alphabet)) != len(self.alphabet):
            raise InputError("token names must differ; the alphabet repeats a name")
        if self.stop is not None and not 0 <= self.stop < len(self.alphabet):
            raise InputError(
                f"the stop token must lie in 0..{len(self.alphabet) - 1}, got {self.stop}"
            )
        if self.horizon is not None and self.horizon < 1:
            raise InputError(f"the horizon must be at least 1 token, got {self.horizon}")

    @property
    def num_tokens(self) -> int:
        """O, the size of the alphabet."""
        return len(self.alphabet)

    @property
    def ends(self) -> bool:
        """Whether every sequence is finite by declaration (a horizon or a stop token)."""
        return self.horizon is not None or self.stop is not None

    def named(self, tokens: Iterable[int]) -> str:
        """A sequence by the names of its tokens."""
        return " ".join(self.alphabet[token] for token in tokens) or "(empty)"

    def same_language(self, other: "Spec") -> bool:
        """Whether both are distributions over the same sequences."""
        return (self.alphabet, self.stop, self.horizon) == (
            other.alphabet,
            other.stop,
            other.horizon,
        )


def fingerprint(kind: str, *parts: object) -> str:
    """SHA-256 over a kind and its parameters; tensors by dtype, shape and bytes."""
    digest = hashlib.sha256(kind.encode())
    for part in parts:
        digest.update(b"\x00")
        if isinstance(part, torch.Tensor):
            plain = part.detach().cpu().contiguous()
            digest.update(f"{plain.dtype}{tuple(plain.shape)}".encode())
            digest.update(plain.numpy().tobytes())
        else:
            digest.update(repr(part).encode())
    return digest.hexdigest()


def numbered(count: int, stop: bool = False) -> tuple[str, ...]:
    """Token names "0", "1", ...; with `stop`, the last one is "<stop>"."""
    names: Iterable[str] = (str(i) for i in range(count - stop))
    return (*names, "<stop>") if stop else tuple(names)
