"""Which learner from laws the options of `myna learn` name, and its settings."""

from collections.abc import Mapping
from enum import Enum
from typing import Any

from myna.errors import InputError
from myna.learn.report import ExactSettings, Structure
from myna.learn.states import StatesSettings
from myna.learn.wide import WideSettings
from myna.logits.fitted import FitSettings
from myna.logits.provable import ProvableSettings
from myna.logits.report import LogitSettings

_LOGITS_ALONE = (
    "--learner belongs to --space logits (only --learner states and --learner wide do not); add "
    "that or leave it out"
)


class Form(Enum):
    """How `learn` may structure a copy."""

    AUTO = "auto"
    TIME_VARYING = "time-varying"
    STATIONARY = "stationary"
    TEST = "test"


class Space(Enum):
    """In what a copy is linear."""

    PROBABILITIES = "probabilities"
    LOGITS = "logits"


class Learner(Enum):
    """How a copy is found: the first three in logit space, the others in probability space."""

    EXACT_RANK = "exact-rank"
    PROVABLE = "provable"
    FITTED = "fitted"
    STATES = "states"
    WIDE = "wide"


STRUCTURES = {Form.TIME_VARYING: Structure.TIME_VARYING, Form.STATIONARY: Structure.STATIONARY}


def settings_of_laws(
    space: Space,
    learner: Learner | None,
    form: Form,
    named: dict[str, Any],
    mismatch: float | None,
    of_fitted: dict[str, Any],
    laws: int | None,
) -> ExactSettings | LogitSettings | ProvableSettings | FitSettings | StatesSettings | WideSettings:
    """The settings of the learner asked for; an option that it does not have is refused.

    named: the caps and tolerances that were said, by the exact learner's names
    of_fitted: options of fitted networks that were said
    laws: the budget

    Raises:
        InputError: naming the option.
    """
    exact = given({"mismatch": mismatch})
    if learner is Learner.FITTED:
        alone = {name: named[name] for name in ("verify_histories", "tolerance") if name in named}
        refuse(alone | exact, "exact laws", "--learner fitted")
        return _fit_settings(space, form, named | of_fitted, laws)
    refuse(of_fitted, "--learner fitted", "another learner")
    if learner is Learner.STATES:
        refuse(exact, "other learners", "--learner states")
        return _states_settings(space, form, named)
    if learner is Learner.WIDE:
        refuse(exact, "other learners", "--learner wide")
        return _wide_settings(space, form, named)
    return _exact_settings(space, learner, form, named | exact)


def _exact_settings(
    space: Space, learner: Learner | None, form: Form, named: dict[str, Any]
) -> ExactSettings | LogitSettings | ProvableSettings | FitSettings:
    """The settings of a learner of exact laws, in the space asked for."""
    structure = STRUCTURES.get(form)
    cut_at = {"max_tokens": 1000}
    if space is Space.PROBABILITIES:
        if learner is not None:
            raise InputError(_LOGITS_ALONE)
        return ExactSettings(structure=structure, **(cut_at | named))
    if form is Form.TEST:
        raise InputError("--structure test needs --space probabilities; choose another structure")
    if learner is not Learner.PROVABLE:
        claim = None if structure is None else structure is Structure.STATIONARY
        return LogitSettings(stationary=claim, **(cut_at | named))
    if structure is Structure.STATIONARY or "max_tokens" in named:
        raise InputError(
            "--learner provable has rows at each cut of a horizon, so --structure stationary and "
            "--max-tokens do not fit it; leave them out, or use --learner exact-rank"
        )
    return ProvableSettings(**named)


def _fit_settings(space: Space, form: Form, named: dict[str, Any], laws: int | None) -> FitSettings:
    """The settings of a fitted network; its dimension is the cap on the rank."""
    if space is not Space.LOGITS:
        raise InputError(_LOGITS_ALONE)
    if form not in (Form.AUTO, Form.STATIONARY):
        raise InputError(
            f"--learner fitted gives one network for all cuts; leave --structure {form.value} out"
        )
    if "max_rank" in named:
        named["dimension"] = named.pop("max_rank")
    if laws is not None:
        named["laws"] = laws
    return FitSettings(**named)


def _states_settings(space: Space, form: Form, named: dict[str, Any]) -> StatesSettings:
    """The settings of the learner of machines, by the names that the options have."""
    _one_for_all_cuts(Learner.STATES, "one machine", space, form)
    own = {"max_rank": "max_states", "verify_histories": "check_words", "max_tokens": "walk"}
    return StatesSettings(**{own.get(name, name): value for name, value in named.items()})


def _wide_settings(space: Space, form: Form, named: dict[str, Any]) -> WideSettings:
    """The settings of the learner for many tokens; what is checked are fresh strings."""
    _one_for_all_cuts(Learner.WIDE, "one basis", space, form)
    if "verify_histories" in named:
        named["fresh"] = named.pop("verify_histories")
        if named["fresh"] < 2:
            raise InputError(
                "--learner wide measures along --verify strings, and one has no interval; give at "
                f"least 2, got {named['fresh']}"
            )
    return WideSettings(**named)


def _one_for_all_cuts(learner: Learner, found: str, space: Space, form: Form) -> None:
    """Refuse another space, or another structure than the one that the learner finds."""
    if space is not Space.PROBABILITIES:
        raise InputError(
            f"--learner {learner.value} finds laws, not logits; leave --space logits out"
        )
    if form not in (Form.AUTO, Form.STATIONARY):
        raise InputError(
            f"--learner {learner.value} finds {found} for all cuts; "
            f"leave --structure {form.value} out"
        )


def given(options: Mapping[str, Any]) -> dict[str, Any]:
    """Those that were said; the others keep the settings' own defaults."""
    return {name: value for name, value in options.items() if value is not None}


def refuse(options: Mapping[str, Any], owner: str, asked: str) -> None:
    """Refuse the first option that belongs to something else than what was asked."""
    named = given(options)
    if named:
        raise InputError(
            f"--{next(iter(named)).replace('_', '-')} belongs to {owner}, and {asked} was asked; "
            "leave one of them out"
        )
