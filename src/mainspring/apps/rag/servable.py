"""An assistant as a served name: whoever can call an OpenAI-compatible server can ask it.

The question is the last user message. Text is streamed only after it was checked against its passages, in pieces of
a word; the last piece carries trace, citations, mode and note. Sampling parameters other than `stop` belong to
language models and are not used: the answer ends where it ends.
"""

import asyncio
import re
from collections.abc import AsyncIterator, Sequence

from mainspring.apps.rag.assistant import LONGEST_QUESTION, Rag
from mainspring.serve.servable import Embeddable, Embeddings, Piece, Prompt
from mainspring.spec import SamplingParams, SpecError
from mainspring.store import Store
from mainspring.store.parse import to_dict

_WORD = re.compile(r"\s*\S+\s*\Z|\s*\S+")


class RagServable:
    """Implements `serve.servable.Servable` over an opened assistant."""

    def __init__(self, rag: Rag, *, name: str, created_s: float) -> None:
        self.rag = rag
        self.name = name
        self.created_s = created_s
        self.context = LONGEST_QUESTION

    async def stream(self, prompt: Prompt, sampling: SamplingParams) -> AsyncIterator[Piece]:
        """Ask, then yield the answer word by word."""
        question = _question(prompt)
        asked_tokens = len(question.split())
        answer = await asyncio.to_thread(self.rag.ask, question)
        ends = [at for stop in sampling.stop if stop and (at := answer.text.find(stop)) >= 0]
        for word in _WORD.findall(answer.text[: min(ends, default=None)]):
            yield Piece(text=word, prompt_tokens=asked_tokens)
        found = to_dict(answer)
        metadata = {key: found[key] for key in ("trace", "citations", "mode", "note")}
        yield Piece(text="", finish="stop", prompt_tokens=asked_tokens, metadata=metadata)

    async def embed(self, inputs: Sequence[Embeddable]) -> Embeddings:
        """Vectors of the index's own embedder."""
        embedder = self.rag.index.embedder
        texts = [each if isinstance(each, str) else embedder.decode(each) for each in inputs]
        vectors = await asyncio.to_thread(self.rag.index.encode, texts)
        return Embeddings(vectors.tolist(), embedder.count(texts), nested=embedder.nested)

    def close(self) -> None:
        """Free the generator."""
        self.rag.close()


def open_servable(store: Store, ref: str, *, name: str = "") -> RagServable:
    """The assistant published as `ref` under the name it is asked by (its own by default)."""
    artifact = store.resolve(ref)
    return RagServable(Rag(store, artifact.ref), name=name or artifact.name, created_s=artifact.created_s)


def _question(prompt: Prompt) -> str:
    if prompt.messages is not None:
        asked = [content for role, content in prompt.messages if role == "user"]
        if not asked:
            raise SpecError("no message of role user", hint="the assistant answers the last user message")
        return asked[-1]
    if prompt.text is None:
        raise SpecError("an assistant reads text, not token ids", hint="send messages, or the prompt as a string")
    return prompt.text
