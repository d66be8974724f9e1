"""Habits of real servers that the probe met: none may be taken for another fault."""

import pytest
from fake_model import FakeModel, Refusal
from server import serving

from myna.teachers.asker import Asker
from myna.teachers.endpoint_settings import endpoint_of, read_parameters, vocabulary_of
from myna.teachers.probe import probe
from myna.teachers.probe_record import Access, Verdict
from myna.teachers.transport import Transport
from myna.teachers.uri import open_teacher

NAMES = "0,1,2,3,<s>"


class StrictFields(FakeModel):
    """As transformers serve: a field that it does not know is refused."""

    def completions(self, body):
        if "return_tokens_as_token_ids" in body:
            raise Refusal(422, "unexpected field")
        return super().completions(body)


class IdsBreak(FakeModel):
    """As llama-cpp-python: token ids end in a 500, an empty list passes as no text."""

    def completions(self, body):
        if body["prompt"] and isinstance(body["prompt"], list):
            raise Refusal(500, "internal error")
        return super().completions(body | {"prompt": body["prompt"] or ""})


def probed(model, **more):
    with serving(model) as url:
        settings = read_parameters(
            {"base_url": url, "tokens": NAMES, "horizon": "6", "retries": "1", **more}
        )
        endpoint = endpoint_of("fake", settings)
        return probe(Asker(endpoint, vocabulary_of(settings, {}), Transport(endpoint)))


@pytest.fixture(scope="module")
def teacher():
    return open_teacher("zoo:hmm?states=3&symbols=4&horizon=6")


def test_a_refused_field_is_left_out(teacher):
    profile = probed(StrictFields(teacher), begin="4")
    assert profile.access is Access.LAWS and not profile.faults


def test_token_ids_that_break_a_server_are_not_taken(teacher):
    for begin in ("", "4"):
        profile = probed(IdsBreak(teacher), begin=begin)
        assert not profile.ids
        assert profile.finding("token_ids").verdict is Verdict.NOT_OFFERED
        assert profile.finding("logprobs").verdict is Verdict.OK


def test_an_opening_stands_before_every_text(teacher):
    opened = probed(IdsBreak(teacher), begin="4", opening="2", horizon="4")
    for question in ("alignment", "frequencies", "temperature"):
        assert opened.finding(question).verdict is Verdict.OK
    assert opened.fingerprint != probed(IdsBreak(teacher), begin="4", horizon="4").fingerprint
