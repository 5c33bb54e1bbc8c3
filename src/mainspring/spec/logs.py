"""Logging, set up once per process by whoever owns it: the command line, or the main program of a rank.

An event is a constant sentence, its facts are fields: `log.info("checkpoint saved", extra={"step": step})` prints as
one line that ends in `step=300`. Nothing in the package configures logging on import.
"""

import logging

from mainspring.spec.errors import SpecError

LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL")
_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime"}


class FactFormatter(logging.Formatter):
    """One line a record: time, logger, level, the sentence, then the `extra` facts as key=value."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 the name is logging's
        """The formatted line with the record's own fields at its end."""
        facts = [f"{key}={value}" for key, value in vars(record).items() if key not in _STANDARD]
        return " ".join([super().formatMessage(record), *facts])


def configure(level: str) -> None:
    """Send records of our own loggers from `level` up, and warnings of others, to standard error.

    Raises `SpecError` for a level that logging does not know.
    """
    if level.upper() not in LEVELS:
        raise SpecError(f"there is no log level {level!r}", hint=f"MAINSPRING_LOG_LEVEL is one of {', '.join(LEVELS)}")
    handler = logging.StreamHandler()
    handler.setFormatter(FactFormatter("%(asctime)s %(name)s %(levelname)s %(message)s"))
    logging.basicConfig(level=logging.WARNING, handlers=[handler])
    logging.getLogger("mainspring").setLevel(level.upper())
