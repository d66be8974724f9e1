"""The probe against a server that commits each fault: named, alone, and never on an honest one."""

import itertools
import json
import math

import catalogue
import pytest
import torch
from fake_model import FakeModel, Fault
from server import serving

from myna.app.output import plain
from myna.errors import FormatError, InputError, TeacherError
from myna.learn.exact import learn_exact
from myna.learn.report import ExactSettings
from myna.teachers.endpoint_open import asker_of, open_endpoint, teacher_of
from myna.teachers.exact_tests import LEVEL, binomial_p_value, worst_disagreement
from myna.teachers.function import FunctionTeacher
from myna.teachers.ledger import Ledger
from myna.teachers.oracle import Laws, Samples, TopLaws
from myna.teachers.probe import probe
from myna.teachers.probe_record import Access, Verdict, profile_of
from myna.teachers.uri import open_teacher

HMM = open_teacher("zoo:hmm?states=3&symbols=4&horizon=6")
STOPPING = catalogue.function_teacher(horizon=6)

# fault -> the one question at fault, its answer, and the access that stays safe
NAMED = {
    Fault.SHIFTED_PROMPT: ("alignment", "off by one", Access.SAMPLES),
    Fault.ECHO_IGNORED: ("echo", "ignored", Access.LAWS),
    Fault.LOGPROBS_IGNORED: ("logprobs", "ignored", Access.SAMPLES),
    Fault.N_IGNORED: ("n", "ignored", Access.LAWS),
    Fault.COPIED_N: ("n", "copied", Access.LAWS),
    Fault.COLLIDING: ("collisions", None, Access.SAMPLES),
    Fault.UNNORMALISED: ("sum", "0.951229", Access.SAMPLES),
    Fault.TEMPERED_DRAWS: ("frequencies", "disagree", Access.SAMPLES),
    Fault.AFTER_TEMPERATURE: ("temperature", "after", Access.LAWS),
    Fault.AFTER_TOP_P: ("top_p", "after", Access.LAWS),
    Fault.AFTER_BIAS: ("logit_bias", "after", Access.LAWS),
    Fault.BATCH_DEPENDENT: ("batch", "dependent", Access.LAWS),
    Fault.BATCH_SHUFFLED: ("batch", "dependent", Access.LAWS),
    Fault.RANDOM_AT_ZERO: ("deterministic", "random", Access.LAWS),
    Fault.UNSTEADY_LAWS: ("steady", None, Access.SAMPLES),
    Fault.GREEDY: ("random", "not random", Access.NOTHING),
    Fault.SEED_IGNORED: ("seed", "ignored", Access.LAWS),
    Fault.IDS_MISREAD: ("token_ids", "misread", Access.LAWS),
    Fault.K_CAPPED: ("k", "2", Access.SCORES),
    Fault.STOP_HIDDEN: ("stop", "hidden", Access.NOTHING),
    Fault.MAX_TOKENS_IGNORED: ("max_tokens", "ignored", Access.NOTHING),
    Fault.OTHER_MODEL: ("model", "cheaper", Access.NOTHING),
}


def probed(teacher, *faults, **parameters):
    with serving(FakeModel(teacher, faults)) as url:
        return probe(asker_of("fake", {"base_url": url, **parameters}))


@pytest.mark.parametrize("teacher", [HMM, STOPPING], ids=["horizon", "stop and horizon"])
def test_honest_servers_are_not_accused(teacher):
    profile = probed(teacher)
    assert profile.access is Access.LAWS and not profile.faults and profile.withheld == ""
    assert profile.ids and profile.many and profile.addressed and profile.batch == 32
    assert profile.k == teacher.spec.num_tokens
    untold = {f.question for f in profile.findings if f.verdict is Verdict.UNKNOWN}
    assert not untold
    absent = {f.question for f in profile.findings if f.verdict is Verdict.NOT_OFFERED}
    assert absent == ({"stop"} if teacher.spec.stop is None else set())


