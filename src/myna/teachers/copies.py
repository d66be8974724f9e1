"""Learned copies on disk, and as teachers: a copy of a copy is asked like any model.

A saved copy is a folder of two plain files, nothing executable:

    model.safetensors   "first", and "laws.t", "change.t" for each stored step t ("logits.t"
                        in log-probability space); with a projection also what its
                        regions hold; of a program the tables of each cut
    model.json          format and version, language, basis histories, and provenance:
                        what it was learned from, settings, cost, commit;
                        version 2 adds "projection", the regions of a projected model;
                        version 3 says "space": "logits", and has "program" where
                        coefficients solve linear programs;
                        version 4 has "packed": tables with fewer bytes (`lowrank.packed`), or
                        "mixed": operators that share a few matrices (`lowrank.mixed`);
                        version 5 is version 1 with "compiled": {"precision": ...}, a model
                        that is read back in its form for use (`teachers.compiled`)

A model without a projection is still written as version 1, which older readers take.
Saving is atomic: the folder appears whole or not at all.
"""

import dataclasses
import json
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from jaxtyping import Float, Int
from torch import Tensor

from myna.errors import FormatError, InputError
from myna.lowrank.isan import Isan, IsanStep
from myna.lowrank.mixed import MixedModel, describe_mixed, read_mixed
from myna.lowrank.model import LowRankModel
from myna.lowrank.packed import Precision, pack, unpack
from myna.lowrank.program import CutRows, ProgramModel
from myna.lowrank.projected import ProjectedModel, describe_regions, read_regions
from myna.lowrank.step import Step
from myna.lowrank.student import State, StepInfo, Strings, Student
from myna.spec import Spec
from myna.teachers.compiled import CompiledModel
from myna.teachers.files import check_plain, in_the_way, read_json
from myna.teachers.stepped import SteppedTeacher

FORMAT = "myna low-rank model"
VERSION = 3  # of models in log-probability space; projected models are 2, others 1
_PACKED = 4
_COMPILED = 5
_TENSORS, _TEXT = "model.safetensors", "model.json"


class CopyTeacher(SteppedTeacher):
    """A student that is asked as a teacher, at all three levels."""

    def __init__(self, student: Student):
        """Wrap any student."""
        self.student = student

    @property
    def spec(self) -> Spec:
        """The student's own."""
        return self.student.spec

    @property
    def num_bytes(self) -> int | None:
        """Of the student's numbers in double precision, where it counts them."""
        numbers = getattr(self.student, "num_parameters", None)
        return None if numbers is None else 8 * numbers

    def initial(self, batch: int) -> State:
        """The student's initial state."""
        return self.student.initial(batch)

    def step(self, state: State, tokens: Int[Tensor, " batch"]) -> tuple[State, StepInfo]:
        """The student's step."""
        return self.student.step(state, tokens)

    def law(self, state: State) -> Float[Tensor, "batch token"]:
        """The student's law."""
        return self.student.law(state)

    def score(self, strings: Strings) -> Float[Tensor, " batch"]:
        """The student's score."""
        return self.student.score(strings)

    def sample(
        self, count: int, generator: torch.Generator, max_tokens: int | None = None
    ) -> Strings:
        """The student's samples."""
        return self.student.sample(count, generator, max_tokens)


@dataclasses.dataclass(frozen=True)
class SavedCopy:
    """A copy read from disk.

    model: the student
    low_rank: the low-rank model in it, before any projection or compiling (in log-probability
        space: as it is)
    projection: the kind of set that coefficients are kept in, None for none
    about: where it comes from (teacher, settings, report, commit), as saved
    """

    model: LowRankModel | ProjectedModel | MixedModel | Isan | ProgramModel | CompiledModel
    about: dict[str, Any]

    @property
    def low_rank(self) -> LowRankModel | MixedModel | Isan | ProgramModel:
        """Laws or logits, and changes of basis."""
        if isinstance(self.model, ProjectedModel | CompiledModel):
            return self.model.model
        return self.model

    @property
    def projection(self) -> str | None:
        """What the regions are called, each kind once."""
        if not isinstance(self.model, ProjectedModel):
            return None
        kinds = {type(region).__name__.lower() for region in self.model.regions if region}
        return ", ".join(sorted(kinds)) or None


def save_copy(
    folder: Path, model: Student, about: dict[str, Any], *, overwrite: bool = False
) -> None:
    """Write a copy as a folder; what was there is replaced only once all is written.

    about: provenance, JSON types only

    Raises:
        InputError: where the folder exists and is not to be, or cannot be, replaced; for a
            student that is no low-rank model, projected, mixed or compiled one, network or program.
    """
    check_destination(folder, overwrite=overwrite)
    _write(folder, *_described(model), about)


