"""Embeddings keep the distances of logit rows; what is alike for the model is near."""

import json

import naive
import pytest
import torch

from myna.app.block_spectrum import page
from myna.app.cli import main
from myna.app.history_map import history_map
from myna.errors import InputError
from myna.logits.blocks import Blocks
from myna.logits.embedding import embed, neighbours, retrieval
from myna.logits.matrix import logit_matrix
from myna.logits.spectrum import study
from myna.teachers.prefixes import Prefixes
from myna.teachers.uri import open_teacher


def test_all_coordinates_keep_distances(generator):
    rows = torch.randn(9, 30, generator=generator).double()
    found = embed(rows @ rows.mT, 9)
    torch.testing.assert_close(
        torch.cdist(found.coordinates, found.coordinates), torch.cdist(rows, rows)
    )
    assert abs(found.share - 1) < 1e-12
    energy = torch.linalg.svdvals(rows - rows.mean(0)).square()
    few = embed(rows @ rows.mT, 2)
    assert abs(few.share - float(energy[:2].sum() / energy.sum())) < 1e-12
    torch.testing.assert_close(few.coordinates, found.coordinates[:, :2])


def test_neighbours_are_by_angle_and_never_oneself():
    places = torch.tensor([[1.0, 0], [5, 0.1], [0, 2], [0.1, 1], [-1, 0]]).double()
    assert neighbours(places, 1)[:, 0].tolist() == [1, 0, 3, 2, 2]
    groups = torch.tensor([0, 0, 1, 1, 2])
    assert retrieval(places, groups, 1) == pytest.approx(0.8)
    assert retrieval(places, torch.arange(5), 4) == 0


def test_histories_of_one_state_are_nearest():
    """After a parity's secret bits only their parity matters."""
    teacher = naive.Opaque(open_teacher("zoo:parity?bits=6&seed=7"), "laws")
    rows = [[int(c) for c in f"{i:04b}"] for i in range(16)]
    histories = Prefixes.of(rows)
    futures = Prefixes.of([[a, b, c] for a in (0, 1) for b in (0, 1) for c in (0, 1)])
    found = study(Blocks(logit_matrix(teacher, histories, futures)))
    assert found.embedding is not None and found.embedding.share > 1 - 1e-9
    label = teacher.laws(Prefixes.of([[*row, 0, 0] for row in rows]))[:, 0] > -0.7
    assert len(label.unique()) == 2
    near = neighbours(found.embedding.coordinates[:, :1], 7)
    assert bool((label[near] == label[:, None]).all())
    points = history_map(teacher.spec, histories, found.embedding)
    assert points[3]["text"] == "0011" and len(points[3]["nearest"]) == 3


@pytest.mark.parametrize("power", [0.0, 0.5, 1.0])
def test_directions_beyond_the_rank_have_no_coordinates(power):
    rows = torch.randn((10, 3), generator=torch.Generator().manual_seed(0)).double()
    found = embed(rows @ rows.T, 10, power).coordinates.norm(dim=0)
    assert bool((found[:3] > 0.1).all()) and not bool(found[3:].any())


def test_impossible_sizes_are_refused():
    with pytest.raises(InputError, match=r"1\.\.3"):
        embed(torch.eye(3).double(), 4)
    with pytest.raises(InputError, match="neighbours"):
        neighbours(torch.eye(3).double(), 3)


def test_the_command_shows_the_map(monkeypatch, capsys, tmp_path):
    words = ["spectrum", "zoo:isan?dim=3&symbols=6&horizon=16", "--histories", "12"]
    words += ["--futures", "10", "--tokens", "3", "-o", str(tmp_path), "--json", "--no-controls"]
    monkeypatch.setattr("sys.argv", ["myna", *words])
    with pytest.raises(SystemExit) as done:
        main()
    assert done.value.code == 0
    record = json.loads(capsys.readouterr().out)
    assert len(record["map"]) == 12 and record["map_energy"] > 0.9
    assert all(i not in point["nearest"] for i, point in enumerate(record["map"]))
    assert "point at one" in page(record).to_json()
    assert "point at one" in (tmp_path / "spectrum.html").read_text()
