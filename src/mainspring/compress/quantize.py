"""Fewer bits per weight. `w8a8`: 8-bit weights and activations, the right default on CPUs.

Measured on a 2-core AVX512 machine (4096 x 4096): twice the speed of weight-only int8 for one token and six times for
64, because the activations enter integer arithmetic too. Every matrix product becomes int8, the head included; the
embedding table and the norms stay, in bfloat16. A tied head becomes a table of its own.
"""

import logging
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mainspring.compress.sensitivity import divergence, output_errors, weight_error
from mainspring.models.linear import W8A8Linear
from mainspring.models.tokenizer import Tokenizer
from mainspring.models.transformer import Decoder, TiedHead
from mainspring.models.weights import load_pretrained, save_pretrained
from mainspring.spec import Artifact, DecoderConfig, Progress, SpecError, Unavailable, silent
from mainspring.store import Store

log = logging.getLogger(__name__)

CALIBRATION_TOKENS = 128  # of each text; longer ones are cut
WEIGHT_FILES = ("*.safetensors", "*.safetensors.index.json", "config.json")


def quantize(
    store: Store,
    model_ref: str,
    *,
    scheme: str = "w8a8",
    name: str | None = None,
    texts: Sequence[str] = (),
    run: str = "",
    progress: Progress = silent,
) -> Artifact:
    """Publish the model `model_ref` in fewer bits as `name` (its own name and the scheme by default).

    The artifact's meta holds the scheme, the parameters, the bytes before and after and each layer's error; with
    `texts` to calibrate on also its error on real inputs, the KL divergence from the original and the top-1 agreement.
    """
    find_scheme(scheme)
    source = store.resolve(model_ref)
    if source.kind != "model":
        raise SpecError(f"{source.ref} is of kind {source.kind}, only a model can be quantised")
    with store.scratch() as scratch:
        folder = scratch / "model"
        meta = quantize_folder(store.fetch(source), folder, scheme=scheme, texts=texts, progress=progress)
        log.info("model quantised", extra={"source": source.ref, "scheme": scheme})
        return store.publish(
            "model",
            name or f"{source.name}-{scheme}",
            folder,
            meta=meta | {"source": source.ref},
            run=run,
            inputs=(source.ref,),
        )


def quantize_folder(
    source: Path, target: Path, *, scheme: str, texts: Sequence[str] = (), progress: Progress = silent
) -> dict[str, Any]:
    """Write the model folder `source` to `target` in fewer bits; returns what it cost, as described above."""
    transform = find_scheme(scheme)
    progress(0.0, "loading weights")
    model = load_pretrained(source)
    if any(isinstance(module, W8A8Linear) for module in model.modules()):
        raise SpecError(f"{source} is quantised already", hint="quantise the original model")
    untied = untie(model)
    layers = transform(untied, progress)
    report: dict[str, Any] = {
        name: {"weight_error": weight_error(_linear(untied, name).weight, layer)} for name, layer in layers.items()
    }
    whole: dict[str, float] = {}
    calibration = _calibration(source, texts, context=model.config.context)
    if calibration:
        progress(0.6, "measuring errors on calibration text")
        for name, error in output_errors(untied, layers, calibration).items():
            report[name]["output_error"] = error
    quantised = _with_layers(untied, layers)
    if calibration:
        progress(0.8, "comparing predictions")
        nats, agreement = divergence(model, quantised, calibration)
        whole = {"kl_nats": nats, "top1_agreement": agreement, "calibration_tokens": sum(map(len, calibration))}
    progress(0.9, "writing")
    save_pretrained(quantised, target, dtype=torch.bfloat16)
    _copy_companions(source, target)
    progress(1.0, "done")
    sizes = {"bytes_before": _weight_bytes(source), "bytes_after": _weight_bytes(target)}
    parameters = sum(weight.numel() for weight in model.parameters())
    return {"scheme": scheme, "parameters": parameters, **sizes, **whole, "layers": report}


def find_scheme(name: str) -> Callable[[Decoder, Progress], dict[str, W8A8Linear]]:
    """What turns an untied model's linear layers into `name`; `SpecError` for an unknown scheme lists the known."""
    if name not in SCHEMES:
        raise SpecError(f"unknown scheme {name!r}", hint=f"known: {', '.join(sorted(SCHEMES))}")
    return SCHEMES[name]


def untie(model: Decoder) -> Decoder:
    """`model` with a head of its own, on the same tensors."""
    if not isinstance(model.lm_head, TiedHead):
        return model
    state = model.state_dict()
    state["lm_head.weight"] = state["model.embed_tokens.weight"]
    return _assembled(replace(model.config, tied=False), state)


def _round_to_w8a8(model: Decoder, progress: Progress) -> dict[str, W8A8Linear]:
    """Round to nearest, per output channel."""
    names = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    layers = {}
    for index, name in enumerate(names):
        progress(0.1 + 0.5 * index / len(names), name)
        layers[name] = W8A8Linear.from_linear(_linear(model, name))
    return layers


SCHEMES: dict[str, Callable[[Decoder, Progress], dict[str, W8A8Linear]]] = {"w8a8": _round_to_w8a8}


def _assembled(config: DecoderConfig, state: Mapping[str, Tensor]) -> Decoder:
    """A decoder on exactly these tensors, without copying them."""
    with torch.device("meta"):
        made = Decoder(config)
    made.load_state_dict(state, assign=True)
    return made


def _with_layers(model: Decoder, layers: Mapping[str, W8A8Linear]) -> Decoder:
    """`model` with some layers replaced; `model` itself stays as it is."""
    made = _assembled(model.config, model.state_dict())
    for name, layer in layers.items():
        made.set_submodule(name, layer)
    return made


def _linear(model: Decoder, name: str) -> nn.Linear:
    layer = model.get_submodule(name)
    assert isinstance(layer, nn.Linear)
    return layer


def _calibration(source: Path, texts: Sequence[str], *, context: int) -> list[Tensor]:
    """Token ids of each text, cut to what the model and a quick measurement allow."""
    if not texts:
        return []
    length = min(CALIBRATION_TOKENS, context)
    encoded = Tokenizer.load(source).encode_batch(texts)
    return [torch.tensor(ids[:length]) for ids in encoded if len(ids) > 1]


def _copy_companions(source: Path, target: Path) -> None:
    """Copy what makes the folder usable besides weights: tokenizer, chat template, generation settings."""
    try:
        for path in sorted([*source.glob("*.json"), *source.glob("*.jinja")]):
            if not any(path.match(pattern) for pattern in WEIGHT_FILES):
                shutil.copyfile(path, target / path.name)
    except OSError as error:
        raise Unavailable(f"cannot copy the tokenizer to {target}: {error}", hint="check the disk") from error


def _weight_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.glob("*.safetensors"))
