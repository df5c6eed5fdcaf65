"""A folder at a URI (``file:``, ``s3:``, ``gs:``); the one place that knows ``pyarrow.fs``."""

from pathlib import Path
from urllib.parse import unquote, urlsplit

from pyarrow import fs

from bkray.errors import ConfigError, ResumeError, UnreachableError

_SCHEMES = ("file", "s3", "gs")


def is_uri(place: str) -> bool:
    """Return whether ``place`` is a URI and not the path of a folder."""
    return "://" in place


class Storage:
    """The files below a URI, by names relative to it, such as ``trials/ab12/outcome.json``.

    A name is there whole or not at all. Credentials, region and endpoint come from where the
    cloud's own tools take them (``AWS_PROFILE``, ``AWS_ENDPOINT_URL``, ...), never from the URI.

    Raises:
        ConfigError: no such scheme, or no place is named.
    """

    def __init__(self, uri: str) -> None:
        parts = urlsplit(uri)
        if parts.scheme not in _SCHEMES:
            known = ", ".join(f"{scheme}://" for scheme in _SCHEMES)
            raise ConfigError(f"{uri!r} must begin with one of {known}")
        folders = unquote(parts.path).strip("/").split("/")
        plain = not (parts.query or parts.fragment or parts.username)
        if not plain or {"", ".", ".."} & set(folders):
            raise ConfigError(
                f"{uri!r} must be a plain place such as s3://bucket/runs/act: "
                "credentials and endpoints come from the environment"
            )
        self.uri = uri.rstrip("/")
        try:
            self._fs, root = fs.FileSystem.from_uri(self.uri)
        except (ValueError, OSError) as error:
            raise ConfigError(f"{uri!r} cannot be used: {error}") from None
        self._root = root.rstrip("/")
        self._is_local = self._fs.type_name == "local"

    def put(self, path: Path, name: str) -> None:
        """Copy the file there.

        Raises:
            OSError: it cannot be had now; nothing has changed there.
        """
        there = self._at(name)
        if not self._is_local:  # an object appears when all of it is there
            fs.copy_files(str(path), there, fs.LocalFileSystem(), self._fs)
            return
        self._fs.create_dir(there.rpartition("/")[0], recursive=True)
        fs.copy_files(str(path), f"{there}.tmp", fs.LocalFileSystem(), self._fs)
        self._fs.move(f"{there}.tmp", there)

    def get(self, name: str, path: Path) -> None:
        """Copy the file from there; the folder of ``path`` is made.

        Raises:
            OSError: it cannot be had now.
        """
        path.parent.mkdir(parents=True, exist_ok=True)
        half = path.with_name(f"{path.name}.tmp")
        fs.copy_files(self._at(name), str(half), self._fs, fs.LocalFileSystem())
        half.replace(path)

    def delete(self, name: str) -> None:
        """Remove the file if it is there."""
        if self._fs.get_file_info(self._at(name)).type == fs.FileType.File:
            self._fs.delete_file(self._at(name))

    def names(self) -> list[str]:
        """Return the files there, none where there is no such place."""
        below = fs.FileSelector(self._root, recursive=True, allow_not_found=True)
        files = [found.path for found in self._fs.get_file_info(below) if found.is_file]
        names = [path.removeprefix(self._root).lstrip("/") for path in files]
        return sorted(name for name in names if not name.endswith(".tmp"))

    def _at(self, name: str) -> str:
        if ".." in name.split("/") or name.startswith("/"):
            raise ResumeError(f"{self.uri} holds {name!r}, which would lie outside: leave it out")
        return f"{self._root}/{name}"


def unreachable(storage: Storage, error: OSError) -> UnreachableError:
    """Return the error of a place that cannot be had."""
    said = str(error).strip().partition("\n")[0]
    return UnreachableError(f"{storage.uri} cannot be reached: {said}")
