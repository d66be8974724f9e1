"""Answers are read strictly: as the format says, or refused; fuzzed for anything else."""

import itertools
import json
import math

import fuzz
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from myna.teachers.api_answers import MalformedAnswer, read_chat, read_completions, read_models
from myna.teachers.asker import Question


def test_a_completions_answer():
    answer = read_completions(json.dumps(fuzz.good_completions()), 2)
    assert (answer.model, answer.sent, answer.received) == ("m", 1, 2)
    choice = answer.choices[0]
    assert choice.names == ("a", "token_id:1") and choice.log_probs == (None, -0.5)
    assert choice.tops[0] is None
    assert dict(choice.tops[1]) == {"token_id:1": -0.5, "a": -0.9, "?": -math.inf}
    reply = fuzz.READER.read(choice, Question(((),)))
    assert reply.tokens == (0, 1)
    assert reply.laws[1].log_probs == {1: -0.5, 0: -0.9} and reply.laws[1].unreadable == 0


def test_a_chat_answer():
    choice = read_chat(json.dumps(fuzz.good_chat()), 1).choices[0]
    assert choice == ("a", "stop", ("a",), (-0.1,), ((("a", -0.1),),))


def test_choices_come_in_the_order_of_their_index():
    record = fuzz.good_completions()
    record["choices"][0]["text"], record["choices"][1]["text"] = "first", "second"
    record["choices"].reverse()
    found = read_completions(json.dumps(record))
    assert [choice.text for choice in found.choices] == ["first", "second"]


def test_a_name_that_comes_twice_is_seen():
    text = json.dumps(fuzz.good_completions()).replace('"a": -0.9', '"token_id:1": -0.9')
    choice = read_completions(text).choices[0]
    assert [name for name, _ in choice.tops[1]] == ["token_id:1", "token_id:1", "?"]
    law = fuzz.READER.read(choice, Question(((),))).laws[1]
    assert law.log_probs == {1: -0.5} and law.unreadable == pytest.approx(math.exp(-0.9))


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda r: r.pop("choices"), "choices must be a list"),
        (lambda r: r["choices"].clear(), "at least one choice"),
        (lambda r: r["choices"].pop(), "2 choices were asked for, and 1 came"),
        (lambda r: r["choices"][1].update(index=0), "numbered 0..1, each once"),
        (lambda r: r["choices"][1].update(index=7), "numbered 0..1, each once"),
        (lambda r: r["choices"][0].update(index=True), "index must be a whole number"),
        (lambda r: r["choices"][0].update(text=None), "text must be text"),
        (lambda r: r["choices"][0]["logprobs"]["tokens"].pop(), "each token needs one entry"),
        (lambda r: r["choices"][0]["logprobs"].update(token_logprobs=["x", 1]), "must be a number"),
        (lambda r: r["usage"].update(prompt_tokens=-1), "prompt_tokens must be a whole number"),
    ],
)
def test_what_is_no_answer_is_named(change, told):
    record = fuzz.good_completions()
    change(record)
    expected = None if "at least" in told else 2
    with pytest.raises(MalformedAnswer, match=told):
        read_completions(json.dumps(record), expected)


@pytest.mark.parametrize(
    "text",
    ["", "nonsense", "{", "[1]", '{"choices": NaN}', "[" * 100_000, '{"a": 1, "a": 2}', "1" * 9999],
)
def test_what_is_no_json_object_is_refused(text):
    for read in (read_completions, read_chat, read_models):
        with pytest.raises(MalformedAnswer):
            read(text)


@pytest.mark.parametrize("kind", fuzz.GOOD)
def test_good_answers_survive(kind):
    assert fuzz.survive(kind, json.dumps(fuzz.GOOD[kind][0]()))


@pytest.mark.parametrize("kind", fuzz.GOOD)
def test_nearly_answers(kind):
    """1,500 of each kind here, many more in bench/fuzz_answers.py; both outcomes occur."""
    outcomes = [fuzz.survive(kind, fuzz.nearly(kind, seed)) for seed in range(1500)]
    assert 0 < sum(outcomes) < len(outcomes)


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(["choices", "index", "text", "logprobs", "tokens", "data", "message"])
            | st.text(max_size=3),
            inner,
            max_size=4,
        )
    ),
    max_leaves=20,
)


@given(_JSON.map(json.dumps) | st.text(max_size=60))
@example("\ud800")
def test_any_text(text):
    for kind in fuzz.GOOD:
        fuzz.survive(kind, text)


@given(st.text("ab", max_size=12))
def test_texts_are_split_only_where_there_is_one_way(text):
    """Against all ways, written out; the vocabulary a, b, ab makes most texts ambiguous."""
    found = (
        [
            row
            for length in range(len(text) + 1)
            for row in itertools.product(range(3), repeat=length)
            if length <= 6 and "".join(("a", "b", "ab")[t] for t in row) == text
        ]
        if len(text) <= 6
        else None
    )
    if found is not None:
        assert fuzz.READER.split(text) == (found[0] if len(found) == 1 else None)
    else:
        split = fuzz.READER.split(text)
        assert ("ab" in text) == (split is None)
