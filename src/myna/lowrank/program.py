"""Coefficients along a string by a linear program over all its cuts.

Each cut s holds the logits of a few histories h_s1 ... h_sd. After a prefix y_1 ... y_t+1 of a
string the coefficients c_0 = 1, c_1 ... c_t of all earlier cuts are a solution of

    minimise e   over c_1 ... c_t
    |sum_i c_s,i z(f | h_s,i) - sum_i c_s-1,i z(y_s f | h_s-1,i)| <= e     f in F_s,  s = 1 .. t
    |c_s,i| <= bound,

and the logits are z(o) = sum_i c_t,i z(y_t+1 o | h_t,i). Coefficients that a product of
changes of basis would let grow are held within the bound at every cut, and a later token may
change earlier ones. Source: Golowich, Liu and Shetty (arXiv 2512.09892), coefficient growth
through a linear program, in the form that solves anew at each prefix without c_t+1.

We differ in that e is minimised and reported, not fixed at zero: where e exceeds what the
caller allows, the bound is doubled for that prefix and those after it, a few times; then it
counts as one without a solution, and keeps the law of the least error instead of the uniform
one. Histories are chosen on few strings, so a fresh one may need more than the bound; constraints stand in an orthonormal basis of the
rows' span, which for exact rank says the same with fewer of them; and each prefix's program
starts from its parent's final basis. So that the model is a function of the prefix, a
prefix is always reached by adding its tokens one by one, in the same order of pivots.
"""

import contextlib
import dataclasses
import functools
import math
import os
import sys
from collections.abc import Iterator

import torch
from jaxtyping import Float, Int
from torch import Tensor

from myna.errors import InputError
from myna.lowrank.student import State, StepInfo, Stepped
from myna.spec import Spec, fingerprint

History = tuple[int, ...]
LP_TOLERANCE = 1e-9  # to which constraints hold and the optimum is optimal; HiGHS's scale, nats
_DOUBLINGS = 4  # of a bound without a solution
_WALKS = 16_384  # prefixes kept open at once
_SOLVERS = 512  # of them with a solver, about a megabyte each
_LAWS = 200_000  # logits kept


@dataclasses.dataclass(frozen=True)
class CutRows:
    """What is stored at one cut.

    histories: h_1 ... h_d
    own: (rank, constraint), their logits on the cut's futures F_s, in a basis of the rows' span
    after: (rank, token, next_constraint), their logits on y F_s+1, in the next cut's basis
    logits: (rank, token), z(o | h_i)
    following: (rank, token, next_token), z(o | h_i y); zero where y ends the sequence or the
        horizon does
    """

    histories: tuple[History, ...]
    own: Float[Tensor, "rank constraint"]
    after: Float[Tensor, "rank token next_constraint"]
    logits: Float[Tensor, "rank token"]
    following: Float[Tensor, "rank token next_token"]

    @property
    def rank(self) -> int:
        """How many histories there are."""
        return len(self.own)

    @functools.cached_property
    def inverse(self) -> Float[Tensor, "constraint rank"]:
        """The pseudoinverse of `own`."""
        return torch.linalg.pinv(self.own)

    @property
    def tables(self) -> dict[str, Tensor]:
        """What is stored, by name."""
        return {
            "own": self.own,
            "after": self.after,
            "logits": self.logits,
            "following": self.following,
        }


