"""Repeat after me: how near the identity real models and the copy model are.

    python bench/copytest.py

64 words of 4 tokens that the model itself says after the opening. For each: the chance of
repeating, how often the word said is the likeliest, the rank of the block, and the bound on
the mean total variation of copies of rank 8, 16, 32.
"""

import altair as alt
from results import FOLDER, need_shared, save

from myna.app.copytest_command import _parts
from myna.app.picture import write_picture
from myna.audit.copy_test import copy_test
from myna.teachers.ledger import Ledger
from myna.teachers.uri import open_teacher

WORDS, LENGTH = 64, 4
RANKS = (8, 16, 32)


def main() -> None:
    shared = need_shared()
    stories = f"hf:{shared / 'stories260k'}?horizon=64&device=cpu"
    quoted = 'Tom said, "{}." Lily said, "{}'
    cases = [
        ("copy model", "zoo:copy?n=4&k=4", None),
        ("stories260k", stories, None),
        ("stories260k, a dialogue", stories, quoted),
        ("charrnn-shakespeare", f"rnn:{shared / 'charrnn-shakespeare'}", None),
        ("charrnn-darwin", f"rnn:{shared / 'charrnn-darwin'}", None),
        ("bundled transformer", "hf:bundled?horizon=32&device=cpu", "{}{}"),
    ]
    rows, values = [], []
    for name, uri, template in cases:
        teacher = open_teacher(uri)
        opening, between = _parts(uri, teacher.spec, template)
        view = Ledger(teacher).laws("copytest")
        length = 12 if uri.startswith("hf:bundled") else LENGTH  # it says few words of 4
        found = copy_test(view, WORDS, length, opening=opening, between=between)
        rows.append(
            {
                "model": name,
                "words": WORDS,
                "length": length,
                "rank": found.rank,
                "energy_90": found.energy_90,
                "repeated": found.repeated,
                "chosen": found.chosen,
                "first": found.first,
                "identity_distance": found.identity_distance,
                "least_variation": {r: found.least_variation(r) for r in RANKS},
                "queries": found.queries,
            }
        )
        print(rows[-1], flush=True)
        values += [
            {"model": name, "rank": r + 1, "value": v}
            for r, v in enumerate(found.singular_values)
            if v > 1e-9
        ]
    chart = (
        alt.Chart(alt.Data(values=values), width=460, height=300)
        .mark_line()
        .encode(
            x=alt.X("rank:Q"),
            y=alt.Y("value:Q", scale=alt.Scale(type="log"), title="singular value of the block"),
            color=alt.Color("model:N", sort=None, scale=alt.Scale(scheme="tableau10")),
        )
    )
    write_picture(
        alt.vconcat(chart, title=f"{WORDS} words, said and said again"), FOLDER, "copytest"
    )
    save("copytest", {"runs": rows})


if __name__ == "__main__":
    main()
