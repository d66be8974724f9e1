"""Laws recovered through biases: equal to the true ones, at the stated number of requests."""

import functools
import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_width import TOKENS, transformer
from typer.testing import CliRunner

from myna.app.cli import app
from myna.errors import InputError
from myna.logits.biased_api import (
    BiasedApi,
    by_argmax,
    by_group_sum,
    by_reference,
    by_top_one,
    requests_by_argmax,
    requests_by_reference,
)
from myna.logits.centred import centred
from myna.logits.width import _histories, hidden_width, width_of
from myna.spec import Spec, numbered
from myna.teachers.ledger import Ledger
from myna.teachers.prefixes import Prefixes

EMPTY = Prefixes.of([[]])


class OneLaw:
    """A model with one law."""

    def __init__(self, logits):
        self._law = torch.tensor(logits, dtype=torch.float64).log_softmax(0)
        self.spec = Spec(numbered(len(logits)), None, None, "00")

    def laws(self, prefixes):
        return self._law.expand(len(prefixes.lengths), -1)


LOGITS = st.lists(st.floats(-15, 15), min_size=3, max_size=9)


@settings(max_examples=60, deadline=None)
@given(LOGITS, st.integers(2, 9))
def test_top_k_with_a_reference_is_exact(logits, k):
    model = OneLaw(logits)
    api = BiasedApi(model, min(k, len(logits)))
    torch.testing.assert_close(by_reference(api, EMPTY), model.laws(EMPTY), atol=1e-10, rtol=0)
    least = requests_by_reference(len(logits), api.k)
    assert least <= api.requests <= 4 * least  # each doubling of a bias asks once more


@settings(max_examples=40, deadline=None)
@given(LOGITS)
def test_the_one_token_shown_is_enough(logits):
    model = OneLaw(logits)
    api = BiasedApi(model, 1)
    torch.testing.assert_close(by_top_one(api, EMPTY), model.laws(EMPTY), atol=1e-7, rtol=0)


@settings(max_examples=30, deadline=None)
@given(LOGITS, st.sampled_from([1e-2, 1e-5]))
def test_the_most_likely_token_alone_gives_logits_to_a_tolerance(logits, tolerance):
    model = OneLaw(logits)
    api = BiasedApi(model, 0)
    found, true = by_argmax(api, EMPTY, tolerance), model.laws(EMPTY)
    gaps = (found - found.max()) - (true - true.max())
    assert float(gaps.abs().max()) <= tolerance
    assert api.requests == requests_by_argmax(len(logits), tolerance)


@pytest.mark.parametrize(("read", "k"), [(by_reference, 2), (by_top_one, 1), (by_argmax, 0)])
def test_every_reader_uses_all_the_bias_there_is(read, k):
    near, far = OneLaw([0.0, -1.0, -127.0]), OneLaw([0.0, -1.0, -150.0])
    found = centred(read(BiasedApi(near, k), EMPTY))
    torch.testing.assert_close(found, centred(near.laws(EMPTY)), atol=1e-6, rtol=0)
    with pytest.raises(InputError, match="a bias of 128 nats does not bring"):
        read(BiasedApi(far, k), EMPTY)


def test_without_a_reference_digits_are_lost_where_the_group_takes_all_mass():
    model = OneLaw([5.0, 4.0, 1.0, 0.0, -2.0, -3.0])
    errors = {}
    for strength in (12.0, 40.0):
        found = by_group_sum(BiasedApi(model, 3), EMPTY, strength)
        errors[strength] = float((found - model.laws(EMPTY)).abs().max())
    assert errors[12.0] < 1e-6 and not errors[40.0] < 1e-2
    exact = by_reference(BiasedApi(model, 3), EMPTY)
    assert float((exact - model.laws(EMPTY)).abs().max()) < 1e-12


def test_what_an_api_cannot_show_is_said():
    with pytest.raises(InputError, match="top k of 2 or more"):
        by_reference(BiasedApi(OneLaw([0.0, 1.0]), 1), EMPTY)
    zero = OneLaw([0.0, 1.0, -float("inf")])
    with pytest.raises(InputError, match="does not bring every token"):
        by_reference(BiasedApi(zero, 2), EMPTY)
    with pytest.raises(InputError, match="does not bring token 2 up"):
        by_top_one(BiasedApi(zero, 1), EMPTY)
    with pytest.raises(InputError, match="does not bring token 2 up"):
        by_argmax(BiasedApi(zero, 0), EMPTY)
    with pytest.raises(InputError, match="k = 0"):
        by_top_one(BiasedApi(zero, 0), EMPTY)
    with pytest.raises(InputError, match="must be positive"):
        by_argmax(BiasedApi(zero, 0), EMPTY, 0.0)
    with pytest.raises(InputError, match=r"shows 0\.\.3 tokens"):
        BiasedApi(zero, 4)


@pytest.mark.parametrize("kind", ["layer norm", "rms norm"])
@pytest.mark.parametrize(
    ("read", "k", "each"),
    [(by_reference, 5, 12), (by_top_one, 1, None), (by_argmax, 0, 1 + 47 * 27)],
)
def test_widths_through_each_api(kind, read, k, each):
    teacher = transformer(kind, 8, seed=8)
    view = Ledger(teacher).laws("width")
    api = BiasedApi(view, k)
    found = hidden_width(view, 60, lambda prefixes: read(api, prefixes))
    assert found.hidden_width == 8 and found.tokens == TOKENS
    assert each is None or 60 * each <= api.requests < 2 * 60 * each
    assert view.spent().next_token_queries == 60  # the laws behind the API, asked once


def test_the_command_through_an_api():
    asked = ["spectrum", "hf:bundled?horizon=16", "--next-token", "--histories", "20"]
    run = CliRunner().invoke(app, [*asked, "--api", "top-k", "--top-k", "6", "--json"])
    told = json.loads(run.stdout)
    assert told["api"] == "top-k" and told["requests"] >= 20 * requests_by_reference(24, 6)
    assert told["hidden_width"] is None and told["at_least"] == 20
    none = CliRunner().invoke(app, [*asked, "--api", "samples"])
    assert isinstance(none.exception, InputError) and "draws of every law" in str(none.exception)


@pytest.mark.parametrize("width", [4, 8, 12, 20, 32, 44])
@pytest.mark.parametrize("kind", ["layer norm", "rms norm"])
def test_widths_of_random_transformers_are_exact_through_every_api(kind, width):
    view = Ledger(transformer(kind, width, seed=width)).laws("width")
    prefixes = _histories(view, view.spec.num_tokens + 31)
    for road, shown in (
        (by_reference, 5),
        (by_top_one, 1),
        (functools.partial(by_argmax, tolerance=1e-6), 0),
    ):
        found = width_of(centred(road(BiasedApi(view, shown), prefixes)))
        assert found.hidden_width == width
        assert found.mean_removed is (kind == "layer norm")