def save_packed(
    folder: Path,
    model: LowRankModel,
    precision: Precision,
    about: dict[str, Any],
    *,
    overwrite: bool = False,
) -> None:
    """`save_copy` in fewer bytes; what reads back is the model rounded to the precision.

    Raises:
        InputError: where the folder exists and is not to be, or cannot be, replaced.
    """
    check_destination(folder, overwrite=overwrite)
    packed = pack(model, precision)
    histories = tuple(step.histories for step in model.steps)
    read_back = unpack(model.spec, packed.tensors, packed.steps, histories)
    text = _text(read_back) | {"version": _PACKED, "packed": packed.steps}
    _write(folder, packed.tensors, text, about)


def _write(
    folder: Path, tensors: dict[str, Tensor], described: dict[str, Any], about: dict[str, Any]
) -> None:
    """Both files into a draft beside the folder, then the draft into its place."""
    text = described | {"about": about | {"commit": current_commit()}}
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        draft = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    except OSError as error:
        raise InputError(f"the copy cannot be written to {folder}: {error.strerror}") from error
    try:
        safetensors.torch.save_file(tensors, draft / _TENSORS)
        (draft / _TEXT).write_text(json.dumps(text, indent=1) + "\n", encoding="utf-8")
        draft.chmod(0o755)
        _swap_in(draft, folder)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _text(model: LowRankModel | ProjectedModel | Isan) -> dict[str, Any]:
    """Language, ranks and histories, as version 1 has them."""
    inner = model.model if isinstance(model, ProjectedModel) else model
    return {
        "format": FORMAT,
        "version": 1,
        "spec": dataclasses.asdict(model.spec),
        "ranks": list(inner.ranks),
        "histories": [[list(h) for h in step.histories] for step in inner.steps],
    }


def _described(model: Student) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """A model as named tensors and JSON types; `_assembled` undoes it."""
    if isinstance(model, ProgramModel):
        return _described_program(model)
    if isinstance(model, CompiledModel):
        tensors, text = _described(model.model)
        compiled = {"precision": model.precision.value}
        own = {"spec": dataclasses.asdict(model.spec), "compiled": compiled}
        return tensors, text | own | {"version": _COMPILED}
    if isinstance(model, MixedModel):
        tensors, text = describe_mixed(model)
        return tensors, text | {"format": FORMAT, "version": _PACKED}
    inner = model.model if isinstance(model, ProjectedModel) else model
    if not isinstance(inner, LowRankModel | Isan):
        raise InputError(
            "only a low-rank model, a projected or mixed one, an input-switched affine network or a "
            f"model of linear programs can be saved, got {type(inner).__name__}"
        )
    tensors = {"first": inner.first.cpu().contiguous()}
    for t, step in enumerate(inner.steps):
        named = {"logits": step.logits} if isinstance(step, IsanStep) else {"laws": step.laws}
        for name, table in {**named, "change": step.change}.items():
            tensors[f"{name}.{t}"] = table.cpu().contiguous()
    assert isinstance(model, LowRankModel | ProjectedModel | Isan)
    text = _text(model)
    if isinstance(model, Isan):
        return tensors, text | {"version": VERSION, "space": "logits"}
    if isinstance(model, ProjectedModel):
        held, projection = describe_regions(model.regions, model.divergence)
        return tensors | held, text | {"version": 2, "projection": projection}
    return tensors, text


def _described_program(model: ProgramModel) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tables of every cut, and the settings of the programs."""
    tensors = {
        f"{name}.{t}": table.cpu().contiguous()
        for t, cut in enumerate(model.cuts)
        for name, table in cut.tables.items()
    }
    program = {"bound": model.bound, "allowed": model.allowed, "shortcut": model.shortcut}
    return tensors, {
        "format": FORMAT,
        "version": VERSION,
        "space": "logits",
        "program": program,
        "spec": dataclasses.asdict(model.spec),
        "ranks": list(model.ranks),
        "histories": [[list(h) for h in cut.histories] for cut in model.cuts],
    }


def check_destination(folder: Path, *, overwrite: bool) -> None:
    """Refuse to replace anything that is not a saved copy, or without being told to.

    Raises:
        InputError: saying what is in the way.
    """
    if folder.exists() and not (folder / _TEXT).is_file():
        raise InputError(f"{folder} exists and is no saved copy; choose another folder")
    if folder.exists() and not overwrite:
        raise InputError(
            f"{folder} holds a saved copy already; choose another folder or replace it (--overwrite)"
        )
    if there := in_the_way(folder):
        raise InputError(
            f"the copy cannot be written to {folder}: {there} is not a writable folder"
        )


def _swap_in(draft: Path, folder: Path) -> None:
    """Put the finished draft in the folder's place."""
    if not folder.exists():
        draft.rename(folder)
        return
    old = Path(tempfile.mkdtemp(prefix=f".{folder.name}.old.", dir=folder.parent))
    folder.rename(old / "copy")
    try:
        draft.rename(folder)
    except OSError:
        (old / "copy").rename(folder)
        raise
    finally:
        shutil.rmtree(old, ignore_errors=True)


