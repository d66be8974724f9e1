"""Continuations by enumeration, and copies asked in text as lm-evaluation-harness asks."""

import importlib.util
import itertools
import json
import math
import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from fake_model import FakeModel
from hypothesis import given
from hypothesis import strategies as st
from server import serving

from myna.app.harness import TextModel, harness_model, tokens_of
from myna.errors import InputError
from myna.evaluate.continuations import complete_each, complete_greedily, score_continuations
from myna.lowrank.student import strings
from myna.spec import Spec
from myna.teachers.oracle import Stream
from myna.teachers.prefixes import Prefixes
from myna.teachers.uri import open_teacher

HMM = "zoo:hmm?states=3&symbols=4&horizon=6"
REGISTERS = (
    "zoo:registers?k=1"  # flip0 read0 0 1 <stop>; a shown bit follows a read and nothing else
)
WORDS = st.lists(st.integers(0, 3), max_size=6)


@given(st.lists(st.tuples(WORDS, st.integers(0, 6)), min_size=1, max_size=8))
def test_a_continuation_is_the_difference_of_two_prefixes(rows):
    """And greedy as the law at each of its places says, one prefix at a time."""
    teacher = open_teacher(HMM)
    words = [word for word, _ in rows]
    starts = [min(start, len(word)) for word, start in rows]
    found = score_continuations(teacher, strings(words), torch.tensor(starts))
    contexts = [word[:start] for word, start in zip(words, starts, strict=True)]
    difference = teacher.score(strings(words)) - teacher.score(strings(contexts))
    assert torch.allclose(found.log_probs, difference, atol=1e-12, rtol=0)
    for word, start, greedy in zip(words, starts, found.greedy.tolist(), strict=True):
        likeliest = [
            int(teacher.laws(Prefixes.of([word[:t]])).argmax()) for t in range(start, len(word))
        ]
        assert greedy == (word[start:] == likeliest)


def test_continuations_of_a_context_are_a_law_and_one_is_greedy():
    teacher = open_teacher(HMM)
    context = [2, 0, 3]
    every = [context + list(rest) for rest in itertools.product(range(4), repeat=3)]
    scored = score_continuations(teacher, strings(every), torch.full((64,), 3))
    assert float(scored.log_probs.exp().sum()) == pytest.approx(1, abs=1e-12)
    assert int(scored.greedy.sum()) == 1
    best = every[int(scored.greedy.nonzero()[0, 0])]
    greedy = Prefixes(*complete_greedily(teacher, Prefixes.of([context]), 9)).rows()
    assert list(greedy[0]) == best[3:]


def test_impossible_continuations_and_contexts():
    model = open_teacher(REGISTERS)
    rows = strings([[1, 0, 0, 4], [0, 1, 3]])  # a flipped bit reads 1
    scored = score_continuations(model, rows, torch.tensor([1, 1]))
    assert scored.log_probs[0] == -math.inf and math.isfinite(scored.log_probs[1])
    assert not scored.greedy[0]
    with pytest.raises(InputError, match=r"probability zero.*row 1, tokens \[2, 0\]"):
        score_continuations(model, strings([[0, 1, 3], [2, 0]]), torch.tensor([1, 1]))


def test_what_is_whole_is_followed_by_nothing():
    model = open_teacher(REGISTERS)
    prefixes = Prefixes.of([[0, 4], [0]])
    for made in (
        complete_greedily(model, prefixes, 3),
        complete_each(model, prefixes, 3, Stream("x")),
    ):
        assert made.lengths[0] == 0 and 1 <= made.lengths[1] <= 3
    full = Prefixes.of([[0] * 6])
    assert complete_greedily(open_teacher(HMM), full, 3).lengths.tolist() == [0]


def test_repeated_contexts_get_their_next_draws():
    teacher = open_teacher(HMM)
    stream = Stream("harness", 3)
    rows = [[0], [1], [0], [0], [1]]
    made = Prefixes(*complete_each(teacher, Prefixes.of(rows), 5, stream)).rows()
    for row, draw, came in zip(rows, (0, 0, 1, 2, 1), made, strict=True):
        one = teacher.complete(Prefixes.of([row]), 1, stream=stream, max_tokens=5, first_draw=draw)
        assert came == tuple(one.tokens[0, 0, : int(one.lengths[0, 0])].tolist())


LETTERS = Spec(("a", "b", "<stop>"), 2, None, "x")
WITH_BLANK = Spec(("a", " ", "\n"), None, None, "x")


