"""Hidden widths: exact on transformers of known width, told apart by normalisation, honest elsewhere."""

import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from myna.app import cli
from myna.errors import BudgetExhausted, InputError
from myna.logits.centred import centred
from myna.logits.width import hidden_width, width_of
from myna.spec import Spec
from myna.teachers.ledger import Budget, Ledger
from myna.teachers.transformer import TransformerTeacher
from myna.teachers.uri import open_teacher

TOKENS = 48


def transformer(kind, width, seed, bias=True):
    """Random weights; norms have gains and (LayerNorm, with `bias`) biases as trained ones do."""
    torch.manual_seed(seed)
    if kind == "layer norm":
        config = GPT2Config(
            vocab_size=TOKENS, n_embd=width, n_layer=1, n_head=2, n_positions=32, use_cache=True
        )
        model = GPT2LMHeadModel(config)
    else:
        config = LlamaConfig(
            vocab_size=TOKENS, hidden_size=width, intermediate_size=2 * width, num_hidden_layers=1,
            num_attention_heads=2, num_key_value_heads=1, max_position_embeddings=32,
        )  # fmt: skip
        model = LlamaForCausalLM(config)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "ln_f" in name or name == "model.norm.weight":
                if bias or "weight" in name:
                    weight.add_(torch.randn_like(weight), alpha=0.3)
            elif weight.ndim == 2:
                weight.normal_(0, 0.3)
    spec = Spec(tuple(map(str, range(TOKENS))), None, 20, f"{kind} {width} {seed} {bias}")
    return TransformerTeacher(model.eval(), 0, spec)


@pytest.mark.parametrize("width", [4, 8, 12, 20, 32, 44])
@pytest.mark.parametrize("kind", ["layer norm", "rms norm"])
def test_widths_of_random_transformers_are_exact(kind, width):
    found = hidden_width(Ledger(transformer(kind, width, seed=width)).laws("spectrum"))
    assert found.hidden_width == found.at_least == width
    assert found.mean_removed is (kind == "layer norm")
    assert found.gap > 1000
    assert found.queries == found.rows == TOKENS - 1 + 32


def test_a_layer_norm_without_bias_looks_one_smaller_and_says_so():
    teacher = transformer("layer norm", 12, seed=1, bias=False)
    found = hidden_width(Ledger(teacher).laws("spectrum"))
    assert found.hidden_width == 11 and found.mean_removed is False
    assert "then the width is 12" in found.reason


@pytest.mark.parametrize("width", [48, 64])
def test_a_width_beyond_the_alphabet_is_only_bounded(width):
    found = hidden_width(Ledger(transformer("rms norm", width, seed=2)).laws("spectrum"))
    assert found.hidden_width is None and found.mean_removed is None
    assert found.at_least == TOKENS - 1 and "shows widths below 47" in found.reason


def test_too_few_histories_are_said_to_be_too_few():
    teacher = transformer("rms norm", 20, seed=3)
    found = hidden_width(Ledger(teacher).laws("spectrum"), rows=15)
    assert found.hidden_width is None and "15 histories show widths below 15" in found.reason


@settings(max_examples=30)
@given(st.integers(1, 10), st.integers(0, 10**6), st.floats(-3, 3))
def test_any_constant_added_to_logits_changes_nothing(rank, seed, shift):
    random = torch.Generator().manual_seed(seed)
    left, right = (torch.randn(n, rank, generator=random).double() for n in (40, 16))
    logits = left @ right.T
    laws = (logits + shift * torch.randn(40, 1, generator=random)).log_softmax(1)
    expected = logits - logits.mean(1, keepdim=True)
    torch.testing.assert_close(centred(laws), expected, rtol=0, atol=1e-12)
    assert width_of(centred(laws)).hidden_width == rank


def test_uniform_and_constant_laws_say_nothing_of_a_normalisation():
    uniform = width_of(centred(torch.zeros(10, 5).double().log_softmax(1)))
    assert (uniform.hidden_width, uniform.at_least, uniform.mean_removed) == (None, 0, None)
    assert "uniform" in uniform.reason and uniform.gap == 1
    row = torch.tensor([[0.5, -0.2, 0.1, -0.4]]).double()
    constant = width_of(row.expand(10, 4))
    assert (constant.hidden_width, constant.mean_removed) == (1, None)
    assert "one law" in constant.reason


def test_a_width_under_noise_is_no_bound_beyond_it():
    random = torch.Generator().manual_seed(0)
    left, right, noise = (
        torch.randn(s, generator=random).double() for s in ((71, 8), (8, 40), (71, 40))
    )
    logits = centred((left @ right + 0.05 * noise).log_softmax(1))
    found = width_of(logits)
    assert found.hidden_width is None and 10 < found.gap < 100
    assert found.at_least == 8 and "place 8" in found.reason


def test_laws_with_zeros_and_small_alphabets_are_refused():
    with pytest.raises(InputError, match="gives token 2 probability zero"):
        centred(torch.tensor([[0.5, 0.5, 0.0]]).double().log())
    with pytest.raises(InputError, match="3 tokens, got 33 and 2"):
        hidden_width(Ledger(open_teacher("zoo:parity?bits=4")).laws("spectrum"))
    with pytest.raises(InputError, match="distinct histories were wanted"):
        hidden_width(Ledger(open_teacher("zoo:unigram?symbols=3&horizon=3")).laws("s"), rows=50)


def test_a_budget_stops_it():
    ledger = Ledger(transformer("rms norm", 8, seed=4), Budget(queries=20))
    with pytest.raises(BudgetExhausted):
        hidden_width(ledger.laws("spectrum"))


def test_the_models_that_are_here(shared_data):
    """stories260k has width 64; the LSTMs' alphabets are smaller than their width of 128."""
    for uri, width, least in (
        (f"hf:{shared_data / 'stories260k'}", 64, 64),
        (f"rnn:{shared_data / 'charrnn-shakespeare'}", None, 64),
        (f"rnn:{shared_data / 'charrnn-darwin'}", None, 99),
        ("hf:bundled", None, 23),
    ):
        found = hidden_width(Ledger(open_teacher(uri)).laws("spectrum"))
        assert (found.hidden_width, found.at_least) == (width, least)


def run(monkeypatch, capsys, *words):
    monkeypatch.setattr("sys.argv", ["myna", *map(str, words)])
    with pytest.raises(SystemExit) as end:
        cli.main()
    return end.value.code, capsys.readouterr()


def test_the_command_prints_the_width_with_its_evidence(monkeypatch, capsys, tmp_path):
    words = ("spectrum", "hf:bundled", "--next-token")
    code, said = run(monkeypatch, capsys, *words, "--json", "-o", tmp_path)
    record = json.loads(said.out)
    assert code == 1 and record["hidden_width"] is None and record["at_least"] == 23
    assert len(record["singular_values"]) == 23 and record["queries"] == 55
    assert (tmp_path / "spectrum.png").stat().st_size > 1000
    assert "at least 23" in run(monkeypatch, capsys, *words)[1].out
