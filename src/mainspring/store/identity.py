"""Who may do what: named bearer tokens with a role and an expiry.

A token is 32 random bytes, shown once; only its SHA-256 is kept. A fast hash is right here because there is nothing
to guess: the input has 256 bits of entropy, unlike a password.
"""

import hashlib
import secrets
import time
from typing import get_args

from sqlalchemy import delete, insert, select

from mainspring.spec import Denied, Identity, NotFound, Role, SpecError
from mainspring.store.catalogue import NAME
from mainspring.store.database import tokens
from mainspring.store.events import EventLog

ROLES: tuple[Role, ...] = get_args(Role)
"""From weakest to strongest; each may do what the ones before it may."""


class Identities(EventLog):
    """Make, check and revoke the tokens of this workspace."""

    def create_token(self, name: str, role: Role, ttl_s: float | None = None) -> str:
        """A new token for `name`, valid for `ttl_s` seconds or until it is revoked. It cannot be shown again."""
        if role not in ROLES:
            raise SpecError(f"{role!r} is not a role", hint="one of " + ", ".join(ROLES))
        if not NAME.fullmatch(name):
            raise SpecError(f"{name!r} is not a name for a token", hint="letters, digits, dots, - and _")
        if ttl_s is not None and ttl_s <= 0:
            raise SpecError(f"a token must be valid for more than 0 s, got {ttl_s}")
        token, now = f"ms_{secrets.token_urlsafe(32)}", time.time()
        expires_s = None if ttl_s is None else now + ttl_s
        mine = (tokens.c.workspace == self.workspace) & (tokens.c.name == name)
        with self.transaction() as connection:
            connection.execute(delete(tokens).where(mine, tokens.c.expires_s <= now))
            if connection.execute(select(tokens.c.name).where(mine)).scalar() is not None:
                raise SpecError(f"there is a token named {name!r} already", hint="revoke it first")
            values = {"workspace": self.workspace, "name": name, "role": role, "hash": _hash(token)}
            connection.execute(insert(tokens).values(**values, created_s=now, expires_s=expires_s))
            self.emit("token.created", name, {"role": role, "expires_s": expires_s})
        return token

    def check_token(self, token: str, *, needs: Role = "viewer") -> Identity:
        """Whose token this is. Raises `Denied` when it is unknown, revoked, expired or weaker than `needs`."""
        query = select(tokens).where(tokens.c.workspace == self.workspace, tokens.c.hash == _hash(token))
        with self.read() as connection:
            row = connection.execute(query).one_or_none()
        if row is None:
            raise Denied("this token is not known here", hint="an admin makes one: mainspring token create NAME")
        if row.expires_s is not None and row.expires_s <= time.time():
            raise Denied(f"the token of {row.name!r} has expired", hint="ask an admin for a new one")
        if ROLES.index(row.role) < ROLES.index(needs):
            raise Denied(f"this needs the role {needs}, {row.name!r} is {row.role}", hint="ask an admin")
        return Identity(name=row.name, role=row.role)

    def identities(self) -> tuple[Identity, ...]:
        """Everybody who holds a token that has not expired, by name."""
        alive = tokens.c.expires_s.is_(None) | (tokens.c.expires_s > time.time())
        query = select(tokens.c.name, tokens.c.role).where(tokens.c.workspace == self.workspace, alive)
        with self.read() as connection:
            rows = connection.execute(query.order_by(tokens.c.name)).all()
        return tuple(Identity(name=row.name, role=row.role) for row in rows)

    def revoke_token(self, name: str) -> None:
        """Make the token of `name` worthless at once. Raises `NotFound` when there is none."""
        mine = (tokens.c.workspace == self.workspace) & (tokens.c.name == name)
        with self.transaction(durability="power") as connection:
            if connection.execute(delete(tokens).where(mine)).rowcount == 0:
                known = ", ".join(holder.name for holder in self.identities()) or "none"
                raise NotFound(f"no token named {name!r}", hint=f"known: {known}")
            self.emit("token.revoked", name, {})


def _hash(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()
