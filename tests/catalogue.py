"""Every kind of teacher and student, small, for the contract suites."""

import functools

import torch
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from myna.learn.exact import learn_exact
from myna.learn.networks import Kind, NetworkSettings, learn_strings
from myna.learn.report import ExactSettings, Structure
from myna.learn.surrogate import SurrogateSettings, fit_surrogate
from myna.learn.wide import WideSettings, learn_wide
from myna.logits.provable import ProvableSettings, learn_provably
from myna.lowrank.basis_sketch import basis_sketch, sampled_coefficients
from myna.lowrank.hidden import hidden_form
from myna.lowrank.model import LowRankModel
from myna.lowrank.projected import ProjectedModel
from myna.lowrank.region import Hull
from myna.lowrank.step import Step
from myna.spec import Spec, numbered
from myna.teachers.compiled import CompiledModel
from myna.teachers.copies import CopyTeacher
from myna.teachers.function import FunctionTeacher
from myna.teachers.ledger import Ledger
from myna.teachers.prefix_state import PrefixState
from myna.teachers.restricted import restrict
from myna.teachers.transformer import TransformerTeacher
from myna.teachers.uri import open_teacher

ZOO = [
    "zoo:parity?bits=4&seed=3",
    "zoo:hmm?states=3&symbols=3&horizon=5",
    "zoo:hmm?states=3&symbols=3&horizon=5&varying=true&seed=2",
    "zoo:mixture?components=2&states=2&symbols=3&horizon=5",
    "zoo:permutation?states=3&symbols=3&horizon=5",
    "zoo:registers?k=2&stop=0.3",
    "zoo:copy?n=3&k=2",
    "zoo:labels?states=4&length=3",
    "zoo:unigram?symbols=3&horizon=4",
    "zoo:markov?symbols=3&horizon=4",
    "zoo:logit2?length=5",
    "zoo:isan?dim=2&symbols=3&horizon=4",
]


def function_teacher(horizon=4):
    """Laws that depend on the whole prefix, with a stop and a horizon."""

    def law(prefix):
        ones = sum(1 for token in prefix if token == 1)
        weights = [1.0, 1.0 + ones % 2, 0.5]
        return [w / sum(weights) for w in weights]

    return FunctionTeacher(law, ("a", "b", "<stop>"), stop=2, horizon=horizon)


def learned(teacher, **settings):
    ledger = Ledger(teacher)
    return learn_exact(ledger, ExactSettings(**settings), torch.Generator().manual_seed(0))


def signed_model():
    """A model whose raw laws have a negative entry: part of Q's definition."""
    laws = torch.tensor([[0.7, 0.3], [0.1, 0.9]], dtype=torch.float64)
    change = torch.zeros((2, 2, 2), dtype=torch.float64)
    change[:, 0] = torch.tensor([1.6, -0.6], dtype=torch.float64)
    change[:, 1] = torch.tensor([-0.5, 1.5], dtype=torch.float64)
    spec = Spec(numbered(2), None, 4, "unset")
    return LowRankModel.of(spec, torch.tensor([1.5, -0.5]).double(), (Step(laws, change),))


def emits_as_it_moves(seed, states, tokens):
    """Laws of the next token and state together: rarely those of a hidden Markov model as small."""
    random = torch.Generator().manual_seed(seed)
    joint = torch.rand((states, tokens, states), dtype=torch.float64, generator=random)
    joint /= joint.sum((1, 2), keepdim=True)
    laws = joint.sum(2)
    first = torch.full((states,), 1 / states, dtype=torch.float64)
    spec = Spec(numbered(tokens), None, 6, "unset")
    return LowRankModel.of(spec, first, (Step(laws, joint / laws[:, :, None]),))


def projected(copy):
    """A copy kept at two cuts within hulls so narrow that nearly every row is moved."""
    generator = torch.Generator().manual_seed(5)
    points = sampled_coefficients(copy, 6, copy.spec.horizon, generator)
    regions = tuple(
        Hull(rows, basis_sketch(copy, t, 8, 3, generator), margin=0.0) if t in (1, 3) else None
        for t, rows in enumerate(points)
    )
    return ProjectedModel.of(copy, regions)


