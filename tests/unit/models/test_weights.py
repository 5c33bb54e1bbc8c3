"""The Hugging Face layout in both directions, and every way a folder can be wrong."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from mainspring.models.transformer import Decoder
from mainspring.models.weights import load_pretrained, locate, read_config, save_pretrained
from mainspring.spec import DecoderConfig, NotFound, RopeScaling, SpecError

SIZES = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 56,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 128,
    "initializer_range": 0.2,
}
THEIRS = {
    "llama": transformers.LlamaConfig(**SIZES, num_key_value_heads=4),
    "llama grouped, tied": transformers.LlamaConfig(
        **SIZES, num_key_value_heads=2, tie_word_embeddings=True, rope_parameters={"rope_theta": 5e5}
    ),
    "llama 3.1": transformers.LlamaConfig(
        **SIZES,
        num_key_value_heads=2,
        rope_parameters={
            "rope_type": "llama3",
            "rope_theta": 1e4,
            "factor": 4.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 32,
        },
    ),
    "mistral": transformers.MistralConfig(**SIZES, num_key_value_heads=2, sliding_window=None),
    "qwen2": transformers.Qwen2Config(**SIZES, num_key_value_heads=2),
    "qwen2 tied": transformers.Qwen2Config(**SIZES, num_key_value_heads=1, tie_word_embeddings=True),
    "qwen3": transformers.Qwen3Config(**SIZES, num_key_value_heads=2, head_dim=16, rms_norm_eps=1e-5),
    "qwen3 tied": transformers.Qwen3Config(**SIZES, num_key_value_heads=2, head_dim=8, tie_word_embeddings=True),
}
TINY = DecoderConfig(vocab=64, hidden=32, layers=2, heads=4, kv_heads=2, ffn=48, context=64, eos_id=0)
STRETCHED = {
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
OURS = {
    "llama": TINY,
    "llama 3.1": replace(TINY, rope_scaling=RopeScaling(factor=8.0, low=1.0, high=4.0, original_context=16)),
    "untied": DecoderConfig(vocab=64, hidden=32, layers=1, heads=4, kv_heads=4, ffn=48, context=64, tied=False),
    "qwen2": DecoderConfig(vocab=64, hidden=32, layers=2, heads=4, kv_heads=2, ffn=48, context=64, qkv_bias=True),
    "qwen3": DecoderConfig(
        vocab=64, hidden=32, layers=2, heads=4, kv_heads=2, ffn=48, context=64, head_dim=12, qk_norm=True
    ),
}
IDS = torch.randint(0, 64, (2, 40), generator=torch.Generator().manual_seed(0))


def shake(model: torch.nn.Module) -> None:
    """Move biases and norms off their start values, which would hide a missing one."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.05)


@pytest.mark.parametrize("name", THEIRS)
@torch.no_grad()
def test_logits_agree_with_transformers_on_its_checkpoints(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    theirs = transformers.AutoModelForCausalLM.from_config(THEIRS[name], dtype=torch.float32).eval()
    shake(theirs)
    theirs.save_pretrained(tmp_path)
    ours = load_pretrained(tmp_path)
    torch.testing.assert_close(ours(IDS), theirs(IDS).logits, atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", OURS)
@torch.no_grad()
def test_transformers_reads_our_checkpoints_and_agrees(name: str, tmp_path: Path) -> None:
    ours = Decoder(OURS[name], seed=3)
    shake(ours)
    save_pretrained(ours, tmp_path)
    theirs, told = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path, dtype=torch.float32, output_loading_info=True
    )
    assert not told["missing_keys"]
    assert not told["unexpected_keys"]
    torch.testing.assert_close(ours(IDS), theirs(IDS).logits, atol=1e-4, rtol=0)
    assert read_config(tmp_path) == type(TINY)(
        **{field: getattr(OURS[name], field) for field in TINY.__dataclass_fields__} | {"head_dim": OURS[name].width}
    )


def test_shards_and_bfloat16_come_back(tmp_path: Path) -> None:
    model = Decoder(TINY, seed=3)
    save_pretrained(model, tmp_path / "one", dtype=torch.bfloat16)
    save_pretrained(model, tmp_path / "many", dtype=torch.bfloat16, shard_bytes=4096)
    assert len(list((tmp_path / "many").glob("model-*.safetensors"))) > 3
    one, many = load_pretrained(tmp_path / "one"), load_pretrained(tmp_path / "many")
    for name, tensor in model.state_dict().items():
        assert torch.equal(one.state_dict()[name], many.state_dict()[name])
        assert torch.equal(one.state_dict()[name], tensor.bfloat16().float())
    assert load_pretrained(tmp_path / "one", dtype=torch.bfloat16).lm_head(torch.zeros(1, 32).bfloat16()).dtype
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "many", dtype=torch.float32)
    torch.testing.assert_close(many(IDS), theirs(IDS).logits, atol=1e-4, rtol=0)
    save_pretrained(model, tmp_path / "many")
    assert [path.name for path in (tmp_path / "many").glob("model*")] == ["model.safetensors"]