def test_text_is_read_by_token_names():
    names = open_teacher(REGISTERS).spec
    assert tokens_of("flip0 read0 1", names) == [0, 1, 3]
    assert tokens_of(" flip0\nread0", names) == [0, 1]
    assert tokens_of("read0 01 <stop>", names) == [1, 2, 3, 4]
    assert tokens_of("ab a ba", LETTERS) == [0, 1, 0, 1, 0]
    assert tokens_of("ab <stop>", LETTERS) == [0, 1, 2]
    assert tokens_of("a  a\n", WITH_BLANK) == [0, 1, 1, 0, 2]
    assert tokens_of("", LETTERS) == []


def test_text_that_cannot_be_read_is_named():
    with pytest.raises(InputError, match=r"holds 'c', which is no token.*'a', 'b', '<stop>'"):
        tokens_of("ab c", LETTERS)
    with pytest.raises(InputError, match="words cannot be told apart"):
        tokens_of("a", Spec(("a", " the"), None, None, "x"))


def test_likelihoods_do_not_depend_on_the_batch():
    teacher = open_teacher(HMM)
    pairs = [("0 1", "2"), ("", "3 3 0"), ("012", "3"), ("3", "")]
    alone = [TextModel(teacher).likelihoods([pair])[0] for pair in pairs]
    assert TextModel(teacher).likelihoods(pairs) == TextModel(teacher, rows=2).likelihoods(pairs)
    assert [x for x, _ in TextModel(teacher).likelihoods(pairs)] == pytest.approx(
        [x for x, _ in alone], abs=1e-12
    )
    assert alone[3] == (0.0, True)


def test_generation_is_cut_before_the_first_end():
    text = TextModel(open_teacher(HMM))
    whole = text.generate(["01"], {"max_gen_toks": 4})[0]
    assert len(whole) == 4
    assert (
        text.generate(["01"], {"max_gen_toks": 4, "until": [whole[2], "x"]})[0]
        == whole[: whole.index(whole[2])]
    )
    assert text.generate(["01"], {"max_gen_toks": 4, "until": whole[0]}) == [""]
    named = TextModel(open_teacher(REGISTERS)).generate(["flip0"], {"max_gen_toks": 3})[0]
    assert set(named.split()) <= {"flip0", "read0", "0", "1"}


def test_generation_refuses_what_it_would_ignore():
    text = TextModel(open_teacher(HMM))
    with pytest.raises(InputError, match="asks for 'top_p'"):
        text.generate(["0"], {"top_p": 0.9})
    with pytest.raises(InputError, match=r"at temperature 1, the task asks for 0\.7"):
        text.generate(["0"], {"do_sample": True, "temperature": 0.7})
    drawn = text.generate(["0"] * 40, {"do_sample": True, "max_gen_toks": 5})
    assert len(set(drawn)) > 10 and set("".join(drawn)) <= set("0123")


class Base:
    """What the harness's abstract class does for ours."""


def asked(*rows):
    return [SimpleNamespace(args=row) for row in rows]


def test_the_model_answers_the_three_questions_in_their_order():
    model = harness_model(Base)(HMM, batch_size=1, device="cuda:0")
    scored = model.loglikelihood(asked(("0", "1"), ("1 2", "3 0")))
    assert scored == TextModel(open_teacher(HMM)).likelihoods([("0", "1"), ("1 2", "3 0")])
    rolling = model.loglikelihood_rolling(asked(("0123",)))
    assert rolling[0] == pytest.approx(float(open_teacher(HMM).score(strings([[0, 1, 2, 3]]))[0]))
    short, long = {"max_gen_toks": 1}, {"max_gen_toks": 3}
    made = model.generate_until(asked(("0", long), ("0", short), ("1", long)))
    assert [len(text) for text in made] == [3, 1, 3] and made[0][0] == made[1]


def run(words, **how):
    return subprocess.run(words, capture_output=True, text=True, check=False, timeout=300, **how)


PAIRS = [("0 1", "2 3"), ("3", "0 1 2 3 0"), ("", "1")]
TASK = """task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {file}}}}}
test_split: test
output_type: {kind}
doc_to_text: "{text}"
doc_to_target: "{target}"
metric_list: [{{metric: {metric}}}]
"""


