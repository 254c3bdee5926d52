"""Every exception that a user of the service can cause or meet.

ScannerError                exit code 2: usage, configuration, or surroundings
├── ConfigError             an option or a setting that cannot be used
├── StoreError              the store is missing, unreadable or not writable
├── QueryError              a question in SQL that the store does not understand
├── CorpusError             a reference corpus cannot be read or has no usable image
├── NoWorkers               one worker after another did not come up
├── SourceError             a hub or folder cannot be listed
└── EntryError              one listed entry, which costs its own row and nothing else
    ├── Skipped             the entry's own doing: its row says `skipped` and why
    └── Unavailable         the network's or our doing: its row says `failed`, and it is tried again

Each message says what is wrong, where, and what to do next.
"""

from typing import ClassVar

from finextract.reasons import ReasonCode


class ScannerError(Exception):
    """Something a person can mend; printed on one or two lines, without a traceback."""


class ConfigError(ScannerError):
    """An option or a setting that cannot be used."""


class StoreError(ScannerError):
    """The store is missing, unreadable or not writable."""


class QueryError(ScannerError):
    """A question in SQL that is no SQL, or asks for what is not there."""


class CorpusError(ScannerError):
    """A reference corpus cannot be read, or has no usable image."""


class NoWorkers(ScannerError):
    """One worker after another did not come up."""


class SourceError(ScannerError):
    """A hub or a folder cannot be listed."""


class EntryError(ScannerError):
    """One listed entry cannot be scanned; the crawl goes on.

    `reason_code` is stored beside the message, so that entries can be counted by reason.
    """

    default_code: ClassVar[ReasonCode] = ReasonCode.INTERNAL_ERROR

    def __init__(self, message: str, reason_code: ReasonCode | None = None) -> None:
        super().__init__(message)
        self.reason_code = reason_code or self.default_code


class Skipped(EntryError):
    """The entry cannot be scanned for a reason of its own: pickled, corrupt, unsupported, no base."""

    default_code = ReasonCode.UNSUPPORTED_KIND


class Unavailable(EntryError):
    """The entry could not be fetched or scanned this time; a later crawl tries it again."""

    default_code = ReasonCode.HUB_UNREACHABLE
