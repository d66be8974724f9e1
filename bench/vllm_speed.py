"""Laws per second of vLLM on the prefixes of transformers_speed.py, beside ours in the same run.

    python bench/vllm_speed.py [PYTHON_WITH_VLLM]      (tools/servers/install.sh makes one)

vLLM runs in its own interpreter, without HTTP, prefix caching on, eager, one thread: each of
the learner's batches is one call of `generate` with one new token and all log-probabilities.
Start-up is not counted. The two take turns, three rounds each; the median counts.
"""

import json
import statistics
import subprocess
import sys
from pathlib import Path

import torch
from results import save
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


def main(python: str) -> None:
    torch.set_num_threads(1)
    teacher = open_teacher("hf:bundled?horizon=12&device=cpu")
    batches = asked(teacher, None)
    model, begin, spec = teacher._net.model, teacher._begin, teacher.spec
    rows = [[[begin, *row] for row in batch.rows()] for batch in batches]
    count = sum(map(len, rows))
    worker = Worker(python, ROOT / "src/myna/data/bundled", model.config.vocab_size)
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
    record = {
        "model": "bundled",
        "prefixes": count,
        "laws_per_second": rates,
        "myna_over_vllm": rates["myna"] / rates["vllm"],
        "largest_difference_nats": float((ours - theirs).abs().max()),
    }
    print(record)
    save("vllm_speed", record)


if __name__ == "__main__":
    main(*sys.argv[1:] or [str(ROOT / ".venv-servers/vllm/bin/python")])
