"""Model folders that transformers 4.5x reads as well as 5: what version 5 writes, in the words of both.

Version 5 reads the older words. Version 4 ignores `rope_parameters`, so that a model of another `rope_theta` would
answer something else without a word, and it knows no `TokenizersBackend`.
"""

import json
from pathlib import Path
from typing import Any

CONFIG, TOKENIZER = "config.json", "tokenizer_config.json"
INPUTS = ("input_ids", "attention_mask")
OF_ITS_LOADING = ("backend", "is_local", "local_files_only")  # of the process that wrote it


def make_portable(folder: Path) -> None:
    """Rewrite the settings of a model folder that was just written."""
    for name, words in ((CONFIG, config_words), (TOKENIZER, tokenizer_words)):
        path = folder / name
        settings = words(json.loads(path.read_text(encoding="utf-8")))
        path.write_text(json.dumps(settings, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def config_words(config: dict[str, Any]) -> dict[str, Any]:
    """A model's config in the words of both. Rotations that differ between layers are left as they are."""
    found, rope = dict(config), config.get("rope_parameters")
    if "dtype" in found:
        found["torch_dtype"] = found["dtype"]
    if isinstance(rope, dict) and not any(isinstance(value, dict) for value in rope.values()):
        scaling = {name: value for name, value in rope.items() if name not in ("rope_theta", "partial_rotary_factor")}
        del found["rope_parameters"]
        found |= {name: value for name, value in rope.items() if name not in scaling}
        found["rope_scaling"] = None if scaling.get("rope_type", "default") == "default" else scaling
    return dict(sorted(found.items()))


def tokenizer_words(config: dict[str, Any]) -> dict[str, Any]:
    """A tokenizer's config in the words of both."""
    found = {name: value for name, value in config.items() if name not in OF_ITS_LOADING}
    if found.get("tokenizer_class") == "TokenizersBackend":
        found["tokenizer_class"] = "PreTrainedTokenizerFast"
        found.setdefault("model_input_names", list(INPUTS))  # with version 4's own, `generate` refuses
    if isinstance(found.get("extra_special_tokens"), list):
        found["additional_special_tokens"] = found.pop("extra_special_tokens")
    if "model_specific_special_tokens" in found:
        found["extra_special_tokens"] = found.pop("model_specific_special_tokens")
    return dict(sorted(found.items()))
