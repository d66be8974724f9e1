"""What a teacher's answers must satisfy before anything is kept of them.

A law sums to one. A completion of prefix x, with a limit of m tokens (the room up to the
horizon, or max_tokens where that is less), is a string y over 0 .. O-1 such that

    1 <= |y| <= m,   the stop token may only come last,   |y| = m or y ends in the stop

(y is empty where m = 0), and is followed by -1 alone. Whole answers are checked at
once; the first fault found is named by its prefix and draw.
"""

from collections.abc import Iterator

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from myna.errors import TeacherError
from myna.spec import Spec
from myna.teachers.drawn import Request
from myna.teachers.draws import NO_LIMIT
from myna.teachers.oracle import Completions, TopLaw
from myna.teachers.prefixes import Prefixes

_SHOWN = 12  # tokens of a faulty completion that a message lists


def check_law(prefixes: Prefixes, laws: Float[Tensor, "batch token"]) -> None:
    """Refuse NaN, and laws whose mass is not one to 1e-6.

    Raises:
        TeacherError: naming the prefix and what came.
    """
    mass = laws.exp().sum(1)
    bad = ~((mass - 1).abs() <= 1e-6)  # NaN compares false, so it is caught too
    if bool(bad.any()):
        row = int(bad.nonzero()[0])
        came = "NaN" if bool(laws[row].isnan().any()) else f"a total of {float(mass[row]):.6g}"
        raise TeacherError(
            f"a next-token law must sum to 1, but after prefix {prefixes.rows()[row]} the "
            f"teacher's has {came}; check the teacher (are these natural-log probabilities?)"
        )


def checked_top(spec: Spec, prefixes: Prefixes, k: int, answer: TopLaw) -> TopLaw:
    """The answer on the CPU in int64 and float64, where it is one.

    Raises:
        TeacherError: naming what came.
    """
    tokens, log_probs, log_rest = answer
    shapes = tuple(tokens.shape), tuple(log_probs.shape), tuple(log_rest.shape)
    n = len(prefixes.lengths)
    if shapes != ((n, k), (n, k), (n,)):
        raise TeacherError(
            f"the {k} most likely tokens after {n} prefixes were asked and the teacher's answer "
            f"has the shapes {shapes}; check the teacher"
        )
    found = TopLaw(
        tokens.to("cpu", torch.int64),
        log_probs.to("cpu", torch.float64),
        log_rest.to("cpu", torch.float64),
    )
    check_law(prefixes, torch.cat([found.log_probs, found.log_rest[:, None]], 1))
    ordered = found.tokens.sort(1).values
    bad = ((ordered < 0) | (ordered >= spec.num_tokens)).any(1)
    bad |= (ordered[:, 1:] == ordered[:, :-1]).any(1)
    if bool(bad.any()):
        row = int(bad.nonzero()[0])
        raise TeacherError(
            f"a top law names different tokens in 0..{spec.num_tokens - 1}, but after prefix "
            f"{prefixes.rows()[row]} the teacher's has {_shown(found.tokens[row])}; check the teacher"
        )
    return found


def checked_law(spec: Spec, prefixes: Prefixes, answer: Tensor) -> Float[Tensor, "batch token"]:
    """The answer on the CPU in float64, where it is one law a prefix.

    Raises:
        TeacherError: naming what came.
    """
    wanted = (len(prefixes.lengths), spec.num_tokens)
    if tuple(answer.shape) != wanted:
        raise TeacherError(
            f"{wanted[0]} laws of {wanted[1]} tokens were asked and the teacher's answer has the "
            f"shape {tuple(answer.shape)}; check the teacher"
        )
    found = answer.to("cpu", torch.float64)
    check_law(prefixes, found)
    return found


def checked_completions(spec: Spec, request: Request, answer: Completions) -> Completions:
    """The answer on the CPU in int64, where it is one to the request.

    Raises:
        TeacherError: naming the first fault, its prefix, its draw and what came.
    """
    answer = _shaped(request, answer)
    limits = request.limits(spec)[:, None]
    for wanted, bad in _faults(spec, limits, answer):
        if bool(bad.any()):
            row, draw = (int(i) for i in bad.nonzero()[0])
            prefix = request.prefixes.take(torch.tensor([row])).rows()[0]
            limit = "any number of" if limits[row] == NO_LIMIT else f"at most {int(limits[row])}"
            raise TeacherError(
                f"{wanted}, but after prefix {list(prefix)} draw {request.first_draw + draw} of "
                f"the teacher is {_shown(answer.tokens[row, draw])} with length "
                f"{int(answer.lengths[row, draw])} where {limit} tokens were asked; "
                "check the teacher"
            )
    return answer


def _shaped(request: Request, answer: Completions) -> Completions:
    """The two tensors of an answer, of the right shapes, on the CPU in int64."""
    wanted = (len(request.prefixes.lengths), request.count)
    for name, part, axes in (("tokens", answer.tokens, 3), ("lengths", answer.lengths, 2)):
        whole = isinstance(part, Tensor) and not (
            part.is_floating_point() or part.is_complex() or part.dtype == torch.bool
        )
        if not whole or part.ndim != axes or tuple(part.shape[:2]) != wanted:
            came = f"{part.dtype} {tuple(part.shape)}" if isinstance(part, Tensor) else type(part)
            prefixes = request.prefixes.take(torch.arange(min(1, wanted[0]))).rows()
            raise TeacherError(
                f"{wanted[1]} completions each of {wanted[0]} prefixes (the first: {prefixes}) "
                f"need {name} of whole numbers whose shape begins with {wanted} and has {axes} "
                f"axes, but the teacher's are {came}; check the teacher"
            )
    return Completions(*(part.to("cpu", torch.int64) for part in answer))


def _faults(
    spec: Spec, limits: Int[Tensor, "batch 1"], answer: Completions
) -> Iterator[tuple[str, Bool[Tensor, "batch draw"]]]:
    """What each draw must satisfy, and which draws do not."""
    tokens, lengths = answer
    width = tokens.shape[2]
    yield "a completion's length must fit its tokens", (lengths < 0) | (lengths > width)
    yield "a completion must have at least one token", (lengths == 0) & (limits > 0)
    yield "a completion must not be longer than was asked", lengths > limits
    columns = torch.arange(width)
    inside = columns < lengths[:, :, None]
    foreign = (tokens < 0) | (tokens >= spec.num_tokens)
    yield f"tokens must lie in 0..{spec.num_tokens - 1}", (foreign & inside).any(2)
    yield "a completion must be followed by -1 alone", ((tokens != -1) & ~inside).any(2)
    ended = torch.zeros_like(lengths, dtype=torch.bool)
    if spec.stop is not None and width:
        stops = tokens == spec.stop
        early = stops & (columns < lengths[:, :, None] - 1)
        yield f"the stop token {spec.alphabet[spec.stop]!r} may only come last", early.any(2)
        ended = stops.any(2)
    yield "a completion must go on to its end", (lengths < limits) & ~ended


def _shown(tokens: Int[Tensor, " width"]) -> str:
    """The first tokens of a completion."""
    more = ", ..." if len(tokens) > _SHOWN else ""
    return f"[{', '.join(str(token) for token in tokens[:_SHOWN].tolist())}{more}]"
