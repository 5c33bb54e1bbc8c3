"""A published model as the assistant's voice: a function from prompt to text over an engine of this process.

The engine is loaded when the first answer is generated, since an assistant that only extracts needs none.
"""

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from mainspring.serve.models import EngineServable
from mainspring.serve.servable import Prompt
from mainspring.spec import SamplingParams

ANSWER_TOKENS = 96
_SAMPLING = SamplingParams(max_tokens=ANSWER_TOKENS, temperature=0.0, stop=("\n\n", "\nQuestion:"))


class Voice:
    """Continues prompts with the model in `folder`, greedily; one prompt at a time."""

    def __init__(self, folder: Path, name: str) -> None:
        self._folder, self._name = folder, name
        self._servable: EngineServable | None = None
        self._lock = threading.Lock()
        # A thread of its own, so that asking also works where an event loop is already running (a notebook).
        self._thread = ThreadPoolExecutor(1, thread_name_prefix=f"voice-{name}")

    def __call__(self, prompt: str) -> str:
        """The continuation of `prompt`. `DoesNotFit` when it leaves no room in the model's context."""
        with self._lock:
            if self._servable is None:
                self._servable = EngineServable(self._name, self._folder)
            return self._thread.submit(asyncio.run, _continue(self._servable, prompt)).result()

    def close(self) -> None:
        """Stop the engine, if it was started."""
        with self._lock:
            if self._servable is not None:
                self._servable.close()
            self._servable = None
        self._thread.shutdown()


async def _continue(servable: EngineServable, prompt: str) -> str:
    return "".join([piece.text async for piece in servable.stream(Prompt(text=prompt), _SAMPLING)])
