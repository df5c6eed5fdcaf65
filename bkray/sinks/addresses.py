"""Addresses of stores as others may see them."""

import re

_BEFORE_HOST = re.compile(r"//(?![^/@\s]*:\d{1,5}/)\S*@|//[^/\s]*@")
"""``user:password@``; a password may hold ``/`` and ``@``, but a port and a path are none."""
_NAMED = re.compile(r"(?i)\b([\w-]*(?:password|passwd|passphrase|pwd|secret|token)=)[^&#\s]+")


def without_password(text: str) -> str:
    """Return an address, or words that hold some, with ``***`` for what only its owner may know.

    Masked are user and password before the host, and what the query calls password, secret or
    token. Where it is not clear how far a password goes, more is masked.
    """
    return _NAMED.sub(r"\1***", _BEFORE_HOST.sub("//***@", text))
