"""What a user writes to train a model: one Python file, single-device PyTorch, no word about ranks.

    import mainspring as ms
    from mainspring.models.transformer import Decoder
    from mainspring.spec import DecoderConfig

    def model(vocab, eos_id):
        return Decoder(DecoderConfig(vocab=vocab, hidden=256, layers=6, heads=4, kv_heads=2, ffn=768,
                                     context=512, eos_id=eos_id))

    recipe = ms.Recipe(model=model, config=ms.TrainConfig(steps=400, global_batch=32, seq_len=256))

`model` receives, by name, those facts about the data that its signature asks for (`FACTS`). `loss` may be left out for
next-token cross-entropy; `optimizer` for AdamW. A batch is an int64 tensor of `(rows, seq_len + 1)` token ids.

Deliberately absent: devices, process groups, wrappers, autocast, accumulation. The plan decides those.
"""

from __future__ import annotations

import difflib
import functools
import hashlib
import inspect
import sysconfig
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mainspring.spec import SpecError, TrainConfig
from mainspring.spec.plugin import run_file
from mainspring.store import parse

if TYPE_CHECKING:
    from torch import Tensor, nn
    from torch.optim import Optimizer

Facts = Mapping[str, int | None]
Loss = Callable[["nn.Module", "Tensor"], "Tensor | tuple[Tensor, Tensor | int]"]
LIBRARIES = (*(sysconfig.get_path(name) for name in ("stdlib", "purelib", "platlib")), str(Path(__file__).parents[1]))
FACTS = ("vocab", "seq_len", "eos_id", "bos_id", "seed")
OTHER_FILES = {
    ".toml": "a flow runs with `mainspring run {0}`, and its training step names its recipe",
    ".json": "a saved plan is read by `mainspring plan explain {0}`",
}


def next_token_loss(model: nn.Module, batch: Tensor) -> tuple[Tensor, Tensor | int]:
    """Cross-entropy of each token given those before it: the sum in nats, and over how many tokens.

    The model returns scores, or an object that has them as `logits`, as the models of transformers do.
    """
    from torch.nn.functional import cross_entropy

    found, targets_BT = model(batch[:, :-1]), batch[:, 1:]
    logits_BTV = getattr(found, "logits", found)
    if not hasattr(logits_BTV, "flatten"):
        raise SpecError(
            f"{defined_at(model)}the model returns a {type(found).__name__}, next-token cross-entropy wants its scores",
            hint="return the scores as a tensor or as .logits, or give the recipe a loss: loss(model, batch)",
        )
    total = cross_entropy(logits_BTV.flatten(0, 1).float(), targets_BT.flatten(), reduction="sum")
    return total, targets_BT.numel()


