"""The append-only record of decisions, state changes, traces and feedback.

Sequence numbers grow in commit order, so `events(after=last)` in a loop sees every event exactly once.
"""

import json
import time
from collections.abc import Mapping
from typing import Any

from sqlalchemy import Row, insert, select

from mainspring.spec import Event
from mainspring.store.database import Database, events
from mainspring.store.parse import to_json

APPEND = insert(events).returning(events.c.seq)


class EventLog(Database):
    """Append and read events of this workspace."""

    def emit(self, kind: str, subject: str, data: Mapping[str, object]) -> Event:
        """Append one event and return it; inside `transaction()` it becomes visible with the rest."""
        values: dict[str, Any] = {"time_s": time.time(), "kind": kind, "subject": subject, "data_json": to_json(data)}
        with self.transaction() as connection:
            seq = connection.execute(APPEND, {"workspace": self.workspace, **values}).scalar_one()
        return Event(seq=seq, **values)

    def events(
        self, after: int = 0, kind: str | None = None, subject: str | None = None, limit: int = 1000
    ) -> tuple[Event, ...]:
        """Events with a sequence number above `after`, oldest first, at most `limit`."""
        query = select(events).where(events.c.workspace == self.workspace, events.c.seq > after)
        if kind is not None:
            query = query.where(events.c.kind == kind)
        if subject is not None:
            query = query.where(events.c.subject == subject)
        with self.read() as connection:
            rows = connection.execute(query.order_by(events.c.seq).limit(limit)).all()
        return tuple(_event(row) for row in rows)


def event_data(event: Event) -> dict[str, object]:
    """The event's data as a dict."""
    return json.loads(event.data_json)


def _event(row: Row[tuple[object, ...]]) -> Event:
    return Event(seq=row.seq, time_s=row.time_s, kind=row.kind, subject=row.subject, data_json=row.data_json)
