"""A small Llama folder as one GGUF file, float32, for llama.cpp.

    python tools/servers/gguf_of.py FOLDER FILE.gguf [--no-begin]

--no-begin: the server is told to add no beginning token to a prompt.

Only what the comparison of servers needs: Llama, a tokenizer whose tokens are single
characters or bytes. transformers rotates dimension i with i + d/2 of a head, llama.cpp i with
i + 1, so the rows of the query and key tables are reordered. Needs `pip install gguf`.
"""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

_BLOCK = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def interleaved(table: np.ndarray, heads: int) -> np.ndarray:
    """Rows of each head from (half, pair) order to (pair, half) order."""
    width = table.shape[0] // heads // 2
    return table.reshape(heads, 2, width, -1).swapaxes(1, 2).reshape(table.shape)


def byte_letters() -> dict[int, str]:
    """The printable character that byte-level tokenizers write for each byte."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in plain]
    return {b: chr(b) for b in plain} | {b: chr(256 + i) for i, b in enumerate(others)}


def add_tokens(writer: Any, folder: Path, size: int, ids: dict[str, int]) -> None:
    """Token strings in the byte-level spelling, their kinds, and which begin and end a text."""
    import gguf

    text = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    special = {token["id"]: token["content"] for token in text["added_tokens"]}
    names = {place: name for name, place in text["model"]["vocab"].items()} | special
    already = "ByteLevel" in json.dumps(text["pre_tokenizer"])
    letters = byte_letters()
    tokens, kinds = [], []
    for place in range(size):
        name = names.get(place, f"[unused{place}]")
        control = place in special or place not in names
        spelt = (
            name if control or already else "".join(letters[byte] for byte in name.encode("utf-8"))
        )
        tokens.append(spelt)
        kinds.append(gguf.TokenType.CONTROL if control else gguf.TokenType.NORMAL)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    # llama.cpp refuses an empty list; this pair makes no token, so nothing is ever merged
    writer.add_token_merges(["Ā Ā"])
    writer.add_bos_token_id(ids["bos"])
    writer.add_eos_token_id(ids["eos"])
    writer.add_add_bos_token("--no-begin" not in sys.argv)


def main() -> None:
    """Read the folder, write the file."""
    import gguf
    from safetensors.numpy import load_file

    folder, file = Path(sys.argv[1]), sys.argv[2]
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    tables = load_file(folder / "model.safetensors")
    heads, groups = config["num_attention_heads"], config["num_key_value_heads"]
    width = config.get("head_dim") or config["hidden_size"] // heads
    writer = gguf.GGUFWriter(file, "llama")
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(groups)
    writer.add_key_length(width)
    writer.add_value_length(width)
    writer.add_rope_dimension_count(width)
    writer.add_rope_freq_base(
        config.get("rope_theta") or config.get("rope_parameters", {}).get("rope_theta", 1e4)
    )
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_vocab_size(config["vocab_size"])
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    ids = {"bos": config["bos_token_id"], "eos": config["eos_token_id"]}
    add_tokens(writer, folder, config["vocab_size"], ids)

    def keep(name: str, table: np.ndarray) -> None:
        writer.add_tensor(name, np.ascontiguousarray(table, dtype=np.float32))

    keep("token_embd.weight", tables["model.embed_tokens.weight"])
    keep("output_norm.weight", tables["model.norm.weight"])
    if not config["tie_word_embeddings"]:
        keep("output.weight", tables["lm_head.weight"])
    for block in range(config["num_hidden_layers"]):
        for theirs, ours in _BLOCK.items():
            table = tables[f"model.layers.{block}.{theirs}.weight"]
            turned = {"attn_q": heads, "attn_k": groups}.get(ours)
            keep(f"blk.{block}.{ours}.weight", interleaved(table, turned) if turned else table)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


if __name__ == "__main__":
    main()
