"""Train the small transformer that comes with myna, from sentences made here.

    python tools/train_bundled.py

A sentence is drawn from a grammar whose words agree in number over a distance:

    sentence = subject verb [object] [and sentence] .
    subject, object = determiner adjective* noun

Letters are the tokens, with <s> before and </s> after a sentence. Each choice is drawn
independently and a sentence has one derivation, so its probability is known, and the mean
of -log P per token is what no model can beat. The model is a Llama with head size 64 (a
size that servers support), trained for a few minutes on one CPU thread; its weights are
rounded to float16 and written to src/myna/data/bundled with tokenizer and a record.
"""

import json
import math
import sys
import time
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from tokenizers.processors import TemplateProcessing
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

OUT = Path(__file__).parents[1] / "src" / "myna" / "data" / "bundled"
BEGIN, END = 0, 1
LETTERS = " .abcdefghiklnoprstuwx"
STEPS, BATCH, RATE, SEED = 1500, 64, 3e-3, 0
CONTEXT = 128

ADJECTIVES = (("big", 0.5), ("old", 0.3), ("kind", 0.2))
NOUNS = (("cat", 0.4), ("dog", 0.3), ("bird", 0.2), ("fox", 0.1))
ALONE = (("sleep", 0.5), ("run", 0.3), ("sing", 0.2))
TAKING = (("see", 0.6), ("like", 0.4))
DETERMINERS = {False: (("a", 0.5), ("the", 0.5)), True: (("the", 0.6), ("two", 0.4))}


class Speaker:
    """Draws sentences and adds up the log-probability of its choices."""

    def __init__(self, seed: int):
        self._generator = torch.Generator().manual_seed(seed)
        self.log_prob = 0.0

    def choose(self, options: tuple[tuple[object, float], ...]) -> object:
        weights = torch.tensor([weight for _, weight in options], dtype=torch.float64)
        picked = int(torch.multinomial(weights, 1, generator=self._generator))
        self.log_prob += math.log(options[picked][1])
        return options[picked][0]

    def chance(self, probability: float) -> bool:
        return bool(self.choose(((True, probability), (False, 1 - probability))))

    def phrase(self) -> tuple[list[str], bool]:
        """A noun phrase, and whether it is plural."""
        plural = self.chance(0.4)
        words = [self.choose(DETERMINERS[plural])]
        while len(words) < 3 and self.chance(0.3):
            words.append(self.choose(ADJECTIVES))
        noun = self.choose(NOUNS)
        return [
            *words,
            noun if not plural else f"{noun}es" if noun == "fox" else f"{noun}s",
        ], plural

    def clause(self) -> list[str]:
        words, plural = self.phrase()
        ending = "" if plural else "s"
        if self.chance(0.5):
            return [*words, self.choose(ALONE) + ending]
        return [*words, self.choose(TAKING) + ending, *self.phrase()[0]]

    def sentence(self) -> str:
        words = self.clause()
        if self.chance(0.15):
            words += ["and", *self.clause()]
        return " ".join(words) + "."


def encode(sentence: str) -> list[int]:
    return [BEGIN, *(2 + LETTERS.index(letter) for letter in sentence), END]


def batch_of(speaker: Speaker, count: int) -> tuple[torch.Tensor, torch.Tensor, float, int]:
    """Token rows padded with END, labels without the padding, log P, predicted tokens."""
    before = speaker.log_prob
    rows = [encode(speaker.sentence()) for _ in range(count)]
    width = max(map(len, rows))
    tokens = torch.full((count, width), END)
    labels = torch.full((count, width), -100)
    for i, row in enumerate(rows):
        tokens[i, : len(row)] = torch.tensor(row)
        labels[i, : len(row)] = torch.tensor(row)
    return tokens, labels, speaker.log_prob - before, sum(len(row) - 1 for row in rows)


def new_model() -> LlamaForCausalLM:
    torch.manual_seed(SEED)
    config = LlamaConfig(
        vocab_size=len(LETTERS) + 2,
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=64,
        max_position_embeddings=CONTEXT,
        bos_token_id=BEGIN,
        eos_token_id=END,
        tie_word_embeddings=True,
    )
    return LlamaForCausalLM(config)


def train(model: LlamaForCausalLM, steps: int) -> None:
    """AdamW with a warm-up and a cosine to zero; every sentence is new."""
    speaker = Speaker(SEED + 1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda step: min(1, (step + 1) / 50) * 0.5 * (1 + math.cos(math.pi * step / steps)),
    )
    model.train()
    for step in range(steps):
        tokens, labels, log_prob, count = batch_of(speaker, BATCH)
        loss = model(input_ids=tokens, labels=labels).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 100 == 0 or step == steps - 1:
            print(f"{step:5d}  {loss.item():.4f} nats a token; truth {-log_prob / count:.4f}")


def held_out(model: LlamaForCausalLM) -> dict[str, float]:
    """Cross-entropy and the language's own entropy on fresh sentences, nats a token."""
    tokens, labels, log_prob, count = batch_of(Speaker(SEED + 2), 2000)
    model.eval()
    with torch.no_grad():
        logits = model(input_ids=tokens).logits.double().log_softmax(2)
    wanted = labels[:, 1:]
    steps = logits[:, :-1].gather(2, wanted.clamp(min=0)[:, :, None])[:, :, 0]
    model_nats = -float(steps[wanted >= 0].sum()) / count
    return {"model": model_nats, "language": -log_prob / count, "tokens": count}


def write(model: LlamaForCausalLM, record: dict) -> None:
    OUT.mkdir(parents=True, exist_ok=True)
    model.generation_config.bos_token_id, model.generation_config.eos_token_id = BEGIN, END
    model.half().save_pretrained(OUT)
    vocabulary = {"<s>": BEGIN, "</s>": END, **{c: i + 2 for i, c in enumerate(LETTERS)}}
    inner = Tokenizer(BPE(vocabulary, merges=[]))
    inner.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    inner.decoder = decoders.Fuse()
    inner.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", BEGIN)])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, bos_token="<s>", eos_token="</s>")
    tokenizer.save_pretrained(OUT)
    named = {  # a class that every version of transformers knows
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<s>",
        "eos_token": "</s>",
        "model_max_length": CONTEXT,
    }
    (OUT / "tokenizer_config.json").write_text(json.dumps(named, indent=1) + "\n")
    for path in OUT.iterdir():
        path.chmod(0o644)
    (OUT / "training.json").write_text(json.dumps(record, indent=1) + "\n")


def main() -> None:
    torch.set_num_threads(1)
    steps = int(sys.argv[1]) if len(sys.argv) > 1 else STEPS
    model, began = new_model(), time.perf_counter()
    train(model, steps)
    seconds = time.perf_counter() - began
    rounded = model.half().float()
    record = {
        "command": "python tools/train_bundled.py",
        "steps": steps,
        "seconds_one_thread": round(seconds),
        "parameters": sum(p.numel() for p in model.parameters()),
        "held_out_nats_a_token": held_out(rounded),
        "sentences": [Speaker(5 + i).sentence() for i in range(3)],
    }
    print(json.dumps(record, indent=1))
    write(model, record)


if __name__ == "__main__":
    main()
