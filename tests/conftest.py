import os
from pathlib import Path

import pytest
import torch
from hypothesis import settings

# the suite's matrices are small: threads would only wait for each other, here and in the
# commands that tests start
torch.set_num_threads(1)
os.environ["OMP_NUM_THREADS"] = "1"
# a console reads this once, when it is made, and worker processes of the suite come with it set
os.environ.pop("COLUMNS", None)

settings.register_profile("default", deadline=None, max_examples=25)
settings.register_profile("ci", deadline=None, max_examples=25, derandomize=True)
settings.load_profile("ci" if os.environ.get("CI") else "default")

_SHARED = Path(__file__).parents[1] / ".." / "shared" / "data"


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


@pytest.fixture
def shared_data() -> Path:
    if not _SHARED.is_dir():
        pytest.skip(f"real models are not here: {_SHARED} is absent")
    return _SHARED
