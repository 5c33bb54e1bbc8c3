"""Finding a model folder in the Hugging Face layout, and its `config.json` to and from `DecoderConfig`.

Only what the decoder computes exactly is accepted. A checkpoint that needs more (rotary positions scaled otherwise
than Llama 3's, sliding windows, experts, other activations) is refused by name: loading it anyway would give fluent
wrong answers.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mainspring.spec import DecoderConfig, NotFound, RopeScaling, SpecError

KINDS = ("llama", "mistral", "qwen2", "qwen3")
ARCHITECTURES = {"llama": "LlamaForCausalLM", "qwen2": "Qwen2ForCausalLM", "qwen3": "Qwen3ForCausalLM"}
HUB_FILES = ("*.json", "*.safetensors", "*.jinja")
SIZE_MAX = 2**31
LARGEST = {"num_hidden_layers": 10_000}  # a damaged number must not build layers for ever
QWEN3_HEAD_DIM = 128  # what transformers assumes when a Qwen3 file does not say


def locate(name_or_path: str | Path, *, files: Sequence[str] = HUB_FILES) -> Path:
    """The folder `name_or_path` is, or the local snapshot of that model on the Hugging Face hub.

    Only the hub files that match `files` are downloaded. Raises `NotFound` when there is neither, with what to do
    when the machine is offline.
    """
    folder = Path(name_or_path).expanduser()
    if folder.is_dir():
        return folder
    name = str(name_or_path)
    if folder.is_absolute() or name.startswith(".") or name.count("/") != 1:
        raise NotFound(f"there is no folder {name}", hint="give a folder, or a hub name such as Qwen/Qwen3-0.6B")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(name, allow_patterns=list(files)))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise NotFound(
            f"{name} is neither a folder nor a model this machine can get from the hub",
            hint="check the name; on a machine without network, bring the model's folder and name that",
        ) from error


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in `path`; `NotFound` or `SpecError` when there is none."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise NotFound(f"{path.parent} has no {path.name}", hint="give a folder in the Hugging Face layout") from error
    except (OSError, ValueError) as error:
        raise SpecError(f"{path} is not readable JSON: {error}") from error
    if not isinstance(value, dict):
        raise SpecError(f"{path} holds a {type(value).__name__}, expected an object")
    return value


def read_config(folder: Path | str) -> DecoderConfig:
    """The architecture described by `folder/config.json`. Raises `SpecError` for one this decoder is not."""
    return parse_config(read_json(Path(folder) / "config.json"), where=str(Path(folder) / "config.json"))


def check_readable(folder: Path | str, name: str) -> None:
    """Raise the error of `read_config` by the model's name, where nobody knows the folder that it was fetched to."""
    path = Path(folder) / "config.json"
    if not path.is_file():
        raise NotFound(
            f"{name} has no config.json: what its weights mean, its recipe.py alone knows",
            hint="a Decoder and the models of transformers are published with one; load this one with its recipe",
        )
    parse_config(read_json(path), where=f"config.json of {name}")


def parse_config(raw: Mapping[str, Any], *, where: str) -> DecoderConfig:
    """The architecture described by a parsed `config.json`; `where` names it in errors."""
    kind = raw.get("model_type")
    if kind not in KINDS:
        raise SpecError(f"{where}: model_type {kind!r} is not supported", hint=f"supported: {', '.join(KINDS)}")
    for what in _unsupported(raw):
        raise SpecError(f"{where}: {what} is not supported", hint="this decoder would compute something else")

    def size(key: str, default: int | None = None) -> int:
        value = raw.get(key) if raw.get(key) is not None else default
        if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= LARGEST.get(key, SIZE_MAX):
            raise SpecError(f"{where}: {key} is {value!r}, expected a whole number of a model's size")
        return value

    heads = size("num_attention_heads")
    try:
        return DecoderConfig(
            vocab=size("vocab_size"),
            hidden=size("hidden_size"),
            layers=size("num_hidden_layers"),
            heads=heads,
            kv_heads=size("num_key_value_heads", heads),
            ffn=size("intermediate_size"),
            context=size("max_position_embeddings"),
            head_dim=size("head_dim", QWEN3_HEAD_DIM if kind == "qwen3" else 0),
            rope_theta=float(_rope(raw).get("rope_theta") or raw.get("rope_theta") or 10000.0),
            rms_eps=float(raw.get("rms_norm_eps", 1e-6)),
            tied=bool(raw.get("tie_word_embeddings", False)),
            qkv_bias=kind == "qwen2",
            qk_norm=kind == "qwen3",
            bos_id=_first(raw.get("bos_token_id")),
            eos_id=_first(raw.get("eos_token_id")),
            rope_scaling=_scaling(raw),
        )
    except KeyError as error:
        raise SpecError(f"{where}: rope scaling 'llama3' lacks {error}") from error
    except (TypeError, ValueError, OverflowError) as error:
        raise SpecError(f"{where}: {error}") from error


