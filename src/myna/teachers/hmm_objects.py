"""Hidden Markov models of other libraries, in and out, as objects.

The mathematical object is always (pi, T, E) of `myna.teachers.hmm`; only the names differ:

    hmmlearn      startprob_ (state,)    transmat_ (state, state)     emissionprob_ (state, token)
    dynamax       initial.probs          transitions.transition_matrix    emissions.probs (state, 1, token)
    pomegranate   starts (state,)        edges (state, state)         distributions[s].probs (1, token)

pomegranate keeps starts, edges and ends as logarithms, and its strings may end: after a token
state s ends the string with probability ends(s), so rows of edges and ends sum to one together.
Such a model gets a stop token, emitted by one more state that is never left. Where edges alone
sum to one, ends are a constant that pomegranate multiplies its probabilities by; it is left out.

Objects are known by these attributes (hmmlearn 0.3.3, dynamax 1.0.3, pomegranate 1.1.2), so
reading imports none of the libraries; writing imports the one that is asked for. Rows may miss
one by the rounding of float32, 1e-6, and are then divided by their sums; others are refused.
"""

import importlib
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from myna.errors import InputError
from myna.spec import numbered
from myna.teachers.hmm import Hmm, check_stochastic

_ROW = 1e-6  # by how much a row may miss one, as everywhere for tables that are read
_STOP = "<stop>"


def hmm_from_object(model: Any, horizon: int | None) -> Hmm:
    """The model of an hmmlearn, dynamax or pomegranate object.

    model: a CategoricalHMM of hmmlearn, the parameters of a CategoricalHMM of dynamax, or a
        DenseHMM of pomegranate with Categorical distributions over one symbol
    horizon: length of its sequences, tokens (a stop token counts); None for a process

    Raises:
        InputError: an object of another kind, shapes that disagree, or rows that do not sum
            to one, naming table, row and sum.
    """
    if hasattr(model, "startprob_") or hasattr(model, "emissionprob_"):
        return _from_hmmlearn(model, horizon)
    if all(hasattr(model, name) for name in ("initial", "transitions", "emissions")):
        return _from_dynamax(model, horizon)
    if all(hasattr(model, name) for name in ("edges", "starts", "distributions")):
        return _from_pomegranate(model, horizon)
    raise InputError(
        "wanted a fitted CategoricalHMM of hmmlearn, the parameters of a CategoricalHMM of "
        f"dynamax or a DenseHMM of pomegranate; got {type(model).__name__}, which has the "
        "attributes of none"
    )


def as_hmmlearn(model: Hmm) -> Any:
    """The model as an hmmlearn CategoricalHMM, ready to score, sample and fit.

    Raises:
        InputError: where hmmlearn is absent, or for a model with tables by position or a stop.
    """
    pi, moves, emits = (table.numpy() for table in _stationary(model, "hmmlearn"))
    library = _library("hmmlearn.hmm", "hmmlearn")
    made = library.CategoricalHMM(n_components=len(pi), n_features=emits.shape[1])
    made.startprob_, made.transmat_, made.emissionprob_ = pi, moves, emits
    return made


def as_dynamax(model: Hmm) -> Any:
    """The model as dynamax's ParamsCategoricalHMM, in the precision that jax is set to.

    Its model is dynamax's CategoricalHMM(num_states, 1, num_tokens).

    Raises:
        InputError: where dynamax is absent, or for a model with tables by position or a stop.
    """
    tables = [table.numpy() for table in _stationary(model, "dynamax")]
    models = "dynamax.hidden_markov_model.models"
    categorical = _library(f"{models}.categorical_hmm", "dynamax")
    starts = _library(f"{models}.initial", "dynamax").ParamsStandardHMMInitialState
    moves = _library(f"{models}.transitions", "dynamax").ParamsStandardHMMTransitions
    emits = categorical.ParamsCategoricalHMMEmissions
    jax = _library("jax.numpy", "jax")
    pi, transition, emission = (jax.asarray(table) for table in tables)
    return categorical.ParamsCategoricalHMM(
        starts(probs=pi), moves(transition_matrix=transition), emits(probs=emission[:, None])
    )


def as_pomegranate(model: Hmm) -> Any:
    """The model as a pomegranate DenseHMM, float32 (it mixes its own float32 with what it gets).

    Its ends are one, so that its log-probabilities are those of strings of the length given; as a
    stopping model it is no law, so sample with myna and not with pomegranate.

    Raises:
        InputError: where pomegranate is absent, or for a model with tables by position or a stop.
    """
    pi, moves, emits = (table.float() for table in _stationary(model, "pomegranate"))
    categorical = _library("pomegranate.distributions", "pomegranate").Categorical
    return _library("pomegranate.hmm", "pomegranate").DenseHMM(
        [categorical(law[None]) for law in emits], edges=moves, starts=pi, ends=torch.ones_like(pi)
    )