def students():
    """Name and student of each kind, over finite languages."""
    found = {
        f"copy of {uri}": learned(open_teacher(uri)).student
        for uri in ZOO
        if "registers" not in uri
    }
    found["copy of a function"] = learned(function_teacher()).student
    found["signed"] = signed_model()
    stationary = learned(open_teacher(ZOO[1]), structure=Structure.STATIONARY).student
    form = hidden_form(stationary, torch.Generator().manual_seed(0))
    assert form.model is not None, form.reason
    found["hidden form"] = form.model
    for name in (
        f"copy of {ZOO[0]}",
        f"copy of {ZOO[1]}",
        "copy of a function",
        "signed",
        "hidden form",
    ):
        found[f"{name}, compiled"] = CompiledModel(found[name])
    found["projected"] = projected(found[f"copy of {ZOO[1]}"])
    found["hmm"] = open_teacher(ZOO[1])
    wide = WideSettings(strings=20, max_tokens=3, fresh=5)
    found["mixed"] = learn_wide(
        Ledger(open_teacher(ZOO[1])), wide, torch.Generator().manual_seed(0)
    ).student
    surrogate = SurrogateSettings(states=4, laws=1000, epochs=2)
    found["surrogate"] = fit_surrogate(
        Ledger(open_teacher(ZOO[2])), surrogate, torch.Generator().manual_seed(0)
    ).student
    found["isan"] = open_teacher("zoo:isan?dim=3&symbols=3&horizon=5").student
    found["isan, stationary"] = open_teacher(
        "zoo:isan?dim=2&symbols=4&horizon=5&varying=false"
    ).student
    for kind in Kind:
        settings = NetworkSettings(kind=kind, parameters=700, epochs=1)
        chain = open_teacher(ZOO[9])
        found[f"{kind.value} network"] = learn_strings(
            Ledger(chain), 400, settings, torch.Generator().manual_seed(0)
        ).student
    found["logit programs"] = learned_provably(open_teacher(ZOO[-1]))
    found["function, stepped"] = PrefixState(function_teacher())
    return found


def learned_provably(teacher):
    """A copy whose coefficients solve linear programs."""
    generator = torch.Generator().manual_seed(0)
    return learn_provably(Ledger(teacher), ProvableSettings(), generator).student


def _transformer(model, batch):
    return TransformerTeacher(model, 0, Spec(numbered(5), 4, 8, "unset"), batch)


def tiny_llama(dtype=torch.float32, batch=None):
    """Random weights, two layers; two query heads share a key."""
    return _transformer(_llama(dtype), batch)


def tiny_gpt2(dtype=torch.float32, batch=None):
    """Random weights, positions by table."""
    return _transformer(_gpt2(dtype), batch)


@functools.cache
def _llama(dtype):
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=5,
        hidden_size=8,
        intermediate_size=12,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=16,
        initializer_range=0.5,
        bos_token_id=0,
        eos_token_id=4,
    )
    return LlamaForCausalLM(config).to(dtype).eval()


@functools.cache
def _gpt2(dtype):
    torch.manual_seed(1)
    config = GPT2Config(
        vocab_size=5,
        n_positions=16,
        n_embd=8,
        n_layer=2,
        n_head=2,
        initializer_range=0.5,
        bos_token_id=0,
        eos_token_id=4,
    )
    return GPT2LMHeadModel(config).to(dtype).eval()


# how far answers of float32 models may depend on the batch, nats; others must agree to 1e-13
TOLERANCES = {"llama": 1e-5, "gpt2": 1e-5, "llama, restricted": 1e-5}


def teachers():
    """Name and teacher of each kind."""
    found = {uri: open_teacher(uri) for uri in ZOO}
    found["function"] = function_teacher()
    found["function, stepped"] = PrefixState(function_teacher())
    found["copy of a copy"] = CopyTeacher(learned(CopyTeacher(signed_model())).student)
    found["llama"], found["gpt2"] = tiny_llama(), tiny_gpt2()
    found["llama, float64"] = tiny_llama(torch.float64)
    found["llama, restricted"] = restrict(tiny_llama(), ["1", "2", "4"])
    found["function, restricted"] = restrict(function_teacher(), ["b", "<stop>"])
    return found