def load_copy(folder: Path) -> SavedCopy:
    """Read a saved copy, refusing what this version of myna cannot vouch for.

    Raises:
        FormatError: missing files, another format or version, inconsistent shapes,
            numbers that are not finite, or numbers that changed since saving.
    """
    text = _read_text(folder)
    try:
        spec = Spec(**(text["spec"] | {"alphabet": tuple(text["spec"]["alphabet"])}))
        check_plain(folder / _TENSORS)
        tensors = safetensors.torch.load_file(folder / _TENSORS)
        for name, tensor in tensors.items():
            if not bool(torch.isfinite(tensor).all()):
                raise FormatError(
                    f"{folder / _TENSORS}: tensor {name!r} holds numbers that are not finite"
                )
        model = _assembled(spec, tensors, text)
    except FormatError:
        raise
    except InputError as error:
        raise FormatError(f"{folder}: {error}") from error
    except (KeyError, IndexError, TypeError, AttributeError, ValueError) as error:
        raise FormatError(
            f"{folder}: the saved copy lacks or garbles {error}; save it again"
        ) from error
    except (OSError, safetensors.SafetensorError) as error:
        raise FormatError(f"{folder / _TENSORS} does not read as safetensors: {error}") from error
    if model.spec.fingerprint != spec.fingerprint:
        raise FormatError(
            f"{folder}: the numbers do not match the fingerprint they were saved with; "
            "the file was changed, so learn or copy it again"
        )
    return SavedCopy(model, text.get("about", {}))


def _assembled(
    spec: Spec, tensors: dict[str, Tensor], text: dict[str, Any]
) -> LowRankModel | ProjectedModel | MixedModel | Isan | ProgramModel | CompiledModel:
    """The model, with a fingerprint of the numbers read."""
    histories = text["histories"]
    if text["version"] == VERSION:
        network = "program" not in text
        return _network(spec, tensors, histories) if network else _program(spec, tensors, text)
    if text["version"] == _PACKED and "mixed" in text:
        return read_mixed(spec, tensors, text)
    if text["version"] == _PACKED:
        named = tuple(tuple(tuple(h) for h in rows) for rows in histories)
        return unpack(spec, tensors, text["packed"], named)
    steps = tuple(
        Step(tensors[f"laws.{t}"], tensors[f"change.{t}"], tuple(tuple(h) for h in histories[t]))
        for t in range(len(text["ranks"]))
    )
    model = LowRankModel.of(spec, tensors["first"], steps)
    if text["version"] == _COMPILED:
        return CompiledModel(model, Precision(text["compiled"]["precision"]))
    if text["version"] == 1:
        return model
    return ProjectedModel.of(model, *read_regions(tensors, text["projection"]))


def _network(spec: Spec, tensors: dict[str, Tensor], histories: list[list[list[int]]]) -> Isan:
    """A network in log-probability space."""
    steps = tuple(
        IsanStep(tensors[f"logits.{t}"], tensors[f"change.{t}"], tuple(tuple(h) for h in rows))
        for t, rows in enumerate(histories)
    )
    return Isan.of(spec, tensors["first"], steps)


def _program(spec: Spec, tensors: dict[str, Tensor], text: dict[str, Any]) -> ProgramModel:
    """A model of linear programs."""
    cuts = tuple(
        CutRows(
            histories=tuple(tuple(h) for h in rows),
            **{name: tensors[f"{name}.{t}"] for name in ("own", "after", "logits", "following")},
        )
        for t, rows in enumerate(text["histories"])
    )
    program = text["program"]
    return ProgramModel(
        spec, cuts, program["bound"], program["allowed"], shortcut=program["shortcut"]
    )


def _read_text(folder: Path) -> dict[str, Any]:
    """The JSON part, with format and version checked."""
    path = folder / _TEXT
    if not path.exists():
        raise FormatError(f"{folder} is no saved copy: there is no {path}")
    text = read_json(path)
    if not isinstance(text, dict) or text.get("format") != FORMAT:
        raise FormatError(f"{path} is not a {FORMAT!r}; give a folder that `myna learn` wrote")
    if text.get("version") not in (1, 2, VERSION, _PACKED, _COMPILED):
        raise FormatError(
            f"{path} has format version {text.get('version')!r} and this myna reads 1 to {_COMPILED}; "
            "use the myna that wrote it, or learn again"
        )
    return text


def open_copy(path: Path) -> CopyTeacher:
    """A saved copy as a teacher."""
    return CopyTeacher(load_copy(path).model)


def current_commit() -> str | None:
    """The commit of the source tree myna runs from, or None outside a checkout."""
    here = Path(__file__).parent
    try:
        done = subprocess.run(  # noqa: S603 - a fixed command on our own folder
            ["git", "-C", str(here), "rev-parse", "HEAD"],  # noqa: S607
            capture_output=True,
            text=True,
            check=True,
            timeout=5,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() or None
