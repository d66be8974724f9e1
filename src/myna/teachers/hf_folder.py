"""Opening a folder of `transformers`: weights, tokens, and where sequences begin and end.

Only safetensors are read, no code of the folder is run, and nothing is downloaded.

    begin     the `begin` parameter, else bos_token_id of config.json, else the end token
    stop      the `stop` parameter, else the first eos_token_id of generation_config.json,
              else the first of config.json; `stop=none` for a model without one
    horizon   the `horizon` parameter, else the context length

stories260k is told apart by this rule: its generation_config.json names the beginning token
first among the ends, because its stories end with the token that they begin with.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging

import myna
from myna.errors import FormatError, InputError
from myna.spec import Spec, fingerprint
from myna.teachers.token_names import visible_names
from myna.teachers.transformer import TransformerTeacher, free_memory

PARAMETERS = ("horizon", "device", "dtype", "batch", "begin", "stop")
_DTYPES = {
    "float32": torch.float32,
    "float64": torch.float64,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
}
_BROKEN = (OSError, ValueError, RuntimeError, KeyError, TypeError, AttributeError)
_TOKEN_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model")
_CONTEXT_NAMES = ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length")


BUNDLED = "bundled"


def folder_of(name: str) -> Path:
    """The folder of a name: the small transformer that comes with myna, or a path."""
    if name == BUNDLED and not Path(name).exists():
        return Path(myna.__file__).parent / "data" / "bundled"
    return Path(name)


def open_folder(folder: Path, parameters: dict[str, str]) -> TransformerTeacher:
    """The causal language model in a folder.

    parameters: text of horizon, device, dtype, batch, begin, stop, each optional

    Raises:
        InputError: a parameter out of range; FormatError: a folder that does not load.
    """
    config = _json(folder / "config.json")
    if not list(folder.glob("*.safetensors")):
        raise FormatError(
            f"{folder} has no *.safetensors file; only that format is read: convert other weights with "
            "save_pretrained"
        )
    device = _device(parameters.get("device"))
    dtype = _dtype(parameters.get("dtype"), folder, device)
    model = _model(folder, dtype, device)
    size = int(model.config.get_text_config().vocab_size)
    ends = _ends(folder, config)
    stop = None if parameters.get("stop") == "none" else _token("stop", parameters, ends, size)
    begins = [config.get("bos_token_id"), *ends]
    begin = _token("begin", parameters, [token for token in begins if token is not None], size)
    if begin is None:
        raise InputError(
            f"{folder} names no beginning token, and every prefix needs one before it; give its "
            "number as ?begin=N"
        )
    horizon = _horizon(parameters.get("horizon"), model.config.get_text_config())
    alphabet = token_names(folder, size)
    mark = fingerprint("hf", _digest(folder), str(dtype), alphabet, begin, stop, horizon)
    spec = Spec(alphabet, stop, horizon, mark)
    batch = _whole("batch", parameters["batch"]) if "batch" in parameters else None
    return TransformerTeacher(model, begin, spec, batch)


def _model(folder: Path, dtype: torch.dtype | str, device: torch.device) -> Any:
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        model: Any = AutoModelForCausalLM.from_pretrained(
            folder,
            local_files_only=True,
            use_safetensors=True,
            trust_remote_code=False,
            dtype=dtype,
        )
    except (*_BROKEN, SafetensorError) as error:
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise FormatError(f"{folder} does not load as a causal language model: {first}") from error
    finally:
        if shown:
            logging.enable_progress_bar()
    return model.eval().to(device)


def _json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError) as error:
        raise InputError(
            f"hf: needs a folder with config.json and *.safetensors, and {path} is not there"
        ) from error
    except (OSError, ValueError) as error:
        raise FormatError(f"{path} does not read as JSON: {error}") from error
    if not isinstance(found, dict):
        raise FormatError(f"{path} must hold one JSON object, got {type(found).__name__}")
    return found


def _ends(folder: Path, config: dict[str, Any]) -> list[int]:
    """The end tokens, the one that generation stops at first."""
    files = [config]
    if (folder / "generation_config.json").is_file():
        files.insert(0, _json(folder / "generation_config.json"))
    for found in files:
        ends = found.get("eos_token_id")
        if ends is not None:
            return list(ends) if isinstance(ends, list) else [ends]
    return []


def _token(name: str, parameters: dict[str, str], known: list[int], size: int) -> int | None:
    """A token's number, as the caller gave it or as the folder's files name it."""
    if name in parameters:
        token = _whole(name, parameters[name], least=0)
    else:
        token = known[0] if known else None
    if token is not None and not (isinstance(token, int) and 0 <= token < size):
        raise InputError(f"{name} must be a token's number in 0..{size - 1}, got {token!r}")
    return token


def _whole(name: str, text: str, least: int = 1) -> int:
    if not text.isdecimal() or int(text) < least:
        raise InputError(f"{name} must be a whole number of at least {least}, got {text!r}")
    return int(text)


def _horizon(text: str | None, config: Any) -> int | None:
    """The caller's horizon, or the context length: the law of token H needs H places."""
    sizes = [getattr(config, name, None) for name in _CONTEXT_NAMES]
    context = next((size for size in sizes if isinstance(size, int) and size > 0), None)
    if text is None:
        return context
    horizon = _whole("horizon", text)
    if context is not None and horizon > context:
        raise InputError(
            f"this model reads {context} tokens, the beginning token included, so sequences have "
            f"at most {context}; got horizon {horizon}"
        )
    return horizon


def _device(text: str | None) -> torch.device:
    if text is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(text)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise InputError(
            f"device must name one of this machine's, such as cpu or cuda:0, got {text!r}"
        ) from error
    return device


def _dtype(text: str | None, folder: Path, device: torch.device) -> torch.dtype | str:
    """What the caller says; else float32, or the file's own where that would fill memory."""
    if text is not None:
        if text not in _DTYPES:
            raise InputError(f"dtype must be one of {', '.join(_DTYPES)}, got {text!r}")
        return _DTYPES[text]
    stored = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    return torch.float32 if 4 * stored < free_memory(device) else "auto"


def _digest(folder: Path) -> str:
    """SHA-256 of the configuration and the weights."""
    digest = hashlib.sha256()
    for path in [folder / "config.json", *sorted(folder.glob("*.safetensors"))]:
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def tokenize(folder: Path, texts: list[str]) -> list[list[int]] | None:
    """Each text's tokens, none added at its ends; None for a folder without a tokenizer.

    Raises:
        FormatError: for tokenizer files that do not load.
    """
    if not any((folder / name).is_file() for name in _TOKEN_FILES):
        return None
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False
        )
        tokenizer.model_max_length = 10**9  # longer texts are cut later
        return [tokenizer.encode(text, add_special_tokens=False) for text in texts]
    except _BROKEN as error:
        raise FormatError(f"{folder} has a tokenizer that does not load: {error}") from error


def token_names(folder: Path, size: int) -> tuple[str, ...]:
    """A name for each token: the tokenizer's, without blanks, made different; else numbers.

    Raises:
        FormatError: for tokenizer files that do not load.
    """
    if not any((folder / name).is_file() for name in _TOKEN_FILES):
        return tuple(str(token) for token in range(size))
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False
        )
        known = tokenizer.convert_ids_to_tokens(list(range(min(size, len(tokenizer)))))
    except _BROKEN as error:
        raise FormatError(f"{folder} has a tokenizer that does not load: {error}") from error
    return visible_names(known, size)
