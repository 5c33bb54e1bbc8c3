"""Text to token ids and back: training a byte-level BPE tokenizer, and using any Hugging Face `tokenizer.json`.

Text is data: `encode` never turns the characters `<|im_end|>` in a document or a user's message into the control
token of that name. Only `encode_prompt`, for text whose author may use control tokens, does that; `chat_ids` renders
a conversation with the messages kept as data.
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any

import tokenizers
from jinja2 import TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment
from tokenizers import AddedToken, Regex, decoders, models, pre_tokenizers, trainers

from mainspring.models.config import read_json
from mainspring.spec import NotFound, Progress, SpecError, Unavailable, silent

END_OF_TEXT, TURN_START, TURN_END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
SPECIAL = (END_OF_TEXT, TURN_START, TURN_END)
BYTES = 256
REPLACEMENT = "\ufffd"
# The GPT-4 split, but digits in runs of at most two: three-digit tokens waste a small vocabulary.
WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,2}|"
    r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# Longer texts are encoded in parts: splitting patterns such as the one above backtrack over runs of spaces, and past
# ten million steps the regular-expression engine panics with something that is not even an `Exception`.
PART_CHARACTERS = 200_000
REPORT_CHARACTERS = 1_000_000
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


class Tokenizer:
    """A `tokenizer.json` with what `tokenizer_config.json` says about it."""

    def __init__(self, inner: tokenizers.Tokenizer, settings: Mapping[str, Any]) -> None:
        self._inner = inner
        self._settings = dict(settings)

    @classmethod
    def load(cls, folder: Path | str) -> "Tokenizer":
        """The tokenizer in `folder`. Raises `NotFound` without a tokenizer.json, `SpecError` for a bad one."""
        path = Path(folder) / "tokenizer.json"
        if not path.is_file():
            raise NotFound(
                f"{folder} has no tokenizer.json",
                hint="models with only a SentencePiece file: save them once with transformers' AutoTokenizer",
            )
        try:
            inner = tokenizers.Tokenizer.from_file(str(path))
        except Exception as error:  # tokenizers raises bare Exception for every malformed file
            raise SpecError(f"{path} is not a tokenizer: {error}") from error
        inner.no_truncation()
        inner.no_padding()
        settings = {}
        for name in ("tokenizer_config.json", "generation_config.json", "config.json"):
            if path.with_name(name).is_file():
                settings = read_json(path.with_name(name)) | settings
        template = path.with_name("chat_template.jinja")
        if template.is_file():
            settings["chat_template"] = template.read_text(encoding="utf-8")
        return cls(inner, settings)

    def save(self, folder: Path | str) -> None:
        """Write `tokenizer.json` and `tokenizer_config.json`, which transformers' AutoTokenizer reads."""
        folder = Path(folder)
        kept = ("chat_template", "model_max_length", "clean_up_tokenization_spaces")
        config = {key: self._settings[key] for key in kept if key in self._settings}
        config |= {f"{name}_token": text for name in ("bos", "eos", "pad") if (text := self._named(name))}
        config |= {"tokenizer_class": "PreTrainedTokenizerFast"}
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._inner.save(str(folder / "tokenizer.json"))
            (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2), encoding="utf-8")
        except Exception as error:  # tokenizers raises bare Exception for a full disk too
            raise Unavailable(f"cannot write the tokenizer to {folder}: {error}") from error

    @property
    def vocab(self) -> int:
        """How many ids there are, control tokens included."""
        return self._inner.get_vocab_size(with_added_tokens=True)

    @property
    def bos_id(self) -> int | None:
        """The id that opens a text, where the tokenizer names one."""
        return self._id("bos")

    @property
    def eos_id(self) -> int | None:
        """The id that ends a text, where the tokenizer names one."""
        return self._id("eos")

    @cached_property
    def stop_ids(self) -> frozenset[int]:
        """Every id that ends a generation: the end token, the end of a chat turn, and what the files list."""
        listed = self._settings.get("eos_token_id")
        found = listed if isinstance(listed, list) else [listed]
        turn_end = self._inner.token_to_id(TURN_END)
        return frozenset(token for token in (self.eos_id, turn_end, *found) if isinstance(token, int))

    def encode(self, text: str) -> list[int]:
        """The ids of `text` taken as plain data; nothing is added before or after."""
        return _encode(self._plain, text)

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """`encode` of many texts, on all cores."""
        parts = [list(_parts(text)) for text in texts]
        flat = [part for each in parts for part in each]
        found = iter(self._plain.encode_batch_fast(flat, add_special_tokens=False))
        return [[token for _ in each for token in next(found).ids] for each in parts]

    def encode_prompt(self, text: str) -> list[int]:
        """The ids of `text` as its model expects a prompt: control tokens count, and an opening one is added."""
        first, *rest = _parts(text)
        ids = list(self._inner.encode(first, add_special_tokens=True).ids)
        return ids + [token for part in rest for token in _encode(self._inner, part)]

    def decode(self, ids: Sequence[int], *, keep_special: bool = False) -> str:
        """The text of `ids`; control tokens are left out unless kept."""
        return self._inner.decode(list(ids), skip_special_tokens=not keep_special)

    def stream(self) -> "TextStream":
        """A fresh incremental decoder."""
        return TextStream(self)

    def chat(self, messages: Sequence[tuple[str, str]]) -> str:
        """The prompt that asks for the next turn after `messages` of (role, content)."""
        source = self._settings.get("chat_template")
        if isinstance(source, list):  # older files name several templates
            named = [each for each in source if isinstance(each, Mapping) and each.get("name") == "default"]
            source = named[0].get("template") if named else None
        if not isinstance(source, str) or not source:
            raise SpecError("this tokenizer has no chat template", hint="send a plain prompt instead")
        turns = [{"role": role, "content": content} for role, content in messages]
        names = {f"{name}_token": self._named(name) or "" for name in ("bos", "eos", "pad", "unk")}
        try:
            template = _sandbox().from_string(source)
            return template.render(messages=turns, add_generation_prompt=True, **names)
        except (TemplateError, TypeError, ValueError) as error:
            raise SpecError(f"the chat template does not accept these messages: {error}") from error

    def chat_ids(self, messages: Sequence[tuple[str, str]]) -> list[int]:
        """The ids of `chat(messages)`. Control tokens written by the template count, those in a message do not."""
        if not any(token in content for token in self._control for _, content in messages):
            return _encode(self._inner, self.chat(messages))
        marks = [f"\ue000{index}\ue001" for index in range(len(messages))]
        text = self.chat([(role, mark) for (role, _), mark in zip(messages, marks, strict=True)])
        ids: list[int] = []
        for mark, (_, content) in zip(marks, messages, strict=True):
            before, found, text = text.partition(mark)
            if not found:  # the template drops or rewrites this message, so its place is not known
                return self.chat_ids([(role, self._without_control(content)) for role, content in messages])
            ids += _encode(self._inner, before) + self.encode(content)
        return ids + _encode(self._inner, text)

    @cached_property
    def _control(self) -> tuple[str, ...]:
        """The control tokens as text."""
        added = self._inner.get_added_tokens_decoder().values()
        return tuple(token.content for token in added if token.special)

    def _without_control(self, text: str) -> str:
        """`text` with control tokens cut out, until cutting leaves none behind."""
        while any(token in text for token in self._control):
            for token in self._control:
                text = text.replace(token, "")
        return text

    @cached_property
    def _plain(self) -> tokenizers.Tokenizer:
        """The same tokenizer, blind to control tokens. A copy, because the switch is not safe among threads."""
        plain = tokenizers.Tokenizer.from_str(self._inner.to_str())
        plain.encode_special_tokens = True
        return plain

    def _named(self, name: str) -> str | None:
        token = self._settings.get(f"{name}_token")
        text = token.get("content") if isinstance(token, dict) else token
        return text if isinstance(text, str) else None

    def _id(self, name: str) -> int | None:
        token = self._named(name)
        return None if token is None else self._inner.token_to_id(token)


