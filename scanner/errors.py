"""The exceptions of the service that its users can cause or meet.

ScannerError                exit code 2: usage, configuration, or environment
├── ConfigError             an option or a setting that cannot be used
├── StoreError              the store is missing, unreadable or not writable
├── QueryError              a SQL query that cannot be run
├── CorpusError             a reference corpus cannot be read or has no usable image
├── NoWorkers               no worker process could be started
├── SourceError             a hub or folder cannot be listed
└── EntryError              one listed entry; the crawl continues with the others
    ├── Skipped             because of the entry itself: its row has the verdict `skipped` and the reason
    └── Unavailable         because of the network, the disk or this program: `failed`, and tried again

Each message says what is wrong, where, and what to do next.
"""

from __future__ import annotations

from finextract.reasons import ReasonCode


class ScannerError(Exception):
    """A problem that a person can solve; printed on one or two lines, without a traceback."""


class ConfigError(ScannerError):
    """An option or a setting that cannot be used."""


class StoreError(ScannerError):
    """The store is missing, unreadable or not writable."""


class QueryError(ScannerError):
    """A SQL query with a syntax error, or one that names a table or column that does not exist."""


class CorpusError(ScannerError):
    """A reference corpus cannot be read, or has no usable image."""


class NoWorkers(ScannerError):
    """No worker process could be started, after several attempts."""


class SourceError(ScannerError):
    """A hub or a folder cannot be listed."""


class EntryError(ScannerError):
    """One listed entry cannot be scanned; the crawl continues with the others.

    `reason_code` is stored beside the message, so that entries can be counted by reason.
    """

    def __init__(self, message: str, reason_code: ReasonCode) -> None:
        super().__init__(message)
        self.reason_code = reason_code

    def __reduce__(self) -> tuple[type[EntryError], tuple[str, ReasonCode]]:
        return type(self), (str(self), self.reason_code)  # by default pickle would pass the message alone


class Skipped(EntryError):
    """The entry cannot be scanned because of what it is: pickled, damaged, unsupported, ..."""


class Unavailable(EntryError):
    """The entry could not be fetched or scanned this time; a later crawl tries again."""
