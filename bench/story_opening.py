"""The restricted stories260k that benchmarks copy: the openings of stories.

Its sub-alphabet is the tokens that are most frequent among the first 12 tokens of 2,000
stories, the most frequent first: "a" "," "Once" "upon" "time" "was" "there" "little" "l"
"ir" "g" "b" "o" "y" "named" "One", all words and the letter pieces "g" and "b" with the
blank before them.
"""

import torch
from results import need_shared

from myna.teachers.oracle import Samples
from myna.teachers.uri import open_teacher

HORIZON = 12
TOKENS = (261, 432, 403, 407, 378, 286, 383, 376, 421, 315, 298, 268, 414, 422, 395, 385)


def whole(horizon: int = HORIZON, dtype: str = "float32") -> str:
    """The URI of stories260k over its whole alphabet."""
    return f"hf:{need_shared()}/stories260k?horizon={horizon}&dtype={dtype}&device=cpu"


def opening(size: int = len(TOKENS), horizon: int = HORIZON, dtype: str = "float32") -> Samples:
    """stories260k over its `size` most frequent opening tokens."""
    only = ",".join(f"%23{token}" for token in TOKENS[:size])
    return open_teacher(f"{whole(horizon, dtype)}&only={only}")


def main() -> None:
    """Count again, and show some openings."""
    teacher = open_teacher(whole())
    drawn = teacher.sample(2000, torch.Generator().manual_seed(0)).tokens  # pyright: ignore
    counts = torch.bincount(drawn[drawn >= 0], minlength=teacher.spec.num_tokens)
    found = counts.argsort(descending=True, stable=True)[: len(TOKENS)].tolist()
    print(found, tuple(found) == TOKENS)
    small = opening()
    for row in small.sample(8, torch.Generator().manual_seed(1)).tokens.tolist():  # pyright: ignore
        print("".join(small.spec.alphabet[token] for token in row))


if __name__ == "__main__":
    main()
