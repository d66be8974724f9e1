"""A tiny Llama over bytes with random weights: what the comparison of servers is about.

    python tools/servers/byte_llama.py FOLDER

259 tokens: <unk>, <s>, </s> and the 256 bytes, most of which are no text of their own, so a
server that names tokens by strings cannot name them. Head size 64, which every server runs.
A text begins with <s>, added by the tokenizer.
"""

import sys
from pathlib import Path

import torch
from gguf_of import byte_letters
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

_SPECIAL = ("<unk>", "<s>", "</s>")


def tokenizer() -> PreTrainedTokenizerFast:
    """Every byte a token, no merges."""
    letters = byte_letters()
    ids = {name: i for i, name in enumerate(_SPECIAL)}
    ids |= {letters[byte]: len(_SPECIAL) + byte for byte in range(256)}
    plain = Tokenizer(models.BPE(vocab=ids, merges=[], unk_token="<unk>"))
    plain.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    plain.decoder = decoders.ByteLevel()
    plain.add_special_tokens([AddedToken(name, special=True) for name in _SPECIAL])
    plain.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", 1)]
    )
    names = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}
    return PreTrainedTokenizerFast(
        tokenizer_object=plain, **names, clean_up_tokenization_spaces=False
    )


def model() -> LlamaForCausalLM:
    """Two layers, two heads of 64; weights large enough that laws are far from uniform."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=259,
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=64,
        max_position_embeddings=256,
        bos_token_id=1,
        eos_token_id=2,
        tie_word_embeddings=False,
        dtype="float32",
    )
    made = LlamaForCausalLM(config)
    with torch.no_grad():
        for name, table in made.named_parameters():
            if table.ndim == 2:
                table.normal_(0, 0.14 if "lm_head" in name else 0.06)
    return made


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    tokenizer().save_pretrained(folder)
    model().save_pretrained(folder)