@pytest.mark.parametrize("fault", NAMED, ids=lambda fault: fault.name)
def test_each_fault_is_named_alone(fault):
    question, answer, access = NAMED[fault]
    profile = probed(STOPPING if fault is Fault.STOP_HIDDEN else HMM, fault)
    assert [f.question for f in profile.faults] == [question]
    if answer is not None:
        assert profile.faults[0].answer == answer
    assert profile.access is access
    assert profile.faults[0].evidence


@pytest.mark.parametrize(
    ("fault", "question"), [(Fault.IDS_REFUSED, "token_ids"), (Fault.BATCH_REFUSED, "batch")]
)
def test_what_is_refused_is_not_offered(fault, question):
    profile = probed(HMM, fault)
    assert not profile.faults and profile.access is Access.LAWS
    assert profile.finding(question).verdict is Verdict.NOT_OFFERED
    assert profile.ids is (fault is not Fault.IDS_REFUSED)
    assert profile.batch == (1 if fault is Fault.BATCH_REFUSED else 32)


def test_all_faults_are_accounted_for():
    unnamed = {Fault.IDS_REFUSED, Fault.BATCH_REFUSED, Fault.STRICT_FIELDS}
    assert set(NAMED) | unnamed == set(Fault)


def test_servers_that_refuse_unknown_fields_are_asked_without():
    profile = probed(HMM, Fault.STRICT_FIELDS)
    assert not profile.faults and profile.access is Access.LAWS and profile.ids
    assert not profile.named


def test_silent_greedy_servers_are_not_learned_from():
    """Without log-probabilities nobody can say that equal draws are a fault; nor that they are not."""
    profile = probed(HMM, Fault.GREEDY, Fault.LOGPROBS_IGNORED)
    assert profile.finding("random").verdict is Verdict.UNKNOWN
    assert profile.access is Access.NOTHING and "are all equal" in profile.withheld
    # of a teacher of one string, equal draws are as they should be
    sure = FunctionTeacher(lambda _: [1.0, 0.0], ("a", "b"), horizon=4)
    assert probed(sure).finding("random").answer == "as likely"


def test_pairs_of_faults_leave_no_more_access_than_each():
    levels = list(Access)
    pairs = [
        (Fault.SHIFTED_PROMPT, Fault.SEED_IGNORED),
        (Fault.IDS_REFUSED, Fault.TEMPERED_DRAWS),
    ]
    for pair in pairs:
        both = probed(HMM, *pair).access
        assert all(levels.index(both) >= levels.index(NAMED[f][2]) for f in pair if f in NAMED), (
            pair
        )


def test_a_capped_server_without_scores_is_a_top_k_teacher():
    profile = probed(HMM, Fault.K_CAPPED, Fault.ECHO_IGNORED)
    assert profile.access is Access.TOP and profile.k == 2


def test_where_nothing_can_be_told_nothing_is_said():
    """Laws that never change hide misread ids, off-by-one prompts and shuffled batches."""
    flat = open_teacher("zoo:unigram?symbols=3&horizon=5")
    for fault in (Fault.SHIFTED_PROMPT, Fault.BATCH_SHUFFLED):
        profile = probed(flat, fault)
        assert not profile.faults
        for question in ("token_ids", "alignment", "batch"):
            assert profile.finding(question).verdict is Verdict.UNKNOWN
        assert profile.batch == 1
    misread = probed(flat, Fault.IDS_MISREAD)
    assert [(f.question, f.answer) for f in misread.faults] == [("echo", "other tokens")]


@pytest.mark.parametrize(
    ("fault", "access"),
    [(None, Access.LAWS), (Fault.TEMPERED_DRAWS, Access.SAMPLES), (Fault.K_CAPPED, Access.TOP)],
)
def test_chat_endpoints(fault, access):
    profile = probed(HMM, *([fault] if fault else []), endpoint="chat")
    assert profile.access is access
    for question in ("token_ids", "echo", "alignment", "batch"):
        assert profile.finding(question).verdict is Verdict.NOT_OFFERED


