"""A real tiny model for the serving suite: a BPE trained here, random weights drawn from a seed, both formats."""

from pathlib import Path

import pytest
import torch

from mainspring.models.linear import W8A8Linear
from mainspring.models.tokenizer import Tokenizer, train_bpe
from mainspring.models.transformer import Decoder
from mainspring.models.weights import load_pretrained, save_pretrained
from mainspring.spec import DecoderConfig

TEXTS = [
    "The os.path module joins two paths with os.path.join and splits them with os.path.split.",
    "A dictionary maps keys to values; a list keeps items in order; a set forgets duplicates.",
    "Naïve café: 日本語 😀 and other characters that take several bytes each.",
    "def join(a, *p):\n    return a + '/' + '/'.join(p)\n",
] * 8


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """Kernels of microseconds; a second thread only waits for a core on a busy machine."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    return train_bpe(TEXTS, vocab=400)


@pytest.fixture(scope="session")
def tiny_config(tokenizer: Tokenizer) -> DecoderConfig:
    return DecoderConfig(
        vocab=tokenizer.vocab,
        hidden=64,
        layers=3,
        heads=4,
        kv_heads=2,
        ffn=128,
        context=256,
        qk_norm=True,
        bos_id=tokenizer.bos_id,
        eos_id=tokenizer.eos_id,
    )


@pytest.fixture(scope="session")
def model_folder(tokenizer: Tokenizer, tiny_config: DecoderConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights, three times the usual deviation, so that the most likely token is not always the last one."""
    folder = tmp_path_factory.mktemp("tiny")
    model = Decoder(tiny_config, seed=7)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1:
                parameter.mul_(5 if "layers" in name else 2)
    save_pretrained(model, folder, tokenizer=tokenizer)
    return folder


@pytest.fixture(scope="session")
def int8_folder(model_folder: Path, tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same model with 8-bit layers."""
    folder = tmp_path_factory.mktemp("tiny-int8")
    model = load_pretrained(model_folder)
    for name, module in list(model.blocks.named_modules()):
        if isinstance(module, torch.nn.Linear):
            model.blocks.set_submodule(name, W8A8Linear.from_linear(module))
    save_pretrained(model, folder, tokenizer=tokenizer)
    return folder
