"""Options that several commands share."""

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

SAMPLED_TOKENS = 1_000_000  # that a command with access to samples spends unless told

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]
MOST_SEED = 2**63 - 1  # that a generator takes
Seed = Annotated[int, typer.Option(min=0, max=MOST_SEED, help="Seed of every random choice.")]
MaxTokens = Annotated[int | None, typer.Option(min=1, help="Cut strings at this many tokens.")]
TeacherName = Annotated[
    str,
    typer.Argument(
        metavar="TEACHER",
        help="zoo:NAME?.., pautomac:FILE, hmmer3:FILE, hmm:FILE.npz?horizon=N, student:FOLDER, "
        "hf:FOLDER, rnn:FOLDER, replay:LEDGER, openai:MODEL?base_url=http://..",
    ),
]
Yes = Annotated[bool, typer.Option("--yes", help="Endpoints: spend without asking first.")]
LedgerPath = Annotated[
    Path | None,
    typer.Option(
        "--ledger",
        help="Keep every answer and what it cost in this file: what it holds is not asked again, "
        "and --budget limits all that this command has spent in it.",
    ),
]
ModelName = Annotated[str, typer.Argument(metavar="MODEL", help="A saved copy, or a teacher.")]


class Access(Enum):
    """What a command may ask of a teacher."""

    LAWS = "laws"
    SAMPLES = "samples"
