"""Request bodies of the OpenAI API: what is understood, what is ignored, and what is refused by name.

A field that would change the answer and is not supported is refused, because an answer that silently ignores it is
worse than none. A field that changes nothing (`user`, `metadata`, a penalty of 0) is ignored. Anything else is a
typo and refused with the nearest known name.
"""

import difflib
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from mainspring.serve.refusals import Refusal
from mainspring.serve.servable import Embeddable, Prompt
from mainspring.spec import SamplingParams

IGNORED = frozenset(
    (
        "metadata",
        "parallel_tool_calls",
        "prompt_cache_key",
        "prompt_cache_retention",
        "reasoning_effort",
        "safety_identifier",
        "service_tier",
        "store",
        "user",
        "verbosity",
    )
)
# Known fields that are not supported, with the values that ask for nothing.
NEUTRAL: dict[str, tuple[object, ...]] = {
    "audio": (),
    "best_of": (1,),
    "bad_words": ([],),
    "chat_template": (),
    "frequency_penalty": (0,),
    "function_call": ("none",),
    "functions": ([],),
    "guided_json": (),
    "logit_bias": ({},),
    "min_p": (0,),
    "min_tokens": (0,),
    "modalities": (["text"],),
    "prediction": (),
    "presence_penalty": (0,),
    "repetition_penalty": (1,),
    "response_format": ({"type": "text"},),
    "stop_token_ids": ([],),
    "structured_outputs": (),
    "suffix": ("",),
    "tool_choice": ("none", "auto"),
    "tools": ([],),
    "top_k": (0, -1),
    "web_search_options": (),
}
SHAPES = {
    "prompt": "must be a string, a list of strings, a list of token ids, or a list of lists of token ids",
    "input": "must be a string, a list of strings, a list of token ids, or a list of lists of token ids",
    "stop": "must be a string or a list of up to 16 strings",
    "content": "must be a string or a list of parts of type text",
}
INPUTS = 2048
"""Entries of one embedding request, as in the OpenAI API."""
TokenIds = Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1)]
Stops = str | Annotated[list[str], Field(max_length=16)]
Kind = TypeVar("Kind", bound="Body")


class Body(BaseModel):
    """What every request has in common. Null means absent, as in the OpenAI API."""

    model_config = ConfigDict(extra="allow", strict=True, frozen=True)

    model: str


class StreamOptions(BaseModel):
    """`include_usage` adds a last chunk with the token counts."""

    model_config = ConfigDict(extra="ignore", strict=True, frozen=True)

    include_usage: bool | None = None


class GenerationBody(Body):
    """What both ways to generate share."""

    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    n: Annotated[int, Field(ge=1, le=128)] | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    stop: Stops | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    ignore_eos: bool | None = None

    @property
    def include_usage(self) -> bool:
        """Whether a stream ends with the token counts."""
        return bool(self.stream_options and self.stream_options.include_usage)

    def sampling(self, *, max_tokens: int | None, logprobs: int | None) -> SamplingParams:
        """The sampling these fields ask for."""
        stops = [self.stop] if isinstance(self.stop, str) else self.stop or []
        return SamplingParams(
            max_tokens=max_tokens,
            temperature=1.0 if self.temperature is None else self.temperature,
            top_p=1.0 if self.top_p is None else self.top_p,
            seed=self.seed,
            stop=tuple(stop for stop in stops if stop),
            logprobs=logprobs,
            ignore_eos=bool(self.ignore_eos),
        )


class CompletionBody(GenerationBody):
    """`POST /v1/completions`."""

    prompt: Annotated[str | list[str] | TokenIds | list[TokenIds], Field(union_mode="smart")]
    max_tokens: Annotated[int, Field(ge=0)] | None = None
    logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    echo: bool | None = None

    def prompts(self) -> list[Prompt]:
        """One prompt per text or list of token ids."""
        echo = bool(self.echo)
        if isinstance(self.prompt, str):
            return [Prompt(text=self.prompt, echo=echo)]
        if not self.prompt:
            raise Refusal("prompt is an empty list", param="prompt")
        if isinstance(self.prompt[0], int):
            return [Prompt(token_ids=tuple(self.prompt), echo=echo)]  # pyright: ignore[reportArgumentType]
        return [
            Prompt(text=each, echo=echo) if isinstance(each, str) else Prompt(token_ids=tuple(each), echo=echo)
            for each in self.prompt
            if not isinstance(each, int)
        ]