class Walk:
    """The program of one prefix, extended token by token.

    Where the change of basis of the coefficients before is within the bound and its residual
    at most the error so far, it is an optimum: the error of a longer prefix is never less.
    Then nothing is solved, and the cut joins the solver's program when that is next needed.

    bound: of the coefficients; doubled where the prefix has no solution within it
    """

    def __init__(
        self,
        cuts: tuple[CutRows, ...],
        bound: float,
        allowed: float = math.inf,
        *,
        shortcut: bool = True,
    ):
        """The empty prefix: c_0 = 1 and nothing to solve.

        bound, allowed: the least bound, and the error (nats) above which it is widened
        """
        self._cuts, self._allowed, self._shortcut = cuts, allowed, shortcut
        self.bound, self._widest = bound, bound * 2**_DOUBLINGS
        self._solver = None
        self._added = 0  # cuts that the solver knows
        self._prefix: list[int] = []
        self.coefficients = [torch.ones(1, dtype=torch.float64)]
        self.error = 0.0
        self.solves = 0

    @property
    def solving(self) -> bool:
        """Whether it holds a solver."""
        return self._solver is not None

    def push(self, token: int) -> Float[Tensor, " token"]:
        """Read a token; the logits after it (nats, centred up to the program's error)."""
        t = len(self._prefix)
        if t:
            self._extend(t)
        self._prefix.append(token)
        return self.coefficients[t] @ self._cuts[t].following[:, token]

    def _extend(self, t: int) -> None:
        """Coefficients of cut t as well, within the first bound that has a solution."""
        coefficients, error = [*self.coefficients], self.error
        while not (self._shortcut and self._moved(t)):
            self._solve(t)
            if self.error <= self._allowed or self.bound >= self._widest:
                return
            self.bound *= 2
            self.coefficients, self.error = [*coefficients], error
            if self._solver is not None:
                self._widen(self._solver)

    def _widen(self, solver) -> None:
        """Tell the solver the new bound of all variables but e."""
        for column in range(1, 1 + sum(cut.rank for cut in self._cuts[1 : self._added + 1])):
            solver.changeColBounds(column, -self.bound, self.bound)

    def _moved(self, t: int) -> bool:
        """Extend by the change of basis, if that is an optimum."""
        wanted = self.coefficients[t - 1] @ self._cuts[t - 1].after[:, self._prefix[-1]]
        moved = wanted @ self._cuts[t].inverse
        residual = (moved @ self._cuts[t].own - wanted).abs()
        worst = float(residual.max()) if len(residual) else 0.0
        within = bool((moved.abs() <= self.bound).all())
        if not within or worst > max(self.error, LP_TOLERANCE):
            return False
        self.error = max(self.error, worst)
        self.coefficients.append(moved)
        return True

    def _add(self, solver, s: int) -> None:
        """The variables and constraints of cut s."""
        here, before = self._cuts[s], self._cuts[s - 1]
        rank, constraints = here.own.shape
        start = 1 + sum(cut.rank for cut in self._cuts[1:s])
        solver.addVars(rank, [-self.bound] * rank, [self.bound] * rank)
        source = before.after[:, self._prefix[s - 1]]
        known = source[0] if s == 1 else torch.zeros(constraints, dtype=torch.float64)
        names = [*range(start, start + rank)]
        blocks = [here.own]
        if s > 1:
            names = [*range(start - len(source), start), *names]
            blocks = [-source, here.own]
        table = torch.cat(blocks).T.tolist()
        infinity = solver.getInfinity()
        for row, constant in zip(table, known.tolist(), strict=True):
            width = len(names) + 1
            solver.addRow(-infinity, constant, width, [0, *names], [-1.0, *row])
            solver.addRow(constant, infinity, width, [0, *names], [1.0, *row])

    def _solve(self, t: int) -> None:
        """The optimum; once more from no basis where the pivots went astray."""
        solver = self._solver = self._solver or _solver()
        while self._added < t:
            self._added += 1
            self._add(solver, self._added)
        self.solves += 1
        if not _optimal(solver):
            solver.clearSolver()
            if not _optimal(solver):
                self.error = math.inf  # said, never guessed: the law is uniform here
                self.coefficients.append(torch.zeros(self._cuts[t].rank, dtype=torch.float64))
                return
        values = torch.tensor(solver.getSolution().col_value, dtype=torch.float64)
        self.error = max(0.0, float(values[0]))
        sizes = [1, *(cut.rank for cut in self._cuts[1 : t + 1])]
        self.coefficients = [self.coefficients[0], *values.split(sizes)[1:]]


def _optimal(solver) -> bool:
    solver.run()
    return solver.modelStatusToString(solver.getModelStatus()) == "Optimal"


def require_solver() -> None:
    """Fail early where HiGHS is missing.

    Raises:
        InputError: says how to install it.
    """
    _solver()


def _solver():
    """HiGHS with one variable, the error e >= 0, of cost one."""
    try:  # optional
        import highspy  # noqa: PLC0415
    except ImportError as error:
        raise InputError(
            "the linear program needs the HiGHS solver; install it with pip install 'myna[lp]'"
        ) from error
    with _standard_output_kept():
        solver = highspy.Highs()
    for name, value in (
        ("log_to_console", False),
        ("output_flag", False),
        ("threads", 1),
        ("solver", "simplex"),
        ("presolve", "off"),
        ("primal_feasibility_tolerance", LP_TOLERANCE),
        ("dual_feasibility_tolerance", LP_TOLERANCE),
    ):
        solver.setOptionValue(name, value)
    solver.addVar(0.0, solver.getInfinity())
    solver.changeColCost(0, 1.0)
    return solver


@contextlib.contextmanager
def _standard_output_kept() -> Iterator[None]:
    """HiGHS greets on standard output, which is the caller's: sent to standard error instead."""
    sys.stdout.flush()
    kept = os.dup(1)
    try:
        os.dup2(2, 1)
        yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)


def _check_cuts(language: Spec, cuts: tuple[CutRows, ...]) -> None:
    """Refuse cuts that do not fit each other or the language."""
    if language.horizon is None or len(cuts) != language.horizon:
        raise InputError(
            f"a program needs the rows of every cut: a horizon of {language.horizon}, and "
            f"{len(cuts)} cuts came"
        )
    o = language.num_tokens
    for t, cut in enumerate(cuts):
        constraints = cuts[t + 1].own.shape[1] if t + 1 < len(cuts) else 0
        wanted = {
            "own": (cut.rank, cut.own.shape[1]),
            "after": (cut.rank, o, constraints),
            "logits": (cut.rank, o),
            "following": (cut.rank, o, o),
        }
        for name, table in cut.tables.items():
            if tuple(table.shape) != wanted[name]:
                raise InputError(
                    f"cut {t} has {name} of shape {tuple(table.shape)}; the other tables ask for "
                    f"{wanted[name]}"
                )
    if cuts[0].rank != 1:
        raise InputError(f"cut 0 has the empty history alone, and {cuts[0].rank} rows came")


