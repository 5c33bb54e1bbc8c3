"""Small JSON values under a key, overwritten atomically: what `flow` knows about finished steps."""

import json
import time
from collections.abc import Mapping
from typing import Any

from sqlalchemy import bindparam, select

from mainspring.store.database import Database, insert_or_update, memory
from mainspring.store.parse import to_json

RECALL = select(memory.c.value_json).where(memory.c.workspace == bindparam("of"), memory.c.key == bindparam("wanted"))


class Memory(Database):
    """Remember and recall values of this workspace."""

    def remember(self, key: str, value: Mapping[str, Any]) -> None:
        """Keep `value` under `key`, replacing what was there."""
        values = {"workspace": self.workspace, "key": key, "value_json": to_json(value), "updated_s": time.time()}
        with self.transaction() as connection:
            insert_or_update(connection, memory, key=("workspace", "key"), values=values)

    def recall(self, key: str) -> dict[str, Any] | None:
        """What was last remembered under `key`, or None."""
        with self.read() as connection:
            found = connection.execute(RECALL, {"of": self.workspace, "wanted": key}).scalar()
        return None if found is None else json.loads(found)