class TextPart(BaseModel):
    """The one kind of content part this server understands."""

    model_config = ConfigDict(extra="ignore", strict=True, frozen=True)

    type: Literal["text"]
    text: str


class Message(BaseModel):
    """One turn of a conversation."""

    model_config = ConfigDict(extra="allow", strict=True, frozen=True)

    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[TextPart]

    def turn(self) -> tuple[str, str]:
        """(role, text); `developer` is the newer name of `system`."""
        role = "system" if self.role == "developer" else self.role
        text = self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)
        return role, text


class ChatBody(GenerationBody):
    """`POST /v1/chat/completions`."""

    messages: Annotated[list[Message], Field(min_length=1)]
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None

    def prompt(self) -> Prompt:
        """The conversation."""
        for index, message in enumerate(self.messages):
            calls = [name for name in ("tool_calls", "function_call") if (message.model_extra or {}).get(name)]
            if calls:
                raise Refusal("tool calls are not supported", param=f"messages.{index}.{calls[0]}")
        return Prompt(messages=tuple(message.turn() for message in self.messages))

    def chosen_logprobs(self) -> int | None:
        """How many alternatives to report per token, None for no log-probabilities at all."""
        if self.top_logprobs and not self.logprobs:
            raise Refusal("top_logprobs needs logprobs to be true", param="top_logprobs")
        return (self.top_logprobs or 0) if self.logprobs else None


class EmbeddingBody(Body):
    """`POST /v1/embeddings`."""

    input: Annotated[str | list[str] | TokenIds | list[TokenIds], Field(union_mode="smart")]
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: Annotated[int, Field(ge=1)] | None = None

    def inputs(self) -> list[Embeddable]:
        """What to embed, each a text or the token ids of one."""
        listed = [self.input] if isinstance(self.input, str) else self.input
        ids = tuple(each for each in listed if isinstance(each, int))
        rest = [each if isinstance(each, str) else tuple(each) for each in listed if not isinstance(each, int)]
        found: list[Embeddable] = [ids] if ids else rest
        if not 0 < len(found) <= INPUTS:
            raise Refusal(f"input has {len(found)} entries, expected 1 to {INPUTS}", param="input")
        if "" in found:
            raise Refusal("input has an empty string", param="input", hint="leave it out")
        return found


def parse_body(kind: type[Kind], raw: bytes) -> Kind:
    """Read a request body, or raise a `Refusal` that names the first wrong field."""
    try:
        body = kind.model_validate_json(raw)
    except ValidationError as error:
        raise _explain(error) from error
    for name, value in (body.model_extra or {}).items():
        if value is None or name in IGNORED or (name == "best_of" and value == getattr(body, "n", 1)):
            continue
        if name not in NEUTRAL:
            near = difflib.get_close_matches(name, [*kind.model_fields, *NEUTRAL, *IGNORED], n=1)
            raise Refusal(
                f"unrecognized request argument: {name}",
                param=name,
                code="unknown_parameter",
                hint=f"did you mean {near[0]}?" if near else "remove it",
            )
        if value not in NEUTRAL[name]:
            raise Refusal(
                f"{name} is not supported, and leaving it out would change the answer",
                param=name,
                code="unsupported_parameter",
                hint="remove it, or ask a server that has it",
            )
    return body


def _explain(error: ValidationError) -> Refusal:
    """The first complaint in words; union branches are summed up by what the field accepts."""
    first: Any = error.errors(include_url=False)[0]
    if first["type"] == "json_invalid":
        return Refusal(f"the request body is not valid JSON: {first['ctx']['error']}", code="invalid_json")
    names = [str(part) for part in first["loc"] if isinstance(part, int) or str(part).isidentifier()]
    names = [name for name in names if name not in ("str", "int", "float", "bool")]
    param = ".".join(names)
    shaped = next((name for name in SHAPES if name in names), None)
    if first["type"] == "missing":
        return Refusal(f"you must provide {param}", param=param, code="missing_required_parameter")
    if shaped:
        param = f"{param.partition(shaped)[0]}{shaped}"
        return Refusal(f"{param} {SHAPES[shaped]}", param=param, code="invalid_type")
    message = first["msg"][:1].lower() + first["msg"][1:]
    return Refusal(f"{param or 'the request body'}: {message}", param=param, code="invalid_value")
