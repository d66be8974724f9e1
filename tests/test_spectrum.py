"""Spectra: against full decompositions, exact at known rank, and from the command line."""

import dataclasses
import json

import catalogue
import pytest
import torch

from myna.app import cli
from myna.app.block_spectrum import check_level
from myna.errors import InputError
from myna.logits.blocks import Blocks
from myna.logits.controls import low_rank, shuffled, unigram
from myna.logits.matrix import logit_matrix
from myna.logits.spectrum import angles, study
from myna.logits.strings import from_texts
from myna.spec import Spec, numbered
from myna.teachers.oracle import as_samples
from myna.teachers.prefixes import Prefixes
from myna.teachers.uri import open_teacher


def drawn(count, low, high, tokens, seed):
    random = torch.Generator().manual_seed(seed)
    lengths = torch.randint(low, high + 1, (count,), generator=random).tolist()
    return Prefixes.of([torch.randint(tokens, (n,), generator=random).tolist() for n in lengths])


HISTORIES, FUTURES = drawn(48, 1, 4, 4, 0), drawn(44, 1, 3, 4, 1)


def studied(teacher, histories=HISTORIES, futures=FUTURES, double_centre=False, parts=None):
    matrix = logit_matrix(teacher, histories, futures)
    blocks = Blocks(matrix)
    if parts:
        blocks = Blocks(matrix, blocks._future_bytes * parts)
    return study(blocks, double_centre=double_centre), matrix.block(range(48), range(44))


@pytest.mark.parametrize("double_centre", [False, True])
def test_values_are_those_of_the_whole_matrices(double_centre):
    """However the futures are cut into blocks."""
    teacher = open_teacher("zoo:isan?dim=6&symbols=4&horizon=9")
    found, block = studied(teacher, double_centre=double_centre, parts=7)
    again, _ = studied(teacher, double_centre=double_centre)
    for one, other in zip(found.spectra, again.spectra, strict=True):
        torch.testing.assert_close(
            torch.tensor(one.values), torch.tensor(other.values), rtol=1e-6, atol=1e-6
        )
    ratios = block.whole.exp() / block.whole.exp().mean(0)
    for spectrum, whole in zip(found.spectra, (ratios, block.whole, block.logits), strict=True):
        matrix = whole
        if double_centre:
            matrix = whole - whole.mean(0) - whole.mean(1, keepdim=True) + whole.mean()
        values = torch.linalg.svdvals(matrix)
        torch.testing.assert_close(
            torch.tensor(spectrum.values).double(), values, rtol=1e-5, atol=2e-6
        )
        energy = values.square().cumsum(0) / values.square().sum()
        assert spectrum.rank_99 == int((energy < 0.99).sum()) + 1
        assert (spectrum.rows, spectrum.columns) == whole.shape


def test_sizes_and_truncations_are_those_of_the_parts():
    teacher = catalogue.tiny_llama()
    found, block = studied(teacher, parts=5)
    matrix = logit_matrix(teacher, HISTORIES, FUTURES)
    logits, tokens = block.logits, teacher.spec.num_tokens
    quarter = len(matrix.nodes_of(range(11))) * tokens
    size = next(s for s in found.sizes if s.entries == "centred logits" and s.part == "1/4")
    values = torch.linalg.svdvals(logits[:12, :quarter])
    energy = values.square().cumsum(0) / values.square().sum()
    assert (size.histories, size.futures) == (12, 11)
    assert size.rank_99 == int((energy < 0.99).sum()) + 1
    u, s, v = torch.linalg.svd(logits, full_matrices=False)
    first = torch.linalg.svd(logits[:24], full_matrices=False)
    for cut in found.truncations:
        r = cut.rank
        near = (u[:, :r] * s[:r]) @ v[:r]
        real, other = (m.reshape(48, -1, tokens).log_softmax(2) for m in (logits, near))
        kl = (real.exp() * (real - other)).sum(2).mean()
        assert cut.d_avg == pytest.approx(float(kl), rel=1e-3, abs=1e-7)
        assert cut.laws == 48 * len(matrix.nodes)
        inside = (logits[24:] @ first.Vh[:r].T).square().sum() / logits[24:].square().sum()
        assert cut.fresh == pytest.approx(float(inside), rel=1e-3)
        own = first.S[:r].square().sum() / first.S.square().sum()
        assert cut.own == pytest.approx(float(own), rel=1e-3)
    errors = [cut.d_avg for cut in found.truncations]
    assert len(errors) >= 4 and errors == sorted(errors, reverse=True)