def test_the_class_tells_the_level():
    wanted = {
        None: (True, True),
        Fault.K_CAPPED: (True, True),  # whole laws from prompt scores
        Fault.SHIFTED_PROMPT: (False, False),
    }
    for fault, (laws, tops) in wanted.items():
        with serving(FakeModel(HMM, [fault] if fault else [])) as url:
            teacher = open_endpoint("fake", {"base_url": url})
        assert isinstance(teacher, Samples)
        assert (isinstance(teacher, Laws), isinstance(teacher, TopLaws)) == (laws, tops)


def test_misaligned_endpoints_are_refused_with_the_evidence():
    with serving(FakeModel(HMM, [Fault.SHIFTED_PROMPT])) as url:
        teacher = open_endpoint("fake", {"base_url": url})
        with pytest.raises(TeacherError, match="alignment: entry i of the prompt is log p") as told:
            learn_exact(Ledger(teacher), ExactSettings(), torch.Generator().manual_seed(0))
        assert teacher.profile.finding("alignment").evidence in str(told.value)


def test_untrustworthy_endpoints_do_not_open():
    with (
        serving(FakeModel(HMM, [Fault.OTHER_MODEL])) as url,
        pytest.raises(TeacherError, match="cannot be learned from: model: 'fake' was asked"),
    ):
        open_endpoint("fake", {"base_url": url})


def test_a_probe_is_kept_and_read_again(tmp_path):
    with serving(FakeModel(HMM)) as url:
        asker = asker_of("fake", {"base_url": url})
        profile = probe(asker)
        text = json.dumps(plain(profile))
        assert profile_of(json.loads(text)) == profile
        kept = tmp_path / "probe.json"
        kept.write_text(text)
        before = asker.transport.traffic.asked
        teacher = open_endpoint("fake", {"base_url": url, "probe": str(kept)})
        assert teacher.profile == profile and asker.transport.traffic.asked == before
        with pytest.raises(InputError, match="another endpoint"):
            open_endpoint("fake", {"base_url": url, "probe": str(kept), "horizon": "5"})
        for bad in ('{"model": 1}', "[]", "nonsense", text.replace('"ok"', '"fine"')):
            kept.write_text(bad)
            with pytest.raises(FormatError):
                open_endpoint("fake", {"base_url": url, "probe": str(kept)})


def test_addressed_draws_cannot_be_demanded_of_a_deaf_server():
    with serving(FakeModel(HMM, [Fault.SEED_IGNORED])) as url:
        asker = asker_of("fake", {"base_url": url, "draws": "addressed"})
        with pytest.raises(TeacherError, match="does not honour seeds"):
            teacher_of(asker, probe(asker))


def test_binomial_p_values_by_enumeration():
    for n, p in itertools.product((1, 4, 7), (0.1, 0.5, 0.83)):
        law = [math.comb(n, k) * p**k * (1 - p) ** (n - k) for k in range(n + 1)]
        for k in range(n + 1):
            expected = sum(mass for mass in law if mass <= law[k] * (1 + 1e-9))
            assert binomial_p_value(k, n, p) == pytest.approx(min(1.0, expected), rel=1e-9)
    assert binomial_p_value(1, 5, 0.0) == 0 and binomial_p_value(0, 5, 0.0) == 1
    assert binomial_p_value(4, 5, 1.0) == 0 and binomial_p_value(5, 5, 1.0) == 1


def test_the_family_of_tests_keeps_its_level():
    """P(some test fails) for 3 tokens, 12 draws, by enumeration of all counts, at level .05."""
    law, n, level = (0.5, 0.3, 0.2), 12, 0.05
    wrong = 0.0
    for a in range(n + 1):
        for b in range(n + 1 - a):
            counts = torch.tensor([a, b, n - a - b])
            found = worst_disagreement(counts, torch.tensor(law).double(), n, 3, level)
            ways = math.comb(n, a) * math.comb(n - a, b)
            if found.fails:
                wrong += ways * law[0] ** a * law[1] ** b * law[2] ** (n - a - b)
    assert 0 < wrong <= level
    assert LEVEL == 1e-6