def adamw(model: nn.Module, config: TrainConfig) -> Optimizer:
    """AdamW (Loshchilov & Hutter 2019) whose weight decay leaves out vectors: norms, biases, scales."""
    from torch.optim import AdamW

    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in trainable if p.ndim >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in trainable if p.ndim < 2], "weight_decay": 0.0},
    ]
    # A stage of a pipeline may have nothing to train: groups without parameters are taken, an empty list is not.
    used = [group for group in groups if group["params"]]
    return AdamW(used or groups, lr=config.lr, betas=(config.beta1, config.beta2), fused=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """A model, a loss, an optimiser and the numbers.

    `loss(model, batch)` returns the mean over the rows of the batch, or `(sum, count)` when rows carry unequal weight
    (padded or masked tokens): the step's loss is then the sum of all sums over the sum of all counts, whatever the
    number of ranks and micro-batches.
    """

    model: Callable[..., nn.Module]
    config: TrainConfig
    loss: Loss = next_token_loss
    optimizer: Callable[[nn.Module, TrainConfig], Optimizer] = adamw

    def __post_init__(self) -> None:
        for name in ("model", "loss", "optimizer"):
            if not callable(getattr(self, name)):
                raise SpecError(f"the recipe's {name} is {getattr(self, name)!r}, which cannot be called")
        if not isinstance(self.config, TrainConfig):
            raise SpecError(f"the recipe's config is {self.config!r}", hint="write config=ms.TrainConfig(...)")
        _check_facts(self.model)

    def build(self, facts: Facts) -> nn.Module:
        """Make the model from those `facts` that the `model` function names."""
        wanted = inspect.signature(self.model).parameters
        return self.model(**{name: facts[name] for name in FACTS if name in wanted})


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedRecipe:
    """A recipe, where it came from, and the SHA-256 of that file (modules it imports are not part of it)."""

    recipe: Recipe
    path: Path
    digest: str


def load_recipe(path: str | Path, overrides: Sequence[str] = ()) -> LoadedRecipe:
    """Run the file at `path` and return the `recipe` it defines, with `overrides` (`steps=100`) on its config.

    Raises `SpecError` naming the file and the line when the file is missing, does not run, or defines no recipe, and
    when an override names no field.
    """
    file = Path(path).expanduser().absolute()
    try:
        source = file.read_bytes()
    except OSError as error:
        raise SpecError(
            f"cannot read the recipe {file}: {error.strerror}", hint="give the path of a recipe.py"
        ) from error
    if file.suffix in OTHER_FILES:
        raise SpecError(f"{file} is no recipe, which is a Python file", hint=OTHER_FILES[file.suffix].format(path))
    digest = hashlib.sha256(source).hexdigest()
    recipe = _find_recipe(_execute(file, source), file)
    if overrides:
        recipe = replace(recipe, config=override(recipe.config, overrides))
    return LoadedRecipe(recipe=recipe, path=file, digest=digest)


def override(config: TrainConfig, overrides: Sequence[str]) -> TrainConfig:
    """`config` with `name=value` assignments applied; `SpecError` names the nearest field for a typo."""
    return parse.read_dict(parse.apply_overrides(parse.to_dict(config), overrides), TrainConfig)


def _check_facts(model: Callable[..., nn.Module]) -> None:
    for parameter in inspect.signature(model).parameters.values():
        required = parameter.default is inspect.Parameter.empty and parameter.kind not in (
            inspect.Parameter.VAR_POSITIONAL,
            inspect.Parameter.VAR_KEYWORD,
        )
        if required and parameter.name not in FACTS:
            near = difflib.get_close_matches(parameter.name, FACTS, n=1)
            raise SpecError(
                f"the recipe's model asks for {parameter.name!r}, which is no fact about the data",
                hint=f"did you mean {near[0]!r}?" if near else f"it may ask for: {', '.join(FACTS)}",
            )


def _execute(file: Path, source: bytes) -> Mapping[str, Any]:
    try:
        return vars(run_file(file, source))
    except SyntaxError as error:
        raise SpecError(f"{error.filename}:{error.lineno}: {error.msg}") from error
    except SpecError as error:
        raise SpecError(f"{_where(error, file)}: {error}", hint=error.hint) from error
    except Exception as error:  # the user's code: anything may come out of it
        raise SpecError(f"{_where(error, file)}: {type(error).__name__}: {error}") from error


def line_of_user(error: BaseException) -> str:
    """`file:line: ` of the innermost call of a failure that is no library's; empty when there is none."""
    frames = traceback.extract_tb(error.__traceback__)
    mine = [f"{frame.filename}:{frame.lineno}: " for frame in frames if not is_library(frame.filename)]
    return mine[-1] if mine else ""


def defined_at(part: object) -> str:
    """`file:line: ` where a user wrote a function, or the forward of a module; empty for what a library has."""
    function: Any = getattr(type(part), "forward", part)
    while isinstance(function, functools.partial):
        function = function.func
    if isinstance(function, type):
        function = function.__init__
    code = getattr(inspect.unwrap(function), "__code__", None)
    return f"{code.co_filename}:{code.co_firstlineno}: " if code and not is_library(code.co_filename) else ""


def is_library(file: str) -> bool:
    """Whether the code of `file` is Python's, an installed package's, or ours: nothing a user wrote or can change."""
    return file.startswith("<") or any(Path(file).is_relative_to(folder) for folder in LIBRARIES)


def _where(error: BaseException, file: Path) -> str:
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(file)]
    return f"{file}:{lines[-1]}" if lines else str(file)


def _find_recipe(names: Mapping[str, Any], file: Path) -> Recipe:
    found = names.get("recipe")
    if isinstance(found, Recipe):
        return found
    if found is not None:
        raise SpecError(f"{file}: recipe is {found!r}", hint="write recipe = ms.Recipe(model=..., config=...)")
    near = difflib.get_close_matches("recipe", names, n=1, cutoff=0.7)
    recipes = [name for name, value in names.items() if isinstance(value, Recipe)] or near
    raise SpecError(
        f"{file} defines no recipe",
        hint=f"rename {recipes[0]} to recipe" if recipes else "write recipe = ms.Recipe(model=..., config=...)",
    )