def describe_config(config: DecoderConfig, *, dtype: str) -> dict[str, Any]:
    """The `config.json` of `config`, as the oldest and the newest transformers both read it."""
    if config.qkv_bias and config.qk_norm:
        raise SpecError("no Hugging Face architecture has both qkv_bias (Qwen2) and qk_norm (Qwen3)")
    kind = "qwen3" if config.qk_norm else "qwen2" if config.qkv_bias else "llama"
    if kind == "qwen2" and config.head_dim not in (0, config.hidden // config.heads):
        raise SpecError(f"Qwen2 checkpoints cannot say head_dim {config.head_dim}", hint="leave head_dim at 0")
    scaling = config.rope_scaling
    stretched = {} if scaling is None else {"rope_scaling": {"rope_type": "llama3", **_named_scaling(scaling)}}
    return stretched | {
        "architectures": [ARCHITECTURES[kind]],
        "model_type": kind,
        "vocab_size": config.vocab,
        "hidden_size": config.hidden,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "num_key_value_heads": config.kv_heads,
        "head_dim": config.width,
        "intermediate_size": config.ffn,
        "max_position_embeddings": config.context,
        "rope_theta": config.rope_theta,
        "rms_norm_eps": config.rms_eps,
        "tie_word_embeddings": config.tied,
        "attention_bias": False,
        "hidden_act": "silu",
        "bos_token_id": config.bos_id,
        "eos_token_id": config.eos_id,
        "torch_dtype": dtype,
    }


def _rope(raw: Mapping[str, Any]) -> Mapping[str, Any]:
    """Rotary parameters: `rope_parameters` since transformers 5, `rope_scaling` (or null) before."""
    found = raw.get("rope_parameters") or raw.get("rope_scaling") or {}
    return found if isinstance(found, Mapping) else {"rope_type": found}


def _scaling(raw: Mapping[str, Any]) -> RopeScaling | None:
    """Llama 3.1's scaling where the file asks for it."""
    rope = _rope(raw)
    if _kind_of(rope) != "llama3":
        return None
    return RopeScaling(
        factor=float(rope["factor"]),
        low=float(rope["low_freq_factor"]),
        high=float(rope["high_freq_factor"]),
        original_context=int(rope["original_max_position_embeddings"]),
    )


def _named_scaling(scaling: RopeScaling) -> dict[str, Any]:
    return {
        "factor": scaling.factor,
        "low_freq_factor": scaling.low,
        "high_freq_factor": scaling.high,
        "original_max_position_embeddings": scaling.original_context,
    }


def _kind_of(rope: Mapping[str, Any]) -> Any:
    return rope.get("rope_type", rope.get("type", "default"))


def _unsupported(raw: Mapping[str, Any]) -> list[str]:
    """What in this file the decoder does not compute."""
    rope, kind = _rope(raw), raw["model_type"]
    scaling = _kind_of(rope)
    partial = rope.get("partial_rotary_factor", raw.get("partial_rotary_factor", 1.0))
    window = raw.get("sliding_window")
    windowed = window and (kind == "mistral" or (kind == "qwen2" and raw.get("use_sliding_window")))
    listed = raw.get("layer_types") or []
    layer_types = {str(each) for each in listed if each != "full_attention"} if isinstance(listed, list) else {listed}
    found = {
        f"rope scaling {scaling!r}": scaling not in ("default", "llama3"),
        f"partial_rotary_factor {partial}": partial != 1.0,
        f"sliding_window {window} below the context": windowed and window < raw.get("max_position_embeddings", 0),
        f"hidden_act {raw.get('hidden_act')!r}": raw.get("hidden_act", "silu") not in ("silu", "swish"),
        "attention_bias": bool(raw.get("attention_bias")),
        "mlp_bias": bool(raw.get("mlp_bias")),
        f"layer_types {sorted(layer_types, key=str)}": bool(layer_types),
    }
    return [what for what, present in found.items() if present]


def _first(token: Any) -> int | None:
    """A token id; the first of a list, which is how files name several end tokens."""
    return token[0] if isinstance(token, list) and token else token if isinstance(token, int) else None
