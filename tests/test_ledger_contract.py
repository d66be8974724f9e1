"""What every teacher promises, kept by a ledger's file that faces it, and by its replay."""

import catalogue
import pytest
import test_teacher_contract as contract

from myna.teachers.account import Budget
from myna.teachers.ledger_audit import verify
from myna.teachers.ledger_file import LedgerFile
from myna.teachers.ledger_replay import open_replay
from myna.teachers.uri import open_teacher

CHECKS = [
    contract.test_levels_are_nested,
    contract.test_laws_are_laws,
    lambda teacher: contract.test_laws_do_not_depend_on_the_batch(teacher, 0.0),
    contract.test_top_laws_sort_and_add_up,
    contract.test_samples_only_hides_the_rest,
    contract.test_draws_are_addressed,
    contract.test_completions_end_where_the_language_ends,
    contract.test_completions_follow_the_laws,
    contract.test_bad_prefixes_are_refused,
    contract.test_top_k_needs_a_k_that_exists,
]


@pytest.mark.parametrize("name", catalogue.ZOO)
def test_the_contract_holds_behind_a_file_and_without_a_teacher(name, tmp_path):
    """The checks ask the same questions twice, so the replay has every answer.

    One tolerance is none here: a recorded law is the same bits in whichever batch.
    """
    path = tmp_path / "l.ledger"
    file = LedgerFile(path, open_teacher(name), Budget(), "")
    for check in CHECKS:
        check(file.facing("contract"))
    file.close()
    replay = open_replay(path)
    for check in CHECKS:
        check(replay)
    assert verify(path).problems == ()