def _library(module: str, package: str) -> Any:
    """A module of an optional library.

    Raises:
        InputError: naming the package to install.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise InputError(
            f"{module} cannot be imported ({error}); install it with pip install {package}"
        ) from error


def _stationary(model: Hmm, library: str) -> tuple[Tensor, Tensor, Tensor]:
    """The three tables, on the CPU, of a model that the library can hold."""
    steps = max(len(model.transition), len(model.emission))
    if steps > 1 or model.spec.stop is not None:
        raise InputError(
            f"{library} holds one table for all positions and no stop token; this model has "
            f"{steps} tables and stop token {model.spec.stop}"
        )
    return model.initial_law.cpu(), model.transition[0].cpu(), model.emission[0].cpu()


def _from_hmmlearn(model: Any, horizon: int | None) -> Hmm:
    if hasattr(model, "n_trials"):
        raise InputError(
            "a MultinomialHMM of hmmlearn emits counts of several trials, not one symbol a step; "
            "use its CategoricalHMM"
        )
    pi = _table(model, "startprob_", 1)
    moves, emits = _table(model, "transmat_", 2), _table(model, "emissionprob_", 2)
    _check_shapes("startprob_, transmat_ and emissionprob_", pi, moves, emits)
    laws = [_laws("startprob_", pi), _laws("transmat_", moves), _laws("emissionprob_", emits)]
    return Hmm(laws[0], laws[1][None], laws[2][None], horizon=horizon)


def _from_dynamax(params: Any, horizon: int | None) -> Hmm:
    pi = _table(params.initial, "probs", 1, "initial.probs")
    moves = _table(params.transitions, "transition_matrix", 2, "transitions.transition_matrix")
    emits = _table(params.emissions, "probs", 3, "emissions.probs")
    if emits.shape[1] != 1:
        raise InputError(
            f"emissions.probs must have the shape (states, 1, tokens), one symbol a step; got "
            f"{tuple(emits.shape)}"
        )
    emits = emits[:, 0]
    _check_shapes(
        "initial.probs, transitions.transition_matrix and emissions.probs", pi, moves, emits
    )
    return Hmm(
        _laws("initial.probs", pi),
        _laws("transitions.transition_matrix", moves)[None],
        _laws("emissions.probs", emits)[None],
        horizon=horizon,
    )


def _from_pomegranate(model: Any, horizon: int | None) -> Hmm:
    pi = _unlogged(_table(model, "starts", 1))
    moves = _unlogged(_table(model, "edges", 2))
    rows = [
        _table(one, "probs", 2, f"distributions[{s}].probs")
        for s, one in enumerate(model.distributions or ())
    ]
    shapes = {tuple(row.shape) for row in rows}
    if len(shapes) != 1 or next(iter(shapes))[0] != 1:
        raise InputError(
            "each of the distributions must have probs of one shape (1, tokens), one symbol a "
            f"step; got {sorted(shapes)}"
        )
    emits = torch.cat(rows)
    _check_shapes("starts, edges and distributions", pi, moves, emits)
    pi, emits = _laws("starts", pi), _laws("distributions", emits)
    ends = None if getattr(model, "ends", None) is None else _unlogged(_table(model, "ends", 1))
    alone = bool(((moves.sum(1) - 1).abs() <= _ROW).all())
    if ends is None or (alone and bool((ends - ends[0]).abs().max() <= _ROW)):
        return Hmm(pi, _laws("edges", moves)[None], emits[None], horizon=horizon)
    if ends.shape != pi.shape:
        raise InputError(f"ends must have {len(pi)} entries, got {len(ends)}")
    return _stopping(
        pi, _laws("edges with ends", torch.cat([moves, ends[:, None]], 1)), emits, horizon
    )


def _stopping(
    pi: Float[Tensor, " state"],
    moves: Float[Tensor, "state next_state"],
    emits: Float[Tensor, "state token"],
    horizon: int | None,
) -> Hmm:
    """With one more state, reached with probability ends, that emits the stop token for ever."""
    states, tokens = emits.shape
    transition, emission = torch.eye(states + 1).double(), torch.zeros(states + 1, tokens + 1)
    transition[:states] = moves
    emission = emission.double()
    emission[:states, :tokens], emission[states, tokens] = emits, 1.0
    return Hmm(
        torch.cat([pi, pi.new_zeros(1)]),
        transition[None],
        emission[None],
        horizon=horizon,
        stop=tokens,
        alphabet=(*numbered(tokens), _STOP),
    )


def _table(owner: Any, name: str, dimensions: int, shown: str | None = None) -> Tensor:
    """An attribute as float64, with so many dimensions.

    Raises:
        InputError: where it is absent, no numbers, or has others.
    """
    shown, value = shown or name, getattr(owner, name, None)
    if isinstance(value, Tensor):
        value = value.detach().cpu().numpy()
    try:
        table = np.array(value, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise InputError(f"{shown} must be a table of numbers: {error}") from error
    if value is None or table.ndim != dimensions or not table.size:
        raise InputError(
            f"{shown} must be a table with {dimensions} dimensions, got "
            f"{'none' if value is None else table.shape}; is the model fitted, and categorical?"
        )
    return torch.from_numpy(table)


def _unlogged(table: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """Probabilities: no entry of logarithms is above 0, and some entry of a law is."""
    return table.exp() if bool((table <= 0).all()) else table


def _check_shapes(names: str, pi: Tensor, moves: Tensor, emits: Tensor) -> None:
    states = len(pi)
    if moves.shape != (states, states) or len(emits) != states:
        raise InputError(
            f"{names} must have the same states; got {tuple(pi.shape)}, {tuple(moves.shape)} and "
            f"{tuple(emits.shape)}"
        )


def _laws(name: str, table: Float[Tensor, "*rows column"]) -> Float[Tensor, "*rows column"]:
    """Rows that sum to one as nearly as float32 has it, divided by their sums."""
    check_stochastic(name, table if table.ndim > 1 else table[None])
    return table / table.sum(-1, keepdim=True)