def test_controls_have_the_ranks_that_they_are_made_with():
    spec = Spec(numbered(4), None, 9, "x")
    flat, _ = studied(unigram(spec, FUTURES.tokens))
    for spectrum in flat.spectra:
        assert spectrum.rank_999 == 1
        assert spectrum.values[1] < 1e-6 * spectrum.values[0]
    exact, _ = studied(low_rank(spec, 5, 9, seed=3))
    values = exact.spectra[2].values
    assert values[4] > 1e-2 * values[0] and values[5] < 1e-6 * values[0]
    assert [cut.rank for cut in exact.truncations] == [1, 2, 5]
    assert exact.truncations[-1].d_avg < 1e-12 < exact.truncations[0].d_avg
    assert exact.truncations[-1].fresh == pytest.approx(1, abs=1e-9)


def test_nonsense_futures_of_a_low_rank_model_span_the_same_space():
    teacher = low_rank(Spec(numbered(4), None, 9, "x"), 5, 9, seed=3)
    random = torch.Generator().manual_seed(0)
    nonsense = shuffled(FUTURES, None, random)
    assert torch.equal(nonsense.tokens.sort(1).values, FUTURES.tokens.sort(1).values)
    assert not torch.equal(nonsense.tokens, FUTURES.tokens)
    real, _ = studied(teacher)
    other, _ = studied(teacher, futures=nonsense)
    found = {angle.rank: angle for angle in angles(real, other)}
    assert found[5].near == 5 and found[5].cosines[-1] > 1 - 1e-9
    assert found[5].by_chance == 5 / 48
    with pytest.raises(InputError, match="same histories"):
        angles(real, dataclasses.replace(other, left=other.left[:9]))
    ended = shuffled(Prefixes.of([[0, 1, 2, 3, 4]] * 20), 4, random)
    assert bool((ended.tokens[:, 4] == 4).all()) and len({tuple(r) for r in ended.rows()}) > 5


def test_exponents_of_a_known_power_law_are_found():
    from myna.logits.spectrum import _of_matrix  # noqa: PLC0415

    random = torch.Generator().manual_seed(2)
    left, right = (
        torch.linalg.qr(torch.randn(240, 240, generator=random).double()).Q for _ in "ab"
    )
    power = _of_matrix("x", left * torch.arange(1, 241).double() ** -0.7 @ right.T, False).power
    assert power.exponent == pytest.approx(0.7, abs=1e-9) and (power.first, power.last) == (5, 60)
    assert power.low < power.exponent < power.high
    assert "ranks 5 to 60" in power.how
    few = _of_matrix("x", torch.randn(30, 30, generator=random).double(), False)
    assert few.power is None


def test_what_has_no_spectrum_is_refused():
    with pytest.raises(InputError, match="at least 8 histories and 8 futures, got 3 and 44"):
        study(Blocks(logit_matrix(catalogue.tiny_llama(), drawn(3, 1, 2, 4, 0), FUTURES)))
    copies = open_teacher("zoo:copy?n=3&k=2")
    words = [[a, b, c] for a in (0, 1) for b in (0, 1) for c in (0, 1)]
    matrix = logit_matrix(copies, Prefixes.of(words), Prefixes.of(words), places="none")
    with pytest.raises(InputError, match="has probability zero after history"):
        study(Blocks(matrix))


def run(monkeypatch, capsys, *words):
    monkeypatch.setattr("sys.argv", ["myna", *map(str, words)])
    with pytest.raises(SystemExit) as end:
        cli.main()
    return end.value.code, capsys.readouterr()


SMALL = ("--histories", 24, "--futures", 20, "--tokens", 8)


