"""Exceptions of bkray, one tree.

BkrayError
├── ConfigError       a field has a value that is not allowed (also a ValueError)
├── DataError         a corpus is missing, empty, too small or not text (also a ValueError)
├── TrackingError     the tracking server that was asked for does not answer
├── StorageError      there is no room left for a file
├── ClusterError      a cluster file, or the cluster itself, is not as it must be
└── ResumeError       a folder does not hold what is needed to go on
"""


class BkrayError(Exception):
    """Anything the user can mend; the command line prints it as one message, without traceback."""


class ConfigError(BkrayError, ValueError):
    """Say which field, which value, what is allowed and what to do."""


class DataError(BkrayError, ValueError):
    """Say which corpus, what is wrong with it and what to do."""


class TrackingError(BkrayError):
    """Say which server did not answer and what to do."""


class ResumeError(BkrayError):
    """Say which folder cannot be continued, and why."""


class StorageError(BkrayError):
    """Say which file there is no room for."""


class ClusterError(BkrayError):
    """Say what of a cluster is wrong and what to do."""


class UnreachableError(BkrayError):
    """Say which storage did not answer, and why."""
