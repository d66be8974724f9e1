"""A teacher restricted to a sub-alphabet S: a new model, not a conditioned one.

Every next-token law is renormalised over S,

    P_S(o | x) = P(o | x) / sum over s in S of P(s | x),      o in S, x over S,

which is not P given that the whole string lies in S: that would weigh each token by what
the future allows. The stop token stays only where S names it.

    laws      renormalised
    top-k     exact where all of S is shown (or nothing is hidden), else a TeacherError:
              the sum over S is then unknown
    samples   token by token, drawn again until it lies in S; rejected tokens are counted
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from myna.errors import InputError, TeacherError
from myna.lowrank.student import State, StepInfo, Strings, strings
from myna.spec import Spec, fingerprint
from myna.teachers.draws import (
    check_draws,
    complete_in_parts,
    draw_limits,
    sample_by_completing,
)
from myna.teachers.oracle import (
    Completions,
    Laws,
    Samples,
    Stream,
    TopLaw,
    TopLaws,
    in_flight,
    top_of,
)
from myna.teachers.prefixes import Prefixes, check_prefixes
from myna.teachers.stepped import SteppedTeacher

_ATTEMPTS = 1000  # tokens drawn at one place before giving up

_Name = tuple[Stream, int | None, tuple[int, ...]]  # stream, max_tokens, prefix
_Going = tuple[_Name, list[int], int]  # of which prefix, the tokens so far, at most how many


class SubAlphabet:
    """Some tokens of a language, in the order of its alphabet."""

    def __init__(self, whole: Spec, names: Sequence[str]):
        """Find the tokens.

        names: token names, or #N for token number N

        Raises:
            InputError: for an empty choice, an unknown or a repeated token.
        """
        place = {name: token for token, name in enumerate(whole.alphabet)}
        chosen = [_token(name, place) for name in names]
        if len(set(chosen)) != len(chosen) or not chosen:
            raise InputError(
                f"a sub-alphabet names at least one token and each once, got {', '.join(names)!r}"
            )
        self.tokens = torch.tensor(sorted(chosen), dtype=torch.int64)
        self._place = torch.full((whole.num_tokens,), -1, dtype=torch.int64)
        self._place[self.tokens] = torch.arange(len(chosen))
        kept = [whole.alphabet[token] for token in sorted(chosen)]
        stop = None if whole.stop is None else int(self._place[whole.stop])
        stop = None if stop == -1 else stop
        mark = fingerprint("restricted", whole.fingerprint, tuple(kept))
        self.spec = Spec(tuple(kept), stop, whole.horizon, mark)

    def outward(self, prefixes: Prefixes) -> Prefixes:
        """Prefixes over S in the numbers of the whole alphabet."""
        tokens = torch.where(prefixes.tokens < 0, -1, self.tokens[prefixes.tokens.clamp(min=0)])
        return Prefixes(tokens, prefixes.lengths)

    def inward(self, tokens: Tensor) -> Tensor:
        """Whole tokens in the numbers of S, -1 for those outside."""
        return self._place[tokens]

    def laws(
        self, prefixes: Prefixes, whole: Float[Tensor, "batch token"]
    ) -> Float[Tensor, "batch kept"]:
        """The laws over S that whole laws become.

        Raises:
            TeacherError: where S has no mass.
        """
        part = whole[:, self.tokens.to(whole.device)].double()
        mass = part.logsumexp(1, keepdim=True)
        if bool((mass == -torch.inf).any()):
            row = int((mass[:, 0] == -torch.inf).nonzero()[0])
            raise TeacherError(
                f"no token of the sub-alphabet can follow prefix {prefixes.rows()[row]}; "
                "restrict to more tokens"
            )
        return part - mass


def _token(name: str, place: dict[str, int]) -> int:
    if name in place:
        return place[name]
    if name.startswith("#") and name[1:].isdecimal() and int(name[1:]) < len(place):
        return int(name[1:])
    raise InputError(
        f"{name!r} is no token of this model; name its tokens as `myna info` lists them, or give "
        f"a number as #N with N below {len(place)}"
    )


class _Drawn:
    """The draws of one prefix on one stream so far.

    rows: the tokens of draws 0, 1, ...
    asked: (history, attempt) -> how many of them made that attempt after that history
    """

    def __init__(self):
        self.rows: list[list[int]] = []
        self.asked: dict[tuple[tuple[int, ...], int], int] = {}


class RestrictedSamples:
    """Completions over S from completions alone, token by token with rejection.

    The n-th of a prefix's draws that makes attempt a after history h takes the teacher's
    draw n there, on a stream named by the prefix's length, the position and a. Which draw
    is the n-th follows from the draws before it, so draws are made in order, and kept.
    """

    def __init__(self, teacher: Samples, kept: SubAlphabet):
        """Wrap a teacher; nothing rejected yet."""
        self._teacher = teacher
        self._kept = kept
        self._drawn: dict[_Name, _Drawn] = {}
        self.rejected_tokens = 0

    @property
    def whole(self) -> Samples:
        """The teacher over all its tokens."""
        return self._teacher

    @property
    def spec(self) -> Spec:
        """S, the stop token where it is in S, the teacher's horizon."""
        return self._kept.spec

    def in_flight(self, kind: str) -> int | None:
        """The teacher's own."""
        return in_flight(self._teacher, kind)

    def complete(
        self,
        prefixes: Prefixes,
        count: int,
        *,
        stream: Stream,
        max_tokens: int | None = None,
        first_draw: int = 0,
    ) -> Completions:
        """Draws first_draw .. first_draw + count - 1 of each prefix's completion.

        Raises:
            TeacherError: where no token of S comes in 1,000 attempts.
        """
        check_draws(count, first_draw)
        check_prefixes(self.spec, prefixes)
        limits = draw_limits(self.spec, prefixes.lengths, max_tokens).tolist()
        names = [(stream, max_tokens, row) for row in prefixes.rows()]
        going_on = []
        for name, limit in dict(zip(names, limits, strict=True)).items():
            known = self._drawn.setdefault(name, _Drawn())
            new = [[] for _ in range(first_draw + count - len(known.rows))]
            known.rows += new
            going_on += [(name, row, limit) for row in new if limit]
        try:
            while going_on:
                going_on = self._advanced(going_on)
        except BaseException:
            for name in names:  # unfinished draws are none
                self._drawn.pop(name, None)
            raise
        chosen = [self._drawn[name].rows[first_draw : first_draw + count] for name in names]
        flat = strings([row for rows in chosen for row in rows])
        shape = (len(names), count)
        return Completions(flat.tokens.reshape(*shape, -1), flat.lengths.reshape(shape))

    def _advanced(self, going_on: list[_Going]) -> list[_Going]:
        """One more accepted token of every unfinished draw; those that go on."""
        pending = going_on
        for attempt in range(_ATTEMPTS):
            pending = self._attempted(pending, attempt)
            self.rejected_tokens += len(pending)
            if not pending:
                return [
                    (name, row, limit)
                    for name, row, limit in going_on
                    if len(row) < limit and row[-1] != self.spec.stop
                ]
        (_, _, prefix), row, _ = pending[0]
        raise TeacherError(
            f"none of {_ATTEMPTS} tokens drawn after prefix {(*prefix, *row)} is in the "
            "sub-alphabet; restrict to more tokens"
        )

    def _attempted(self, pending: list[_Going], attempt: int) -> list[_Going]:
        """Ask one token for each pending draw; append the accepted, return the others."""
        members: dict[tuple[_Name, tuple[int, ...]], list[_Going]] = {}
        for draw in pending:
            members.setdefault((draw[0], tuple(draw[1])), []).append(draw)
        groups: dict[tuple[Stream, int, int], list[tuple[_Name, tuple[int, ...]]]] = {}
        for (name, so_far), draws in members.items():
            asked = self._drawn[name].asked
            first = asked.get((so_far, attempt), 0)
            asked[so_far, attempt] = first + len(draws)
            stream, _, prefix = name
            text = f"{stream.purpose}: {len(prefix)} + {len(so_far)} tokens, attempt {attempt}"
            group = (Stream(text, stream.seed), first, len(draws))
            groups.setdefault(group, []).append((name, so_far))
        rejected = []
        for (stream, first, count), places in groups.items():
            histories = Prefixes.of([(*name[2], *so_far) for name, so_far in places])
            answer = self._teacher.complete(
                self._kept.outward(histories),
                count,
                stream=stream,
                max_tokens=1,
                first_draw=first,
            )
            for place, tokens in zip(
                places, self._kept.inward(answer.tokens[:, :, 0].cpu()).tolist(), strict=True
            ):
                for draw, token in zip(members[place], tokens, strict=True):
                    if token < 0:
                        rejected.append(draw)
                    else:
                        draw[1].append(token)
        return rejected


