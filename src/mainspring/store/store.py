"""The store as its callers see it: one open handle with every verb, each written in the file of its noun."""

from mainspring.store.doctor import Doctor
from mainspring.store.identity import Identities
from mainspring.store.ledger import Ledger
from mainspring.store.lineage import Ancestry
from mainspring.store.memory import Memory


class Store(Ancestry, Doctor, Identities, Ledger, Memory):
    """Everything that is remembered. Open one per process with `Store.open(settings)`; threads may share it."""