def test_saving_over_the_folder_a_model_was_loaded_from_keeps_the_model(tmp_path: Path) -> None:
    save_pretrained(Decoder(TINY, seed=3), tmp_path)
    first = load_pretrained(tmp_path)
    logits = first(IDS)
    save_pretrained(Decoder(TINY, seed=4), tmp_path)
    assert torch.equal(first(IDS), logits)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_pretrained(Decoder(TINY), tmp_path)
    return tmp_path


def edit_tensors(folder: Path, **changes: torch.Tensor | None) -> None:
    tensors = load_file(folder / "model.safetensors") | changes
    save_file({k: v for k, v in tensors.items() if v is not None}, folder / "model.safetensors")


def edit_config(folder: Path, **changes: object) -> None:
    config = json.loads((folder / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps(config))


def test_a_missing_tensor_is_named_with_its_shape(folder: Path) -> None:
    edit_tensors(folder, **{"model.layers.1.mlp.up_proj.weight": None})
    with pytest.raises(SpecError, match=r"lacks tensor model\.layers\.1\.mlp\.up_proj\.weight \(48, 32\)"):
        load_pretrained(folder)


def test_an_unexpected_tensor_is_named_with_its_shape(folder: Path) -> None:
    edit_tensors(folder, **{"model.layers.2.mlp.up_proj.weight": torch.zeros(48, 32)})
    with pytest.raises(SpecError, match=r"model\.layers\.2\.mlp\.up_proj\.weight \(48, 32\), which config"):
        load_pretrained(folder)


def test_a_misshapen_tensor_is_named_with_both_shapes(folder: Path) -> None:
    edit_tensors(folder, **{"model.norm.weight": torch.zeros(31)})
    with pytest.raises(SpecError, match=r"model\.norm\.weight is \(31\), config.json asks for \(32\)"):
        load_pretrained(folder)


def test_what_older_checkpoints_repeat_is_ignored(folder: Path) -> None:
    table = load_file(folder / "model.safetensors")["model.embed_tokens.weight"]
    extra = {"lm_head.weight": table, "model.layers.0.self_attn.rotary_emb.inv_freq": torch.zeros(4)}
    edit_tensors(folder, **extra)
    assert torch.equal(load_pretrained(folder)(IDS), Decoder(TINY)(IDS))


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, "rope scaling 'yarn'"),
        ({"rope_scaling": {"type": "linear", "factor": 2.0}}, "rope scaling 'linear'"),
        ({"rope_parameters": {"rope_type": "llama3", "rope_theta": 5e5}}, "rope scaling 'llama3' lacks 'factor'"),
        ({"rope_scaling": ["yarn"]}, "rope scaling"),
        ({"rope_scaling": {"rope_type": "llama3"} | STRETCHED | {"factor": 0.5}}, "factor >= 1"),
        ({"num_key_value_heads": 0}, "must be at least 1"),
        ({"hidden_size": 12, "head_dim": 3}, "must be even"),
        ({"rms_norm_eps": [1]}, "config.json: "),
        ({"quantization_config": "w8a8"}, "quantization"),
        ({"quantization_config": {"config_groups": ["x"]}}, "quant"),
        ({"hidden_act": ["silu"]}, "hidden_act"),
        ({"layer_types": 3}, "layer_types"),
        ({"num_hidden_layers": 10**12}, "num_hidden_layers is 1000000000000"),
        ({"model_type": ["llama"]}, "model_type"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor 0.5"),
        ({"model_type": "mixtral"}, "model_type 'mixtral'"),
        ({"model_type": "mistral", "sliding_window": 16}, "sliding_window 16"),
        ({"hidden_act": "gelu"}, "hidden_act 'gelu'"),
        ({"attention_bias": True}, "attention_bias"),
        ({"hidden_size": None}, "hidden_size is None"),
        ({"num_attention_heads": "4"}, "num_attention_heads is '4'"),
        ({"num_key_value_heads": 3}, "multiple of kv_heads"),
        ({"quantization_config": {"quant_method": "gptq"}}, "quant_method 'gptq'"),
    ],
)
def test_what_the_decoder_would_compute_wrongly_is_refused(
    folder: Path, changes: dict[str, object], match: str
) -> None:
    edit_config(folder, **changes)
    with pytest.raises(SpecError, match=match):
        load_pretrained(folder)


