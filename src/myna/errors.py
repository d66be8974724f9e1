"""The errors that myna raises on purpose.

    MynaError
    ├── InputError         what the caller gave: a URI, a file, a parameter, a prefix
    │   └── FormatError    a file or a saved student that does not read as declared
    ├── TeacherError       what a teacher answered: no probability law, or no completion
    ├── BudgetExhausted    the next request would exceed the budget; nothing was asked
    └── LedgerError        a ledger file that cannot be written or read further; what it holds stays

Every message is one sentence: what was wanted, what came, what to do.
"""


class MynaError(Exception):
    """Any failure that myna explains itself; the command line prints its message."""


class InputError(MynaError, ValueError):
    """The caller's argument, file or prefix is not one that can be worked with."""


class FormatError(InputError):
    """A file or a saved student does not read as its format says."""


class TeacherError(MynaError):
    """A teacher gave an answer that is no probability law, or no completion of its prefix."""


class BudgetExhausted(MynaError):
    """The next request would exceed the budget, so it was not asked."""


class LedgerError(MynaError):
    """A ledger's file cannot be written or read further; what was written to it stays."""
