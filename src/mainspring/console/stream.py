"""The stream of a served name, closed when its reader leaves, so that the engine stops working for nobody."""

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import cast

from mainspring.serve.servable import Piece, Prompt, Servable
from mainspring.spec import SamplingParams

Pieces = aclosing[AsyncGenerator[Piece, None]]


def pieces_of(servable: Servable, prompt: Prompt, sampling: SamplingParams) -> Pieces:
    """The pieces of the answer to `prompt`, to be read inside `async with`."""
    return aclosing(cast("AsyncGenerator[Piece, None]", servable.stream(prompt, sampling)))
