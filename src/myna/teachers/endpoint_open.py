"""openai:MODEL?base_url=...: from a URI to a teacher at the level that its probe confirmed.

    profile = the record in probe=FILE, or else the findings of a probe made now
    teacher = the class of the profile's access: laws, scores, top, samples

An endpoint of which not even samples can be trusted is refused with the evidence.
"""

import json
from pathlib import Path

from myna.errors import FormatError, InputError, TeacherError
from myna.teachers.api_answers import read_models
from myna.teachers.asker import Asker
from myna.teachers.endpoint import (
    EndpointLaws,
    EndpointSamples,
    EndpointScores,
    EndpointTopLaws,
    spec_of,
)
from myna.teachers.endpoint_purse import Size
from myna.teachers.endpoint_settings import endpoint_of, read_parameters, vocabulary_of
from myna.teachers.probe import probe
from myna.teachers.probe_record import Access, Profile, profile_of
from myna.teachers.transport import Refused, Transport

_CLASSES = {
    Access.LAWS: EndpointLaws,
    Access.SCORES: EndpointScores,
    Access.TOP: EndpointTopLaws,
    Access.SAMPLES: EndpointSamples,
}


def open_endpoint(name: str, parameters: dict[str, str]) -> EndpointSamples:
    """The teacher that openai:NAME?parameters names; it is probed unless probe= is given.

    Raises:
        InputError: a parameter, or a kept probe of another endpoint.
        TeacherError: where the server does not answer, or nothing of it can be trusted.
    """
    asker = asker_of(name, parameters)
    kept = parameters.get("probe")
    return teacher_of(asker, probe(asker) if kept is None else read_profile(Path(kept), asker))


def asker_of(name: str, parameters: dict[str, str]) -> Asker:
    """The line to an endpoint and its vocabulary; /v1/models is asked, nothing else."""
    found = read_parameters(parameters)
    endpoint = endpoint_of(name, found)
    transport = Transport(endpoint)
    try:
        listed = transport.ask("/models", None, Size(), read_models)
    except Refused:  # not every server lists its models
        listed = []
    entry = next((entry for entry in listed if entry["id"] == name), {})
    return Asker(endpoint, vocabulary_of(found, entry), transport)


def teacher_of(asker: Asker, profile: Profile) -> EndpointSamples:
    """The teacher of a profile's access.

    Raises:
        TeacherError: with the evidence, where nothing can be trusted.
    """
    if profile.access is Access.NOTHING:
        raise TeacherError(
            f"{profile.model} at {profile.base_url} cannot be learned from: {profile.withheld}"
        )
    return _CLASSES[profile.access](asker, profile)


def read_profile(path: Path, asker: Asker) -> Profile:
    """A profile that `myna probe --json` printed, if it is one of this endpoint.

    Raises:
        InputError: where it is of another endpoint, model or vocabulary, or no profile.
    """
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise FormatError(f"no probe can be read from {path}: {type(error).__name__}") from None
    profile = profile_of(record)
    if profile.fingerprint != spec_of(asker.endpoint, asker.vocabulary).fingerprint:
        raise InputError(
            f"{path} is the probe of another endpoint, model or vocabulary; run `myna probe` again"
        )
    return profile
