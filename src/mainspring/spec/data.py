"""Data nouns: documents, what was dropped and why, snapshots."""

from mainspring.spec._spec import spec


@spec
class Document:
    """One document as read: `id` is the SHA-256 of source and text, `source` a path or dotted name.

    `text` is Markdown when the format has structure. `parent` names the file or module it came from.
    """

    id: str
    source: str
    title: str
    text: str
    format: str
    parent: str = ""


@spec
class Skipped:
    """A file that could not be read, or `files` of one kind, and why."""

    source: str
    reason: str
    files: int = 1


@spec
class RuleCount:
    """How many documents one rule dropped or changed, with a few examples (`source: detail`)."""

    rule: str
    dropped: int
    changed: int = 0
    examples: tuple[str, ...] = ()


@spec
class CurationReport:
    """What happened to a collection between reading and publishing; the counts add up.

    `read = kept + sum(rule.dropped)`; `skipped` files never became documents.
    """

    read: int
    kept: int
    read_bytes: int
    kept_bytes: int
    rules: tuple[RuleCount, ...]
    skipped: tuple[Skipped, ...] = ()

    @property
    def unreadable(self) -> int:
        """How many files never became documents."""
        return sum(found.files for found in self.skipped)


@spec
class Snapshot:
    """One published version of a dataset: an immutable Lance version.

    `ref` is its artifact, `uri` the Lance dataset, `version` Lance's own number, `digest` the SHA-256 over the
    sorted document ids.
    """

    ref: str
    uri: str
    version: int
    rows: int
    digest: str


@spec
class SnapshotDiff:
    """Sources whose documents differ between two snapshots of one dataset; `changed` have another text."""

    added: tuple[str, ...]
    removed: tuple[str, ...]
    changed: tuple[str, ...]


@spec
class TokenSplit:
    """One split of a packed dataset: `tokens` token ids in `file`, from `documents` documents."""

    name: str
    file: str
    tokens: int
    documents: int


@spec
class TokenSet:
    """A packed, tokenised dataset: documents joined by the end token and cut into blocks of any length."""

    splits: tuple[TokenSplit, ...]
    vocab: int
    dtype: str
    tokenizer: str
    snapshot: str
