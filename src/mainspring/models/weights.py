"""Model folders in the Hugging Face layout: config.json and safetensors, one file or shards with an index.

Names and shapes are checked against the architecture from the file headers before any tensor is read, and each
tensor is read once, straight to its place.
"""

import copy
import json
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from mainspring.models.config import describe_config, locate, parse_config, read_config, read_json
from mainspring.models.linear import W8A8Linear, check_w8a8, describe_w8a8, replace_linears
from mainspring.models.moe import HUB_BIAS, describe_moe, to_hub
from mainspring.models.tokenizer import Tokenizer
from mainspring.models.transformer import Decoder
from mainspring.spec import MoeConfig, NotFound, SpecError, Unavailable

__all__ = [
    "is_transformers",
    "load_pretrained",
    "locate",
    "read_config",
    "save_moe",
    "save_pretrained",
    "save_tensors",
    "save_transformers",
]

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
SHARD_BYTES = 5 * 1024**3
DTYPES = {torch.float32: "float32", torch.bfloat16: "bfloat16", torch.float16: "float16"}
Files = Mapping[str, Any]  # tensor name -> the open safetensors file that holds it


def save_pretrained(
    model: Decoder,
    folder: Path | str,
    *,
    tokenizer: Tokenizer | None = None,
    dtype: torch.dtype | None = None,
    shard_bytes: int = SHARD_BYTES,
) -> None:
    """Write `model` (and its tokenizer) to `folder`, floating-point tensors as `dtype` (their own by default)."""
    folder = Path(folder)
    tensors = {name: _stored(name, tensor, dtype) for name, tensor in model.state_dict().items()}
    kept = tensors["model.embed_tokens.weight"].dtype
    if kept not in DTYPES:
        raise SpecError(f"cannot store {kept}", hint=f"known: {', '.join(DTYPES.values())}")
    config = describe_config(model.config, dtype=DTYPES[kept])
    if any(isinstance(module, W8A8Linear) for module in model.modules()):
        kept_whole = [name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)]
        config["quantization_config"] = describe_w8a8(kept_whole)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _write_shards(tensors, folder, shard_bytes)
        (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    except (OSError, SafetensorError) as error:
        raise Unavailable(f"cannot write the model to {folder}: {error}", hint="check the disk") from error
    if tokenizer is not None:
        tokenizer.save(folder)


def save_tensors(tensors: Mapping[str, Tensor], folder: Path | str) -> None:
    """Write the weights of a model of any architecture as safetensors; its code has to say what they mean."""
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _write_shards({name: _stored(name, tensor, None) for name, tensor in tensors.items()}, folder, SHARD_BYTES)
    except (OSError, SafetensorError) as error:
        raise Unavailable(f"cannot write the model to {folder}: {error}", hint="check the disk") from error


def save_moe(config: MoeConfig, state: Mapping[str, Tensor], folder: Path | str) -> None:
    """Write the whole weights of a mixture of experts as a Qwen3-MoE checkpoint, which transformers loads.

    It does not load one whose experts were evened out by biases: those are written as one more tensor for each layer.
    Raises `SpecError` for what such a checkpoint cannot say.
    """
    tensors = to_hub(state)
    biased = any(name.endswith(HUB_BIAS) for name in tensors)
    described = describe_moe(config, dtype=DTYPES[tensors["model.embed_tokens.weight"].dtype], biased=biased)
    save_tensors(tensors, folder)
    (Path(folder) / "config.json").write_text(json.dumps(described, indent=2) + "\n", encoding="utf-8")


def save_transformers(model: torch.nn.Module, state: Mapping[str, Tensor], folder: Path | str) -> None:
    """Write `state`, the whole weights of a model of transformers under its own names, so that transformers loads it.

    A weight that is tied to another and not in `state` is tied again by `from_pretrained`.
    """
    config = copy.deepcopy(_config_of(model))
    config.architectures = [type(model).__name__.removeprefix("FSDP")]  # what sharding puts before a class's name
    config.dtype = DTYPES.get(next(tensor.dtype for tensor in state.values() if tensor.is_floating_point()))
    if hasattr(config, "use_cache"):
        config.use_cache = True  # training had switched it off
    save_tensors(state, folder)
    (Path(folder) / "config.json").write_text(config.to_json_string(), encoding="utf-8")


def is_transformers(model: torch.nn.Module) -> bool:
    """Whether transformers can write and read `model`, which this module never imports."""
    return hasattr(model, "save_pretrained") and hasattr(_config_of(model), "to_json_string")


def _config_of(model: torch.nn.Module) -> Any:
    return getattr(model, "config", None)


def load_pretrained(
    folder: Path | str, *, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu"
) -> Decoder:
    """The model in `folder`, floating-point weights as `dtype`; int8 layers where config.json says W8A8.

    Raises `SpecError` naming the first missing, unexpected or mis-shaped tensor, with both shapes.
    """
    folder = Path(folder)
    raw = read_json(folder / "config.json")
    config = parse_config(raw, where=str(folder / "config.json"))
    with torch.device("meta"):
        model = Decoder(config)
    if raw.get("quantization_config"):
        ignore = check_w8a8(raw["quantization_config"], where=str(folder / "config.json"))
        replace_linears(model, ignore=ignore)
    wanted = model.state_dict()
    with ExitStack() as stack:
        files = _open_shards(folder, stack)
        _check(wanted, files, folder=folder)
        loaded = {name: _placed(name, files[name].get_tensor(name), dtype=dtype, device=device) for name in wanted}
    model.load_state_dict(loaded, strict=True, assign=True)
    return model


def _stored(name: str, tensor: Tensor, dtype: torch.dtype | None) -> Tensor:
    """`tensor` as it goes to disk: on the host, contiguous, rounded to `dtype` unless it is a quantised layer's."""
    kept = dtype is None or not tensor.is_floating_point() or name.endswith("weight_scale")
    return tensor.detach().to(device="cpu", dtype=tensor.dtype if kept else dtype).contiguous()


def _placed(name: str, tensor: Tensor, *, dtype: torch.dtype, device: torch.device | str) -> Tensor:
    """`tensor` as the model holds it: int8 stays int8 and its scales are float32."""
    if not tensor.is_floating_point():
        return tensor.to(device)
    return tensor.to(device=device, dtype=torch.float32 if name.endswith("weight_scale") else dtype)


def _write_shards(tensors: Mapping[str, Tensor], folder: Path, shard_bytes: int) -> None:
    """Write files of at most `shard_bytes` each (but at least one tensor), then the index when there are several.

    Each file appears whole under its name, and never overwrites one that a loaded model still maps.
    """
    shards: list[dict[str, Tensor]] = [{}]
    size = 0
    for name, tensor in tensors.items():
        if shards[-1] and size + tensor.nbytes > shard_bytes:
            shards.append({})
            size = 0
        shards[-1][name] = tensor
        size += tensor.nbytes
    total = len(shards)
    names = [SINGLE] if total == 1 else [f"model-{i + 1:05}-of-{total:05}.safetensors" for i in range(total)]
    for name, shard in zip(names, shards, strict=True):
        partial = folder / f"{name}.partial"
        try:
            save_file(shard, partial, metadata={"format": "pt"})
            partial.replace(folder / name)
        finally:
            partial.unlink(missing_ok=True)
    for stale in [*folder.glob("model*.safetensors"), folder / INDEX]:
        if stale.name not in names:
            stale.unlink(missing_ok=True)
    if total > 1:
        where = {key: name for name, shard in zip(names, shards, strict=True) for key in shard}
        index = {"metadata": {"total_size": sum(t.nbytes for t in tensors.values())}, "weight_map": where}
        (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def _open_shards(folder: Path, stack: ExitStack) -> dict[str, Any]:
    """Each tensor name with the open file that holds it; only headers are read."""
    paths = [folder / SINGLE]
    if not paths[0].is_file() and (folder / INDEX).is_file():
        named = read_json(folder / INDEX).get("weight_map")
        if not isinstance(named, dict) or not all(isinstance(name, str) for name in named.values()):
            raise SpecError(f"{folder / INDEX} has no weight_map of file names", hint="copy it again")
        paths = sorted({folder / name for name in named.values()})
    found = {}
    for path in paths:
        if not path.is_file():
            raise NotFound(
                f"{folder} has no {path.name}", hint="weights are read from safetensors; convert .bin files first"
            )
        try:
            file = stack.enter_context(safe_open(path, framework="pt"))
        except (OSError, SafetensorError) as error:
            raise SpecError(f"{path} is not a safetensors file: {error}", hint="copy it again") from error
        found |= dict.fromkeys(file.keys(), file)
    return found


def _check(wanted: Mapping[str, Tensor], files: Files, *, folder: Path) -> None:
    """Raise `SpecError` unless `files` hold exactly the tensors `wanted`, in their shapes."""
    missing = [name for name in wanted if name not in files]
    if missing:
        name = missing[0]
        raise SpecError(
            f"{folder} lacks tensor {name} {_shape(wanted[name].shape)} ({len(missing)} of {len(wanted)} missing)",
            hint="the weights do not match config.json, or a shard is incomplete",
        )
    # Older files repeat a tied head and keep rotary tables, both of which are computed here.
    unexpected = [
        name
        for name in files
        if name not in wanted and name != "lm_head.weight" and not name.endswith("rotary_emb.inv_freq")
    ]
    if unexpected:
        shape = _shape(files[unexpected[0]].get_slice(unexpected[0]).get_shape())
        raise SpecError(
            f"{folder} holds tensor {unexpected[0]} {shape}, which config.json has no place for "
            f"({len(unexpected)} unexpected)",
            hint="does config.json belong to these weights?",
        )
    for name, tensor in wanted.items():
        part = files[name].get_slice(name)
        if tuple(part.get_shape()) != tuple(tensor.shape):
            raise SpecError(
                f"{folder}: tensor {name} is {_shape(part.get_shape())}, config.json asks for {_shape(tensor.shape)}"
            )
        if (part.get_dtype() == "I8") != (tensor.dtype == torch.int8):
            raise SpecError(
                f"{folder}: tensor {name} is stored as {part.get_dtype()}, config.json asks for {tensor.dtype}",
                hint="is quantization_config missing from config.json?",
            )


def _shape(shape: Any) -> str:
    return "(" + ", ".join(str(size) for size in shape) + ")"
