"""The `@spec` decorator: the one way this code base declares a noun.

A spec is a frozen, slotted, keyword-only dataclass. It carries no behaviour beyond derived properties and
`__post_init__` validation, imports nothing outside the standard library, and can be pickled, hashed, compared and
written to JSON. `STRICT` is read by pydantic when a file or a request is parsed at the boundary (see
`mainspring.store.parse`); pydantic itself is not imported here.
"""

from dataclasses import dataclass, field
from typing import Any, TypeVar, dataclass_transform

T = TypeVar("T")

STRICT: dict[str, Any] = {"extra": "forbid", "strict": True}


@dataclass_transform(frozen_default=True, kw_only_default=True, field_specifiers=(field,))
def spec(cls: type[T]) -> type[T]:
    """Make `cls` a frozen, slotted, keyword-only dataclass that rejects unknown fields."""
    cls.__pydantic_config__ = STRICT  # pyright: ignore[reportAttributeAccessIssue]
    return dataclass(frozen=True, slots=True, kw_only=True)(cls)