def test_the_first_of_several_end_tokens_is_the_models(folder: Path) -> None:
    edit_config(folder, eos_token_id=[7, 8], bos_token_id=None)
    assert (read_config(folder).eos_id, read_config(folder).bos_id) == (7, None)


def test_a_torn_weights_file_and_missing_files_are_spec_errors(folder: Path) -> None:
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(SpecError, match="not a safetensors file"):
        load_pretrained(folder)
    (folder / "model.safetensors").unlink()
    with pytest.raises(NotFound, match=r"no model\.safetensors"):
        load_pretrained(folder)
    (folder / "config.json").write_text("{")
    with pytest.raises(SpecError, match="not readable JSON"):
        read_config(folder)
    (folder / "config.json").unlink()
    with pytest.raises(NotFound, match=r"no config\.json"):
        read_config(folder)


def test_names_resolve_to_folders_or_say_what_to_do(folder: Path) -> None:
    assert locate(str(folder)) == folder
    with pytest.raises(NotFound, match="no folder"):
        locate(folder / "nowhere")
    with pytest.raises(NotFound, match="neither a folder nor a model") as caught:
        locate("nobody/has-this")
    assert "without network" in caught.value.hint


def test_a_full_disk_is_unavailable_and_leaves_the_old_weights(folder: Path) -> None:
    """A file-size limit in a child process stands for the disk: writing fails half-way through the file."""
    before = (folder / "model.safetensors").read_bytes()
    script = (
        "import resource, signal, sys\n"
        "from mainspring.models.transformer import Decoder\n"
        "from mainspring.models.weights import save_pretrained\n"
        "from mainspring.spec import DecoderConfig, Unavailable\n"
        "config = DecoderConfig(vocab=64, hidden=32, layers=2, heads=4, kv_heads=2, ffn=48, context=64)\n"
        "model = Decoder(config, seed=9)\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))\n"
        "try:\n"
        "    save_pretrained(model, sys.argv[1])\n"
        "except Unavailable as error:\n"
        "    sys.exit(error.exit_code)\n"
    )
    done = subprocess.run([sys.executable, "-c", script, str(folder)], capture_output=True, text=True)
    assert done.returncode == 75, done.stderr
    assert (folder / "model.safetensors").read_bytes() == before
    assert not list(folder.glob("*.partial"))
    load_pretrained(folder)
