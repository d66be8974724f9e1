"""Laws per second of vLLM on the prefixes of transformers_speed.py, beside ours in the same run.

    python bench/vllm_speed.py [PYTHON_WITH_VLLM]      (tools/servers/install.sh makes one)

vLLM runs in its own interpreter, without HTTP, prefix caching on, eager, one thread: each of
the learner's batches is one call of `generate` with one new token and all log-probabilities.
Start-up is not counted. The two take turns, three rounds each; the median counts.

vLLM's attention on a CPU refuses heads of 8 numbers, which stories260k has. It gets the same
function with heads of 32: each head's queries and keys are spread out over the rotary pairs
of the same frequency, the values filled up with zeros, and the queries doubled because
scores are divided by sqrt(32). Ours gets the original.
"""

import json
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from results import save
from safetensors.torch import load_file, save_file
from story_opening import TOKENS
from transformers_speed import asked, timed

from myna.teachers.transformer import TransformerTeacher
from myna.teachers.uri import open_teacher

ROOT = Path(__file__).parents[1]
ROUNDS = 3

_WORKER = """
import json, sys, time
from vllm import LLM, SamplingParams
folder, size = sys.argv[1], int(sys.argv[2])
llm = LLM(model=folder, dtype="float32", enforce_eager=True, enable_prefix_caching=True,
          max_num_seqs=256, max_logprobs=size, disable_log_stats=True)
wanted = SamplingParams(max_tokens=1, logprobs=size, temperature=1.0)
print("ready", file=sys.stderr, flush=True)
for line in sys.stdin:
    batches = json.loads(line)
    llm.reset_prefix_cache()
    began, laws = time.perf_counter(), []
    for batch in batches:
        out = llm.generate([{"prompt_token_ids": row} for row in batch], wanted, use_tqdm=False)
        for answer in out:
            shown = answer.outputs[0].logprobs[0]
            laws.append([shown[token].logprob if token in shown else None for token in range(size)])
    print("ANSWER " + json.dumps([time.perf_counter() - began, laws]), flush=True)
"""


class Worker:
    """vLLM in its own interpreter: batches in, seconds and laws out."""

    def __init__(self, python: str, folder: Path, size: int):
        environment = {
            "OMP_NUM_THREADS": "1",
            "VLLM_CPU_KVCACHE_SPACE": "1",
            "VLLM_CPU_OMP_THREADS_BIND": "nobind",
            "VLLM_NO_USAGE_STATS": "1",
            "DO_NOT_TRACK": "1",
            "HF_HUB_OFFLINE": "1",
            "PATH": f"{Path(python).parent}:/usr/bin:/bin",
        }
        self._process = subprocess.Popen(
            [python, "-c", _WORKER, str(folder), str(size)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=environment,
        )

    def laws(self, batches: list[list[list[int]]]) -> tuple[float, torch.Tensor]:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(json.dumps(batches) + "\n")
        self._process.stdin.flush()
        for line in self._process.stdout:
            if line.startswith("ANSWER "):
                seconds, laws = json.loads(line.removeprefix("ANSWER "))
                return seconds, torch.tensor(laws, dtype=torch.float64)
        sys.exit("vLLM ended without an answer")

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(60)


def widened(folder: Path, target: Path) -> None:
    """A Llama of the same function with heads of 32 numbers in the place of 8."""
    config = json.loads((folder / "config.json").read_text())
    old, new = config["head_dim"], 32
    step, half = new // old, old // 2
    # number i of a head and number i + half turn at theta^(-2 i / old)
    places = [step * i for i in range(half)] + [new // 2 + step * i for i in range(half)]
    weights = load_file(folder / "model.safetensors")
    for name, weight in weights.items():
        kind = name.split(".")[-2]
        if kind in ("q_proj", "k_proj", "v_proj"):
            wide = torch.zeros(weight.shape[0] // old, new, weight.shape[1])
            spread = places if kind != "v_proj" else list(range(old))
            factor = (new / old) ** 0.5 if kind == "q_proj" else 1.0
            wide[:, spread] = factor * weight.reshape(-1, old, weight.shape[1])
            weights[name] = wide.reshape(-1, weight.shape[1]).contiguous()
        elif kind == "o_proj":
            wide = torch.zeros(weight.shape[0], weight.shape[1] // old, new)
            wide[:, :, :old] = weight.reshape(weight.shape[0], -1, old)
            weights[name] = wide.reshape(weight.shape[0], -1).contiguous()
    shutil.copytree(folder, target, dirs_exist_ok=True)
    save_file(weights, target / "model.safetensors", {"format": "pt"})
    (target / "config.json").write_text(json.dumps(config | {"head_dim": new}))


def measure(name: str, uri: str, only: list[str] | None, python: str, folder: Path) -> dict:
    teacher = open_teacher(uri)
    batches = asked(teacher, only)
    model, begin, spec = teacher._net.model, teacher._begin, teacher.spec
    rows = [[[begin, *row] for row in batch.rows()] for batch in batches]
    count = sum(map(len, rows))
    worker = Worker(python, folder, model.config.vocab_size)
    seconds: dict[str, list[float]] = {"myna": [], "vllm": []}
    worker.laws(rows)  # warms up
    for _ in range(ROUNDS):
        taken, theirs = worker.laws(rows)
        seconds["vllm"].append(taken)
        fresh = TransformerTeacher(model, begin, spec)
        taken, ours = timed(lambda fresh=fresh: torch.cat([fresh.laws(batch) for batch in batches]))
        seconds["myna"].append(taken)
    worker.close()
    theirs = theirs[:, : ours.shape[1]].log_softmax(1)
    rates = {road: count / statistics.median(times) for road, times in seconds.items()}
    return {
        "model": name,
        "prefixes": count,
        "laws_per_second": rates,
        "seconds": seconds,
        "myna_over_vllm": rates["myna"] / rates["vllm"],
        "largest_difference_nats": float((ours - theirs).abs().max()),
    }


def main(python: str) -> None:
    torch.set_num_threads(1)
    bundled, stories = ROOT / "src/myna/data/bundled", ROOT.parent / "shared/data/stories260k"
    models = [measure("bundled", "hf:bundled?horizon=12&device=cpu", None, python, bundled)]
    print(models[-1], flush=True)
    if stories.exists():
        with tempfile.TemporaryDirectory() as wide:
            widened(stories, Path(wide))
            uri = f"hf:{stories}?horizon=12&device=cpu"
            kept = [f"#{token}" for token in TOKENS]
            models.append(measure("stories260k", uri, kept, python, Path(wide)))
            print(models[-1], flush=True)
    else:
        print(f"stories260k skipped: {stories} is absent")
    save("vllm_speed", {"models": models})


if __name__ == "__main__":
    main(*sys.argv[1:] or [str(ROOT / ".venv-servers/vllm/bin/python")])
