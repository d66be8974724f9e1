"""Blocks on disk and within memory; singular values of blocks against the full decomposition."""

import itertools
import shutil

import catalogue
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from myna.errors import FormatError, InputError
from myna.logits.blocks import Blocks
from myna.logits.matrix import logit_matrix
from myna.logits.singular import (
    double_centred_gram,
    gram,
    of_gram,
    principal_cosines,
    randomised,
)
from myna.teachers.prefixes import Prefixes
from myna.teachers.uri import open_teacher

HISTORIES = Prefixes.of([[], [1], [2, 0], [3, 3, 1], [0, 0, 2]])
FUTURES = Prefixes.of([[0, 1], [3], [0, 2, 1], [0, 2], [1, 1, 1], [2]])


class Counted:
    """A teacher at the level of laws, and how many it gave."""

    def __init__(self, teacher, most=10**9):
        self._teacher, self.most, self.laws_given = teacher, most, 0
        self.spec, self.k = teacher.spec, teacher.k
        self.top_laws, self.complete = teacher.top_laws, teacher.complete

    def laws(self, prefixes):
        self.laws_given += len(prefixes.lengths)
        if self.laws_given > self.most:
            raise KeyboardInterrupt
        return self._teacher.laws(prefixes)


def teacher():
    return open_teacher("zoo:isan?dim=3&symbols=4&horizon=9")


def joined(blocks):
    parts = list(blocks)
    return torch.cat([b.whole for b in parts], 1), torch.cat([b.logits for b in parts], 1)


def test_small_blocks_make_the_whole_matrix():
    matrix = logit_matrix(catalogue.tiny_llama(), HISTORIES, FUTURES)
    whole = matrix.block(range(5), range(6))
    least = Blocks(matrix)._future_bytes
    for memory in (least, 2 * least, 2**30):
        blocks = Blocks(matrix, memory)
        assert len(blocks.ranges) == {least: 4, 2 * least: 2, 2**30: 1}[memory]
        for found, wanted in zip(joined(blocks), (whole.whole, whole.logits), strict=True):
            torch.testing.assert_close(found, wanted, rtol=0, atol=1e-5)
    with pytest.raises(InputError, match="and 10 bytes is the limit"):
        Blocks(matrix, 10)


def test_every_block_is_within_the_memory():
    """Early futures hold the laws that all share, and late ones hardly any."""
    order = torch.randperm(128, generator=torch.Generator().manual_seed(0))
    futures = torch.cartesian_prod(*[torch.arange(2)] * 7)[order]
    network = open_teacher("zoo:isan?dim=3&symbols=2&horizon=10")
    matrix = logit_matrix(network, HISTORIES.take(torch.arange(1)), Prefixes.of(futures.tolist()))
    memory = 600
    ranges = Blocks(matrix, memory).ranges
    assert [f for part in ranges for f in part] == list(range(128))
    sizes = [8 * (len(part) + 3 * 2 * len(matrix.nodes_of(part))) for part in ranges]
    assert max(sizes) <= memory
    together = [a + b for a, b in itertools.pairwise(sizes)]
    assert min(together) > memory  # none could have held the next future


def test_blocks_are_kept_and_a_stopped_pass_goes_on_where_it_was(tmp_path):
    counted = Counted(teacher())
    matrix = logit_matrix(counted, HISTORIES, FUTURES)
    least = Blocks(matrix)._future_bytes
    expected = joined(Blocks(matrix, least))
    needed, counted.laws_given = counted.laws_given, 0
    counted.most = needed // 2
    with pytest.raises(KeyboardInterrupt):
        list(Blocks(matrix, least, tmp_path))
    kept = len(list(tmp_path.glob("*.safetensors")))
    assert 0 < kept < 4
    counted.laws_given, counted.most = 0, needed
    for found, wanted in zip(joined(Blocks(matrix, least, tmp_path)), expected, strict=True):
        assert torch.equal(found, wanted)
    assert counted.laws_given < needed
    counted.most = 0
    joined(Blocks(matrix, least, tmp_path))  # nothing is asked again
    with pytest.raises(KeyboardInterrupt):  # other futures are other blocks
        list(
            Blocks(
                logit_matrix(counted, HISTORIES, HISTORIES.take(torch.tensor([1]))), 2**30, tmp_path
            )
        )
    broken = next(tmp_path.glob("*.safetensors"))
    broken.write_bytes(b"damaged")
    with pytest.raises(FormatError, match="does not read as a block"):
        joined(Blocks(matrix, least, tmp_path))


def test_too_little_disk_is_said_before_starting(tmp_path, monkeypatch):
    counted = Counted(teacher(), most=0)
    matrix = logit_matrix(counted, HISTORIES, FUTURES)
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1000))
    with pytest.raises(InputError, match="has 1000 bytes free"):
        Blocks(matrix, folder=tmp_path)


def test_progress_starts_with_an_estimate_and_ends_at_the_end():
    said = []
    matrix = logit_matrix(teacher(), HISTORIES, FUTURES)
    list(Blocks(matrix, Blocks(matrix)._future_bytes, report=said.append))
    assert [p.done for p in said] == [0, 5, 20, 25, 30]
    assert all(p.pairs == 30 for p in said)
    assert said[0].seconds_left > 0 and said[-1].seconds_left == 0


@example(11, 6, 2, 26)  # a zero that comes out as 1.01e-7
@given(st.integers(2, 12), st.integers(1, 30), st.integers(1, 7), st.integers(0, 10**6))
def test_gram_and_randomised_values_are_those_of_the_full_decomposition(rows, columns, size, seed):
    random = torch.Generator().manual_seed(seed)
    whole = torch.randn((rows, columns), generator=random).double()
    blocks = list(whole.split(size, 1))
    full = torch.zeros(rows, dtype=torch.float64)
    values = torch.linalg.svdvals(whole)
    full[: len(values)] = values
    found = of_gram(gram(blocks))
    # squares halve the digits: of 20,000 matrices zeros were 3e-8 of the largest at most
    torch.testing.assert_close(found.values, full, rtol=1e-7, atol=1e-7 * float(values[0]))
    rank = min(rows, columns)
    sketched = randomised(blocks, rank, random)
    torch.testing.assert_close(sketched.values, values[:rank], rtol=1e-7, atol=1e-7)
    projected = sketched.left @ (sketched.left.T @ whole)
    torch.testing.assert_close(projected, whole, rtol=1e-7, atol=1e-7)
    centred = whole - whole.mean(0) - whole.mean(1, keepdim=True) + whole.mean()
    torch.testing.assert_close(
        double_centred_gram(gram(blocks), whole.sum(1), columns), centred @ centred.T
    )


def test_a_sketch_narrower_than_the_matrix_finds_the_leading_values():
    random = torch.Generator().manual_seed(0)
    left, right = (
        torch.linalg.qr(torch.randn(n, 80, generator=random).double()).Q for n in (90, 400)
    )
    values = 1 / torch.arange(1, 81).double()
    whole = left * values @ right.T
    found = randomised(whole.split(64, 1), 20, random, passes=4)
    torch.testing.assert_close(found.values, values[:20], rtol=1e-3, atol=0)
    cosines = principal_cosines(found.left[:, :10], left[:, :10])
    assert float(cosines.min()) > 0.999
    apart = principal_cosines(left[:, :10], left[:, 10:20])
    assert float(apart.max()) < 1e-12
    with pytest.raises(InputError, match=r"90 rows have ranks 1\.\.90, got 91"):
        randomised(whole.split(64, 1), 91, random)
