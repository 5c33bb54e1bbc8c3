"""What training publishes: folders that transformers can read, and this library where it knows the architecture."""

from pathlib import Path

import pytest
import torch
import transformers
from torch import Tensor, nn

from mainspring.models.config import check_readable
from mainspring.models.structure import set_cache
from mainspring.models.tokenizer import train_bpe
from mainspring.models.weights import load_pretrained
from mainspring.spec import NotFound, SpecError
from mainspring.train.worker import export

SIZES = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
ENDS = {"vocab_size": 300, "bos_token_id": 0, "eos_token_id": 1}
IDS = torch.arange(24).reshape(2, 12)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    train_bpe(["a wheel turns about an axle"] * 9, vocab=300).save(folder)
    return folder


def trained(model: nn.Module) -> dict[str, Tensor]:
    """The whole weights as ranks gather them: each once, under its first name, norms and biases moved from 1 and 0."""
    set_cache(model, used=False)
    first = {id(tensor): name for name, tensor in reversed(model.state_dict(keep_vars=True).items())}
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return {name: tensor for name, tensor in model.state_dict().items() if name in first.values()}


def gpt2(*, tied: bool) -> nn.Module:
    config = transformers.GPT2Config(n_embd=16, n_layer=2, n_head=2, n_positions=32, tie_word_embeddings=tied, **ENDS)
    return transformers.GPT2LMHeadModel(config)


def llama(*, tied: bool) -> nn.Module:
    config = transformers.LlamaConfig(tie_word_embeddings=tied, num_key_value_heads=1, **SIZES, **ENDS)
    return transformers.LlamaForCausalLM(config)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("build", [gpt2, llama])
def test_a_model_of_transformers_is_read_by_transformers(build, tied: bool, tokenizer: Path, tmp_path: Path) -> None:
    torch.manual_seed(1)
    model = build(tied=tied).eval()
    state = trained(model)
    assert ("lm_head.weight" in state) != tied
    export(model, state, tmp_path, tokenizer=tokenizer)
    found = transformers.AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    assert type(found) is type(model)
    assert found.config.use_cache
    with torch.no_grad():
        torch.testing.assert_close(found(IDS).logits, model(IDS).logits, rtol=0, atol=0)
    assert transformers.AutoTokenizer.from_pretrained(tmp_path).vocab_size


@pytest.mark.parametrize("tied", [True, False])
def test_a_llama_of_transformers_is_evaluated_and_served_too(tied: bool, tokenizer: Path, tmp_path: Path) -> None:
    torch.manual_seed(1)
    model = llama(tied=tied).eval()
    export(model, trained(model), tmp_path, tokenizer=tokenizer)
    check_readable(tmp_path, "model:llama@1")
    with torch.no_grad():
        torch.testing.assert_close(load_pretrained(tmp_path)(IDS), model(IDS).logits, rtol=1e-5, atol=1e-5)


def test_what_cannot_be_read_is_named_and_not_the_folder_it_lies_in(tokenizer: Path, tmp_path: Path) -> None:
    ours = nn.Sequential(nn.Embedding(300, 4), nn.Linear(4, 300))
    export(ours, ours.state_dict(), tmp_path, tokenizer=tokenizer)
    with pytest.raises(NotFound, match=r"model:own@1 has no config\.json") as caught:
        check_readable(tmp_path, "model:own@1")
    assert str(tmp_path) not in str(caught.value)
    other = gpt2(tied=True)
    export(other, trained(other), tmp_path, tokenizer=tokenizer)
    with pytest.raises(SpecError, match=r"config\.json of model:gpt2@1: model_type 'gpt2' is not supported"):
        check_readable(tmp_path, "model:gpt2@1")
