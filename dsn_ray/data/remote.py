"""Raw pictures behind a URL such as `s3://bucket/Sketchy`, as pyarrow reaches them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

from pyarrow import fs

from dsn_ray.data.roots import DataError, RootError, numbered_lines, require_size
from dsn_ray.data.storage import Folder


@dataclass(frozen=True)
class RemoteRoot:
    """A root behind a URL, listed once; see `dsn_ray.data.roots.Root` for what it does.

    Attributes:
        folder: its place.
    """

    folder: Folder
    is_local: ClassVar[bool] = False

    def __str__(self) -> str:
        """Its URL."""
        return str(self.folder)

    def __reduce__(self) -> tuple[type[RemoteRoot], tuple[Folder]]:
        """Other processes list it anew, if they need to."""
        return RemoteRoot, (self.folder,)

    @cached_property
    def _listing(self) -> dict[str, dict[str, fs.FileInfo]]:
        """By folder and name, what is there; hidden files and folders are left out."""
        everything = fs.FileSelector(self.folder.path, recursive=True, allow_not_found=True)
        try:
            found = self.folder.filesystem.get_file_info(everything)
        except OSError as error:
            raise DataError(f"{self} cannot be listed: {_reason(error)}.") from None
        listing: dict[str, dict[str, fs.FileInfo]] = {}
        start = len(self.folder.path.strip("/"))
        for info in found:
            path = info.path.strip("/")[start:].strip("/")
            if any(part.startswith(".") for part in path.split("/")):
                continue
            folder, _, name = path.rpartition("/")
            listing.setdefault(folder, {})[name] = info
            if info.type == fs.FileType.Directory:
                listing.setdefault(path, {})
        return listing

    def has_folder(self, folder: str = "") -> bool:
        """Whether a folder is there."""
        return folder in self._listing

    def file_names(self, folder: str) -> set[str]:
        """The names of a folder's files."""
        return self._names(folder, fs.FileType.File)

    def folder_names(self, folder: str) -> set[str]:
        """The names of the folders in a folder."""
        return self._names(folder, fs.FileType.Directory)

    def _names(self, folder: str, wanted: fs.FileType) -> set[str]:
        there = self._listing.get(folder, {})
        return {name for name, info in there.items() if info.type == wanted}

    def lines(self, file: str) -> list[tuple[int, str]]:
        """The numbered lines of a text file."""
        folder, _, name = file.rpartition("/")
        if name not in self.file_names(folder):
            return []
        try:
            return numbered_lines(self.read(file), f"{self}/{file}")
        except (OSError, RootError) as error:
            raise DataError(f"{self}/{file} cannot be read: {_reason(error)}.") from None

    def read(self, path: str) -> bytes:
        """The contents of a file."""
        if not {"", ".", ".."}.isdisjoint(path.split("/")):
            raise DataError(f"{path} lies outside its root {self}.")
        try:
            return self._fetch(path)
        except OSError as error:
            if not self._answers():
                raise RootError(f"{self}/{path} cannot be read: {_reason(error)}.") from None
        try:
            return self._fetch(path)
        except OSError as error:
            raise type(error)(_reason(error)) from None

    def _fetch(self, path: str) -> bytes:
        with self.folder.filesystem.open_input_file(f"{self.folder.path}/{path}") as file:
            require_size(file.size())
            return bytes(file.read())

    def _answers(self) -> bool:
        """Whether the root is there at present, so that it is a file that cannot be read."""
        try:
            return self.folder.exists()
        except OSError:
            return False

    def states(self, paths: Iterable[str]) -> list[tuple[int, str]]:
        """Size and time of change of files."""
        states = []
        for path in paths:
            folder, _, name = path.rpartition("/")
            info = self._listing.get(folder, {}).get(name)
            states.append((info.size, str(info.mtime_ns)) if info else (0, "missing"))
        return states


def _reason(error: Exception) -> str:
    return str(error).splitlines()[0].rstrip(".")
