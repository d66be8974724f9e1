"""lm-evaluation-harness, both ways, beside our own figures.

python bench/harness.py     # in an environment that has lm_eval[api] and transformers

copies      learned copies as the harness's model `myna`, beside `myna score --prefix`
teachers    teachers of known rank behind the server of our tests, asked by the harness's own
            `local-completions` (token ids, echo), beside the teacher's own score
"""

import json
import os
import random
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from results import save

from myna.app.output import token_rows
from myna.teachers.stepped import SteppedTeacher
from myna.teachers.uri import open_teacher

TEACHERS = (
    "zoo:hmm?states=4&symbols=6&horizon=16",
    "zoo:parity?bits=24&noise=0.1&seed=7",
    "zoo:registers?k=3",
    "zoo:hmm?states=8&symbols=8&horizon=16",
)
STRINGS = 250
TASK = """task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {file}}}}}
test_split: test
output_type: {kind}
doc_to_text: "{text}"
doc_to_target: "{target}"
metric_list: [{{metric: {metric}}}]
"""
KINDS = (
    ("pairs", "loglikelihood", "{{context}}", "{{continuation}}", "perplexity"),
    ("texts", "loglikelihood_rolling", "", "{{text}}", "bits_per_byte"),
)


def run(words: list[Any], given: str = "") -> str:
    """Standard output of a command that must succeed."""
    offline = os.environ | {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
    done = subprocess.run(
        list(map(str, words)), input=given, capture_output=True, text=True, check=False, env=offline
    )
    if done.returncode:
        sys.exit(f"{words}: {done.stderr[-2000:]}")
    return done.stdout


def myna(*words: Any, given: str = "") -> dict:
    """One of our commands, its JSON."""
    command = [sys.executable, "-c", "from myna.app.cli import main; main()"]
    return json.loads(run([*command, *words, "--json"], given))


def rows_of(teacher: str, spare: int = 0) -> list[dict[str, str]]:
    """The teacher's own strings, each cut at a random place into context and continuation.

    spare: tokens left out at the end
    """
    model = open_teacher(teacher)
    random.seed(0)
    drawn = token_rows(model.sample(STRINGS, torch.Generator().manual_seed(11), 40))  # pyright: ignore
    rows = []
    for row in drawn:
        names = [model.spec.alphabet[token] for token in row[: len(row) - spare]]
        cut = random.randrange(1, len(names)) if len(names) > 1 else 0
        parts = {"context": names[:cut], "continuation": names[cut:], "text": names}
        said = {key: " ".join(part) for key, part in parts.items()}
        # the client tokenises context and continuation as one text
        rows.append(said | {"continuation": f" {said['continuation']}"})
    return rows


def asked(
    rows: list[dict[str, str]], work: Path, model: list[str], kinds: tuple[str, ...]
) -> dict[str, list[float]]:
    """What the harness's command line says of every row."""
    tasks, out = work / "tasks", Path(tempfile.mkdtemp(dir=work))
    tasks.mkdir(exist_ok=True)
    data = tasks / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    for name, kind, text, target, metric in KINDS:
        task = TASK.format(name=name, file=data, kind=kind, text=text, target=target, metric=metric)
        (tasks / f"{name}.yaml").write_text(task)
    command = [sys.executable, "-m", "myna.app.harness", *model, "--tasks", ",".join(kinds)]
    run([*command, "--include_path", tasks, "--output_path", out, "--log_samples"])
    said = {}
    for name in kinds:
        (path,) = out.rglob(f"samples_{name}_*.jsonl")
        samples = sorted(map(json.loads, path.open()), key=lambda sample: sample["doc_id"])
        answers = [sample["filtered_resps"][0] for sample in samples]
        said[name] = [float(a[0] if isinstance(a, list) else a) for a in answers]
    return said


def ours(rows: list[dict[str, str]], model: Any) -> dict[str, list[float]]:
    """The same by `myna score`: a continuation as the difference of two prefixes."""

    def scored(key: str) -> list[float]:
        lines = "".join(row[key] + "\n" for row in rows if row[key])
        found = iter(myna("score", model, "-", "--prefix", given=lines)["log_probs_nats"])
        return [next(found) if row[key] else 0.0 for row in rows]

    texts, contexts = scored("text"), scored("context")
    return {"pairs": [t - c for t, c in zip(texts, contexts, strict=True)], "texts": texts}


def furthest(said: dict[str, list[float]], own: dict[str, list[float]]) -> dict[str, float]:
    """The largest difference of each kind of question, nats."""
    return {
        kind: max(abs(a - b) for a, b in zip(said[kind], own[kind], strict=True)) for kind in said
    }


def copy_row(teacher: str, work: Path) -> dict[str, Any]:
    """Learn, evaluate by the harness, compare."""
    folder = work / "copy"
    myna("learn", teacher, "-o", folder)
    rows = rows_of(teacher)
    said = asked(
        rows, work, ["--model", "myna", "--model_args", f"student={folder}"], ("pairs", "texts")
    )
    return {
        "direction": "a copy, asked by the harness",
        "teacher": teacher,
        "strings": len(rows),
        "mean_log_prob_nats": sum(said["texts"]) / len(rows),
        "largest_difference_nats": furthest(said, ours(rows, folder)),
    }


def tokenizer_of(teacher: SteppedTeacher, folder: Path) -> None:
    """The server's vocabulary as a transformers tokenizer: words between blanks, <s> before."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    names = (*teacher.spec.alphabet, "<s>")
    words = {name: token for token, name in enumerate(names)}
    plain = Tokenizer(models.WordLevel(words, unk_token="<s>"))
    plain.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    plain.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", words["<s>"])]
    )
    PreTrainedTokenizerFast(tokenizer_object=plain, bos_token="<s>").save_pretrained(folder)


def teacher_row(name: str, work: Path) -> dict[str, Any]:
    """Serve, evaluate by the harness's client, compare with the teacher's own score."""
    sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
    from fake_model import FakeModel
    from server import serving

    teacher = open_teacher(name)
    assert isinstance(teacher, SteppedTeacher)
    tokenizer_of(teacher, work / "tokenizer")
    # the client has one more token generated and drops it, so there must be room for one
    rows = [row for row in rows_of(name, spare=1) if row["context"] and row["continuation"].strip()]
    said = {}
    with serving(FakeModel(teacher)) as url:
        settings = f"base_url={url}/completions,model=fake,tokenizer={work / 'tokenizer'}"
        settings += ",tokenizer_backend=huggingface,max_length=128"
        # a whole text is sent with <s> in any case, a context only where that is asked for
        for kind, begin in (("pairs", ",add_bos_token=True"), ("texts", "")):
            model = ["--model", "local-completions", "--model_args", settings + begin]
            said |= asked(rows, work, model, (kind,))
    return {
        "direction": "a teacher, asked by the harness's local-completions",
        "teacher": name,
        "strings": len(rows),
        "mean_log_prob_nats": sum(said["texts"]) / len(rows),
        "largest_difference_nats": furthest(said, ours(rows, name)),
    }


def main() -> None:
    found = []
    for row_of in (copy_row, teacher_row):
        for teacher in TEACHERS:
            with tempfile.TemporaryDirectory() as scratch:
                found.append(row_of(teacher, Path(scratch)))
                print(found[-1], flush=True)
    packages = {name: version(name) for name in ("lm_eval", "transformers", "datasets")}
    save("harness", {"packages": packages, "runs": found})


if __name__ == "__main__":
    main()