class TextStream:
    """Turns a growing list of ids into pieces of text that never end inside a character.

    Invariant: the pieces concatenated, with `finish()`, are the decoding of all ids. The last character of a
    decoding is held back while it is U+FFFD, since that is how an unfinished character decodes; everything
    before it is final. Decoding restarts a few tokens back, so the cost of a piece does not grow with the text.
    """

    KEEP = 4  # tokens decoded again for context: decoders look one token back, a character spans at most four

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._ids: list[int] = []
        self._sent = 0

    def push(self, ids: Sequence[int]) -> str:
        """Add `ids` and return the text they complete, possibly none."""
        self._ids.extend(ids)
        text = self._tokenizer.decode(self._ids)
        final = len(text) - text.endswith(REPLACEMENT)
        piece, self._sent = text[self._sent : final], max(self._sent, final)
        if final == len(text) and len(self._ids) > 4 * self.KEEP:
            self._ids = self._ids[-self.KEEP :]
            self._sent = len(self._tokenizer.decode(self._ids))
        return piece

    def finish(self) -> str:
        """The text still held back: replacement characters for bytes that never became a character."""
        piece = self._tokenizer.decode(self._ids)[self._sent :]
        self._sent += len(piece)
        return piece


def train_bpe(texts: Iterable[str], *, vocab: int, progress: Progress = silent) -> Tokenizer:
    """A byte-level BPE tokenizer of at most `vocab` ids learned from `texts`: the same texts give the same one.

    Ids 0, 1, 2 are the end-of-text, turn-start and turn-end tokens; a small corpus may support fewer ids.
    """
    least = BYTES + len(SPECIAL)
    if vocab < least:
        raise SpecError(f"vocab is {vocab}, byte-level BPE needs at least {least}")
    inner = tokenizers.Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(WORDS), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    inner.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab,
        special_tokens=[AddedToken(token, special=True, normalized=False) for token in SPECIAL],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    seen = 0

    def counted() -> Iterator[str]:
        nonlocal seen
        for text in texts:
            if seen // REPORT_CHARACTERS < (seen + len(text)) // REPORT_CHARACTERS:
                progress(0.0, f"reading text: {(seen + len(text)) / 1e6:.1f} M characters")
            seen += len(text)
            yield from _parts(text)

    inner.train_from_iterator(counted(), trainer)
    if not seen:
        raise SpecError("there is no text to train a tokenizer on")
    progress(1.0, f"{inner.get_vocab_size()} tokens from {seen / 1e6:.1f} M characters")
    settings = {"bos_token": END_OF_TEXT, "eos_token": END_OF_TEXT, "pad_token": END_OF_TEXT}
    return Tokenizer(inner, settings | {"chat_template": CHAT_TEMPLATE})


def _encode(inner: tokenizers.Tokenizer, text: str) -> list[int]:
    return [token for part in _parts(text) for token in inner.encode(part, add_special_tokens=False).ids]


def _parts(text: str) -> Iterator[str]:
    """`text` in pieces of at most `PART_CHARACTERS`, cut after a line where there is one.

    Half surrogate pairs, which JSON can smuggle into a string but UTF-8 cannot hold, become U+FFFD.
    """
    try:
        text.encode()
    except UnicodeEncodeError:
        text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    start = 0
    while len(text) - start > PART_CHARACTERS:
        end = start + PART_CHARACTERS
        end = text.rfind("\n", start + PART_CHARACTERS // 2, end) + 1 or end
        yield text[start:end]
        start = end
    yield text[start:]


def _sandbox() -> ImmutableSandboxedEnvironment:
    """The environment chat templates are written for; they come from strangers, hence the sandbox."""

    def refuse(message: str) -> None:
        raise TemplateError(message)

    sandbox = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    sandbox.globals["raise_exception"] = refuse
    sandbox.globals["strftime_now"] = lambda form: datetime.now(UTC).strftime(form)
    sandbox.filters["tojson"] = lambda value, **options: json.dumps(value, ensure_ascii=False, **options)
    return sandbox