class RestrictedTop(RestrictedSamples):
    """Completions, and top laws where they tell the law over S."""

    def __init__(self, teacher: TopLaws, kept: SubAlphabet):
        """Wrap a teacher that shows its top laws."""
        super().__init__(teacher, kept)
        self._top = teacher

    @property
    def k(self) -> int:
        """How many tokens are shown: the teacher's k, at most all of S."""
        return min(self._top.k, self.spec.num_tokens)

    def top_laws(self, prefixes: Prefixes) -> TopLaw:
        """The k most likely tokens of S.

        Raises:
            TeacherError: where a token of S is hidden, so that its mass is unknown.
        """
        check_prefixes(self.spec, prefixes)
        seen = self._top.top_laws(self._kept.outward(prefixes))
        places = self._kept.inward(seen.tokens.cpu())
        law = torch.full((len(places), self.spec.num_tokens + 1), -torch.inf).double()
        law.scatter_(1, torch.where(places < 0, self.spec.num_tokens, places), seen.log_probs.cpu())
        shown = (places >= 0).sum(1) == self.spec.num_tokens
        hidden = ~shown & (seen.log_rest.cpu() > -torch.inf)
        if bool(hidden.any()):
            row = int(hidden.nonzero()[0])
            raise TeacherError(
                f"after prefix {prefixes.rows()[row]} the teacher's {self._top.k} most likely "
                f"tokens leave out some of the {self.spec.num_tokens} of the sub-alphabet, so "
                "their law is unknown; ask for samples, or from a teacher that shows more"
            )
        whole = law[:, :-1]
        mass = whole.logsumexp(1, keepdim=True)
        if bool((mass == -torch.inf).any()):
            row = int((mass[:, 0] == -torch.inf).nonzero()[0])
            raise TeacherError(
                f"no token of the sub-alphabet can follow prefix {prefixes.rows()[row]}; "
                "restrict to more tokens"
            )
        return top_of(whole - mass, self.k)