def test_the_command_prints_every_spectrum_and_draws_a_page(monkeypatch, capsys, tmp_path):
    words = (
        "spectrum",
        "hf:bundled",
        *SMALL,
        "--json",
        "-o",
        tmp_path,
        "--keep",
        tmp_path / "kept",
    )
    code, said = run(monkeypatch, capsys, *words)
    record = json.loads(said.out)
    assert code == 0 and list(record["spectra"]) == [
        "real", "nonsense", "untrained", "unigram", "low rank",
    ]  # fmt: skip
    for one in record["spectra"].values():
        kinds = [spectrum["entries"] for spectrum in one["spectra"]]
        assert kinds == ["probability ratios", "log-probabilities", "centred logits"]
        assert all(len(spectrum["values"]) >= 20 for spectrum in one["spectra"])
    assert record["spectra"]["unigram"]["spectra"][1]["rank_999"] == 1
    assert record["laws"] == 24 * 20 * 8 and 0 < record["laws_shared"] < record["laws"]
    assert [angle["rank"] for angle in record["angles"]] == [1, 2, 5, 10]
    page = (tmp_path / "spectrum.html").read_text()
    assert "real" in page and (tmp_path / "spectrum.png").stat().st_size > 10_000
    assert len(list((tmp_path / "kept").glob("*.safetensors"))) == 5
    again = json.loads(run(monkeypatch, capsys, *words)[1].out)
    assert again["spectra"] == record["spectra"]


def test_text_gives_histories_and_futures(monkeypatch, capsys, tmp_path):
    text = tmp_path / "text.txt"
    text.write_text(
        "two big dogs see the cat.<|endoftext|>" + "the cat sees dogs. " * 3 + "big cats see. " * 9
    )
    words = (
        "spectrum",
        "hf:bundled",
        "--histories",
        12,
        "--futures",
        10,
        "--tokens",
        3,
        "--no-controls",
    )
    code, said = run(monkeypatch, capsys, *words, "--text", text, "--json", "--double-centre")
    record = json.loads(said.out)
    assert code == 0 and list(record["spectra"]) == ["real"]
    assert record["spectra"]["real"]["double_centred"] is True
    found = from_texts([[0, 1, 2, 3, 4, 5], [0, 1, 9]], 1, 2, 2, torch.Generator())
    pieces = sorted(found[0].rows() + found[1].rows())
    assert pieces == [(0, 1), (2, 3), (4, 5)]
    with pytest.raises(InputError, match="have 3 different pieces"):
        from_texts([[0, 1, 2, 3, 4, 5], [0, 1, 9]], 2, 2, 2, torch.Generator())


def test_any_teacher_with_laws_and_a_budget(monkeypatch, capsys):
    words = ("spectrum", "zoo:isan?dim=3&symbols=6&horizon=16", *SMALL, "--no-controls", "--json")
    record = json.loads(run(monkeypatch, capsys, *words)[1].out)
    paid = json.loads(run(monkeypatch, capsys, *words, "--budget", 100_000)[1].out)
    one, other = (r["spectra"]["real"]["spectra"][2]["values"] for r in (record, paid))
    assert one[:3] == pytest.approx(other[:3], rel=1e-6) and one[3] < 1e-6 * one[0]
    assert 0 < paid["queries"] < 100_000
    for more, code, said in (
        (("--budget", 50), 1, "budget"),
        (("--budget", "500tokens"), 1, "tokens"),
        (("--budget", "3requests"), 2, "only endpoints"),
        (("--budget", "many"), 2, "takes a number"),
        (("--text", "nowhere.txt"), 2, "nowhere.txt"),
        (("--tokens", 9), 2, "need a horizon of 18, and it is 16"),
        (("--places", "first"), 2, "places must be"),
        (("--top-k", 9), 2, r"k must lie in 1..6"),
        (("--memory", 1, "--histories", 100, "--futures", 100), 0, ""),
    ):
        found, text = run(monkeypatch, capsys, *words, *more)
        assert found == code and said in text.err
    with pytest.raises(InputError, match="whole next-token laws"):
        check_level(as_samples(open_teacher("zoo:parity?bits=4")))


def test_an_untrained_model_has_the_shape_and_not_the_weights():
    teacher = catalogue.tiny_llama()
    fresh, again, other = (teacher.untrained(seed) for seed in (1, 1, 2))
    assert fresh.spec.same_language(teacher.spec)
    assert len({t.spec.fingerprint for t in (teacher, fresh, other)}) == 3
    root = Prefixes.of([[1, 2]])
    assert torch.equal(fresh.laws(root), again.laws(root))
    assert not torch.equal(fresh.laws(root), other.laws(root))