@pytest.mark.skipif(
    importlib.util.find_spec("lm_eval") is None,
    reason="lm-evaluation-harness is not installed here: pip install lm_eval",
)
def test_the_harness_command_line_says_what_myna_score_says(tmp_path):
    copy, tasks = tmp_path / "copy", tmp_path / "tasks"
    offline = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "hf")}
    myna = [sys.executable, "-c", "from myna.app.cli import main; main()"]
    done = run([*myna, "learn", HMM, "-o", copy])
    assert done.returncode == 0, done.stderr
    tasks.mkdir()
    rows = [{"context": c, "continuation": y, "text": f"{c} {y}".strip()} for c, y in PAIRS]
    data = tasks / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    for name, kind, text, target, metric in (
        ("pairs", "loglikelihood", "{{context}}", "{{continuation}}", "perplexity"),
        ("texts", "loglikelihood_rolling", "", "{{text}}", "bits_per_byte"),
    ):
        task = TASK.format(name=name, file=data, kind=kind, text=text, target=target, metric=metric)
        (tasks / f"{name}.yaml").write_text(task)
    options = {"--model": "myna", "--model_args": f"student={copy}", "--tasks": "pairs,texts"}
    folders = {"--include_path": tasks, "--output_path": tmp_path / "out"}
    words = [word for pair in (options | folders).items() for word in pair]
    done = run([sys.executable, "-m", "myna.app.harness", *words, "--log_samples"], env=offline)
    assert done.returncode == 0, done.stderr
    said = {
        name: [
            sample["filtered_resps"][0] for sample in map(json.loads, path.read_text().splitlines())
        ]
        for name in ("pairs", "texts")
        for path in (tmp_path / "out").rglob(f"samples_{name}_*.jsonl")
    }
    lines = "".join(f"{row['text']}\n" for row in rows) + "0 1\n3\n"
    scored = run([*myna, "score", copy, "-", "--prefix", "--json"], input=lines)
    ours = json.loads(scored.stdout)["log_probs_nats"]
    assert [float(value) for value in said["texts"]] == pytest.approx(ours[:3], abs=1e-9)
    given = [ours[0] - ours[3], ours[1] - ours[4], ours[2]]
    assert [float(value[0]) for value in said["pairs"]] == pytest.approx(given, abs=1e-9)


@pytest.mark.skipif(
    importlib.util.find_spec("lm_eval") is None or importlib.util.find_spec("tenacity") is None,
    reason="lm-evaluation-harness is not installed here: pip install 'lm_eval[api]' transformers",
)
def test_the_harness_client_says_what_the_teacher_says(tmp_path):
    """Its local-completions over our test server: token ids, echo, one token more, dropped."""
    tokenizers = pytest.importorskip("tokenizers")
    transformers = pytest.importorskip("transformers")
    teacher = open_teacher(HMM)
    words = {name: i for i, name in enumerate((*teacher.spec.alphabet, "<s>"))}
    plain = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="<s>"))
    plain.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    plain.post_processor = tokenizers.processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", words["<s>"])]
    )
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=plain, bos_token="<s>")
    fast.save_pretrained(tmp_path / "tokenizer")
    rows = [("0 1", " 2 3"), ("3", " 0 1 2"), ("2 2 1", " 0")]
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps({"context": c, "continuation": y}) + "\n" for c, y in rows))
    task = TASK.format(
        name="pairs",
        file=data,
        kind="loglikelihood",
        text="{{context}}",
        target="{{continuation}}",
        metric="perplexity",
    )
    (tmp_path / "pairs.yaml").write_text(task)
    with serving(FakeModel(teacher)) as url:
        settings = f"base_url={url}/completions,model=fake,tokenizer={tmp_path / 'tokenizer'}"
        settings += ",tokenizer_backend=huggingface,max_length=64,add_bos_token=True"
        options = {"--model": "local-completions", "--model_args": settings, "--tasks": "pairs"}
        folders = {"--include_path": tmp_path, "--output_path": tmp_path / "out"}
        words = [word for pair in (options | folders).items() for word in pair]
        offline = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "hf")}
        done = run([sys.executable, "-m", "lm_eval", *words, "--log_samples"], env=offline)
    assert done.returncode == 0, done.stderr
    (path,) = (tmp_path / "out").rglob("samples_pairs_*.jsonl")
    said = [json.loads(line)["filtered_resps"][0][0] for line in path.read_text().splitlines()]
    scored = TextModel(teacher).likelihoods(rows)
    assert [float(value) for value in said] == pytest.approx([x for x, _ in scored], abs=1e-9)