class RestrictedLaws:
    """All three levels over S, from laws: nothing is rejected."""

    rejected_tokens = 0

    def __init__(self, teacher: Laws, kept: SubAlphabet):
        """Wrap a teacher that shows its laws."""
        self._teacher = teacher
        self._kept = kept

    @property
    def whole(self) -> Samples:
        """The teacher over all its tokens."""
        return self._teacher

    @property
    def spec(self) -> Spec:
        """S, the stop token where it is in S, the teacher's horizon."""
        return self._kept.spec

    def in_flight(self, kind: str) -> int | None:
        """The teacher's own."""
        return in_flight(self._teacher, kind)

    @property
    def k(self) -> int:
        """Everything can be shown: k = |S|."""
        return self.spec.num_tokens

    def laws(self, prefixes: Prefixes) -> Float[Tensor, "batch token"]:
        """The teacher's laws, renormalised over S (nats)."""
        check_prefixes(self.spec, prefixes)
        return self._kept.laws(prefixes, self._teacher.laws(self._kept.outward(prefixes)).cpu())

    def top_laws(self, prefixes: Prefixes) -> TopLaw:
        """The whole law, most likely tokens first."""
        return top_of(self.laws(prefixes), self.k)

    def complete(
        self,
        prefixes: Prefixes,
        count: int,
        *,
        stream: Stream,
        max_tokens: int | None = None,
        first_draw: int = 0,
    ) -> Completions:
        """Drawn from the renormalised laws."""
        return complete_in_parts(
            self,
            prefixes,
            count,
            stream=stream,
            max_tokens=max_tokens,
            first_draw=first_draw,
            room=2**13,
        )


class RestrictedSteps(RestrictedLaws, SteppedTeacher):
    """A teacher that is stepped here, restricted and still stepped."""

    def __init__(self, teacher: SteppedTeacher, kept: SubAlphabet):
        """Wrap a stepped teacher."""
        super().__init__(teacher, kept)
        self._steps = teacher

    @property
    def num_bytes(self) -> int | None:
        """The whole teacher's."""
        return self._steps.num_bytes

    def initial(self, batch: int) -> State:
        """The teacher's initial state."""
        return self._steps.initial(batch)

    def law(self, state: State) -> Float[Tensor, "batch token"]:
        """The state's law, renormalised over S."""
        return self._kept.laws(Prefixes.of([[]] * len(state.vector)), self._steps.law(state))

    def step(self, state: State, tokens: Int[Tensor, " batch"]) -> tuple[State, StepInfo]:
        """The teacher's step; the log-probability is the renormalised one."""
        log_prob = self.law(state).gather(1, tokens[:, None])[:, 0]
        after, _ = self._steps.step(state, self._kept.tokens.to(tokens.device)[tokens])
        return after, StepInfo(log_prob)

    def sample(
        self, count: int, generator: torch.Generator, max_tokens: int | None = None
    ) -> Strings:
        """`count` independent sequences (outside any ledger: for tests and benchmarks)."""
        return sample_by_completing(self, count, generator, max_tokens)


def restrict(teacher: Samples, names: Sequence[str]) -> Samples:
    """The teacher over a sub-alphabet, at the teacher's own level of access.

    names: the tokens to keep, by name or as #N

    Raises:
        InputError: for tokens that the teacher does not have.
    """
    kept = SubAlphabet(teacher.spec, names)
    if isinstance(teacher, SteppedTeacher):
        return RestrictedSteps(teacher, kept)
    if isinstance(teacher, Laws):
        return RestrictedLaws(teacher, kept)
    if isinstance(teacher, TopLaws):
        return RestrictedTop(teacher, kept)
    return RestrictedSamples(teacher, kept)