class ProgramModel(Stepped):
    """The model that the programs define: a Student whose state is the prefix.

    cuts: rows of every cut, 0 .. horizon - 1
    bound: the largest |coefficient|, where that has a solution
    allowed: the largest error e (nats) that counts as a solution
    shortcut: skip the solver where a change of basis is an optimum (see `Walk`)
    prefixes, solves, worst_error: laws found so far, solver's runs for these, the largest e
        among them (nats)
    widened, without_solution: how many needed a wider bound, and had no solution in any
    """

    def __init__(
        self,
        language: Spec,
        cuts: tuple[CutRows, ...],
        bound: float,
        allowed: float,
        *,
        shortcut: bool = True,
    ):
        """Keep the rows, with a fingerprint of them.

        Raises:
            InputError: where shapes disagree, or there is no horizon.
        """
        _check_cuts(language, cuts)
        tables = [table for cut in cuts for table in cut.tables.values()]
        said = (language.alphabet, language.stop, language.horizon, bound, allowed, shortcut)
        mark = fingerprint("logit program", *said, *tables)
        self._spec = dataclasses.replace(language, fingerprint=mark)
        self.cuts, self.bound, self.allowed, self.shortcut = cuts, bound, allowed, shortcut
        self._walks: dict[History, Walk] = {}
        self._solving: dict[History, Walk] = {}
        self._laws: dict[History, Tensor] = {}
        self.prefixes, self.solves, self.worst_error = 0, 0, 0.0
        self.widened, self.without_solution = 0, 0

    @property
    def spec(self) -> Spec:
        """Alphabet, stop token, horizon and fingerprint."""
        return self._spec

    @property
    def ranks(self) -> tuple[int, ...]:
        """Histories at each cut."""
        return tuple(cut.rank for cut in self.cuts)

    @property
    def num_parameters(self) -> int:
        """How many numbers are stored."""
        return sum(table.numel() for cut in self.cuts for table in cut.tables.values())

    def initial(self, batch: int) -> State:
        """No token read yet: vectors of width zero."""
        return State(torch.empty((batch, 0), dtype=torch.float64), 0)

    def law(self, state: State) -> Float[Tensor, "batch token"]:
        """Log Q(o | x): each distinct prefix solved once (nats)."""
        rows = [tuple(row) for row in state.vector.long().tolist()]
        found = {row: self._law_after(row) for row in dict.fromkeys(rows)}
        if not rows:
            return torch.empty((0, self.spec.num_tokens), dtype=torch.float64)
        return torch.stack([found[row] for row in rows])

    def step(self, state: State, tokens: Int[Tensor, " batch"]) -> tuple[State, StepInfo]:
        """Append the token; its probability is read from the law before it."""
        log_prob = self.law(state).gather(1, tokens[:, None])[:, 0]
        vector = torch.cat([state.vector, tokens[:, None].double()], 1)
        return State(vector, state.position + 1), StepInfo(log_prob)

    def coefficients_after(self, prefix: History) -> list[Float[Tensor, " _"]]:
        """The solution c_0 ... c_t-1 of the program of a prefix of t > 0 tokens."""
        return self._walked(prefix)[0].coefficients

    def _law_after(self, prefix: History) -> Float[Tensor, " token"]:
        if not prefix:
            return self.cuts[0].logits[0].log_softmax(0)
        if prefix not in self._laws:
            walk, logits = self._walked(prefix)
            self.prefixes += 1
            self.worst_error = max(self.worst_error, walk.error)
            self.widened += walk.bound > self.bound
            self.without_solution += walk.error > self.allowed
            if not math.isfinite(walk.error):
                logits = torch.zeros_like(logits)
            if len(self._laws) >= _LAWS:
                self._laws.clear()
            self._laws[prefix] = logits.log_softmax(0)
        return self._laws[prefix]

    def _walked(self, prefix: History) -> tuple[Walk, Float[Tensor, " token"]]:
        """The program of a prefix: its parent's extended, or all tokens from the start."""
        walk = self._walks.pop(prefix[:-1], None) or self._solving.pop(prefix[:-1], None)
        rest = prefix[-1:]
        if walk is None:
            walk, rest = Walk(self.cuts, self.bound, self.allowed, shortcut=self.shortcut), prefix
        logits = torch.zeros(self.spec.num_tokens, dtype=torch.float64)
        before = walk.solves
        for token in rest:
            logits = walk.push(token)
        self.solves += walk.solves - before
        kept, most = (self._solving, _SOLVERS) if walk.solving else (self._walks, _WALKS)
        if len(kept) >= most:
            del kept[next(iter(kept))]
        kept[prefix] = walk
        return walk, logits
