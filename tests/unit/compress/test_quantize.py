"""Quantising a model that has learned something: size, fidelity, format, errors."""

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from mainspring.compress.quantize import quantize, quantize_folder
from mainspring.compress.sensitivity import output_errors, weight_error
from mainspring.models.linear import W8A8Linear
from mainspring.models.tokenizer import Tokenizer, train_bpe
from mainspring.models.transformer import Decoder
from mainspring.models.weights import load_pretrained, read_config, save_pretrained
from mainspring.spec import DecoderConfig, SpecError
from mainspring.store import Store

TEXT = Path(json.__file__).with_name("decoder.py").read_text(encoding="utf-8")


def greedy(model: Decoder, ids: list[int], count: int) -> list[int]:
    for _ in range(count):
        ids = [*ids, int(model(torch.tensor([ids]))[0, -1].argmax())]
    return ids


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small model trained for a moment on Python source, with its tokenizer."""
    torch.manual_seed(0)
    tokenizer = train_bpe([TEXT], vocab=320)
    config = DecoderConfig(
        vocab=tokenizer.vocab, hidden=128, layers=3, heads=4, kv_heads=2, ffn=384, context=128, eos_id=0
    )
    model = Decoder(config, seed=0)
    ids = torch.tensor(tokenizer.encode(TEXT))
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(60):
        starts = torch.randint(0, len(ids) - 65, (8,))
        batch = torch.stack([ids[at : at + 65] for at in starts])
        loss = torch.nn.functional.cross_entropy(model(batch[:, :-1]).flatten(0, 1), batch[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 4
    folder = tmp_path_factory.mktemp("trained")
    save_pretrained(model, folder, tokenizer=tokenizer)
    return folder


@torch.no_grad()
def test_a_quantised_model_is_small_faithful_and_still_decodes(trained: Path, tmp_path: Path) -> None:
    meta = quantize_folder(trained, tmp_path, scheme="w8a8", texts=[TEXT[:2000], TEXT[4000:6000]])
    size = (tmp_path / "model.safetensors").stat().st_size
    assert size == meta["bytes_after"]
    assert size <= 0.35 * (trained / "model.safetensors").stat().st_size
    whole, small = load_pretrained(trained), load_pretrained(tmp_path)
    linears = [module for module in small.modules() if isinstance(module, W8A8Linear)]
    assert len(linears) == 3 * 7 + 1
    tokenizer = Tokenizer.load(tmp_path)
    ids = torch.tensor([tokenizer.encode(TEXT)[:100]])
    cosine = torch.nn.functional.cosine_similarity(whole(ids), small(ids), dim=-1)
    assert cosine.min() >= 0.99
    prompt = tokenizer.encode("def decode(self, s, _w=")
    said = greedy(small, prompt, 12)
    assert said[: len(prompt)] == prompt
    assert tokenizer.decode(said).startswith("def decode(self, s, _w=")
    agreed = sum(a == b for a, b in zip(said, greedy(whole, prompt, 12), strict=True))
    assert agreed >= len(prompt) + 6
    assert meta["kl_nats"] < 0.01
    assert meta["top1_agreement"] > 0.95


def test_the_folder_has_the_keys_other_engines_read(trained: Path, tmp_path: Path) -> None:
    quantize_folder(trained, tmp_path, scheme="w8a8")
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["tie_word_embeddings"] is False
    scheme = config["quantization_config"]
    assert (scheme["quant_method"], scheme["format"]) == ("compressed-tensors", "int-quantized")
    (group,) = scheme["config_groups"].values()
    assert (group["weights"]["num_bits"], group["weights"]["strategy"]) == (8, "channel")
    assert (group["input_activations"]["strategy"], group["input_activations"]["dynamic"]) == ("token", True)
    with safe_open(tmp_path / "model.safetensors", framework="pt") as file:
        for name, shape in {"model.layers.0.mlp.up_proj": [384, 128], "lm_head": [320, 128]}.items():
            assert file.get_slice(f"{name}.weight").get_dtype() == "I8"
            assert file.get_slice(f"{name}.weight").get_shape() == shape
            assert file.get_slice(f"{name}.weight_scale").get_shape() == [shape[0], 1]
        assert file.get_slice("model.embed_tokens.weight").get_dtype() == "BF16"
    assert read_config(tmp_path).tied is False
    assert (tmp_path / "tokenizer.json").read_bytes() == (trained / "tokenizer.json").read_bytes()


def test_a_quantised_model_saved_again_is_the_same(trained: Path, tmp_path: Path) -> None:
    quantize_folder(trained, tmp_path / "a", scheme="w8a8")
    save_pretrained(load_pretrained(tmp_path / "a", dtype=torch.bfloat16), tmp_path / "b")
    for name in ("model.safetensors", "config.json"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_an_int8_tensor_missing_its_scale_is_named(trained: Path, tmp_path: Path) -> None:
    quantize_folder(trained, tmp_path, scheme="w8a8")
    config = json.loads((tmp_path / "config.json").read_text())
    del config["quantization_config"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(SpecError, match="weight_scale"):
        load_pretrained(tmp_path)


def test_publishing_records_size_errors_and_lineage(trained: Path, store: Store) -> None:
    source = store.publish("model", "tiny", trained)
    told: list[float] = []
    made = quantize(store, "model:tiny", texts=[TEXT[:500]], progress=lambda fraction, _: told.append(fraction))
    assert made.ref == "model:tiny-w8a8@1"
    meta = json.loads(made.meta_json)
    assert meta["scheme"] == "w8a8"
    assert meta["source"] == source.ref
    assert meta["parameters"] == sum(weight.numel() for weight in load_pretrained(store.fetch(source)).parameters())
    assert meta["bytes_after"] < 0.35 * meta["bytes_before"]
    errors = meta["layers"]
    assert len(errors) == 22
    assert all(0 < error["weight_error"] < 0.02 for error in errors.values())
    assert all(0 < error["output_error"] < 0.1 for error in errors.values())
    assert source.ref in {artifact.ref for artifact in store.lineage(made.ref, direction="up").artifacts}
    assert told == sorted(told)
    assert told[-1] == 1.0
    load_pretrained(store.fetch(made))
    assert quantize(store, "model:tiny", texts=[TEXT[:500]]).ref == made.ref


def test_what_cannot_be_quantised_is_refused(trained: Path, store: Store, tmp_path: Path) -> None:
    store.publish("model", "tiny", trained)
    store.publish("dataset", "tiny", trained)
    with pytest.raises(SpecError, match="unknown scheme 'w1a1'") as caught:
        quantize(store, "model:tiny", scheme="w1a1")
    assert "w8a8" in caught.value.hint
    with pytest.raises(SpecError, match="only a model"):
        quantize(store, "dataset:tiny")
    quantize_folder(trained, tmp_path, scheme="w8a8")
    with pytest.raises(SpecError, match="quantised already"):
        quantize_folder(tmp_path, tmp_path / "twice", scheme="w8a8")


@torch.no_grad()
def test_a_damaged_layer_stands_out_in_the_report(trained: Path) -> None:
    model = load_pretrained(trained)
    names = [f"model.layers.{at}.mlp.gate_proj" for at in range(3)]
    layers = {}
    for name in names:
        linear = model.get_submodule(name)
        assert isinstance(linear, torch.nn.Linear)
        layers[name] = W8A8Linear.from_linear(linear)
    weights = model.get_parameter(f"{names[1]}.weight")
    sound = weight_error(weights, layers[names[1]])
    damaged = layers[names[1]]
    damaged.weight = damaged.weight.clone()
    damaged.weight[5] += 100
    errors = output_errors(model, layers, [torch.arange(64)])
    assert errors[names[1]] > 5 * max(errors[names[0]], errors[names[2]])
    assert weight_error(weights, damaged) > 5 * sound
