"""Where raw pictures lie: the root of a data set, and how a folder of this machine is read as one.

No symbolic link leads out of it. Roots behind a URL are read by `dsn_ray.data.remote`.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import ClassVar, Protocol

from dsn_ray.errors import UserError

LARGEST_FILE = 256 * 2**20
_OF_ONE_FILE = (  # errors for which a file is to blame, and not the place where it lies
    *(errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP),
    *(errno.EACCES, errno.EPERM, errno.ENAMETOOLONG),
)


class DataError(UserError):
    """A data set cannot be opened or read as it is."""


class RootError(Exception):
    """The place of raw pictures does not answer; no single picture is to blame."""


class Root(Protocol):
    """The folder of a data set. What lies in it is named by relative paths, '/'-separated.

    Its text is its place, as people name it.

    Attributes:
        is_local: whether it lies on this machine, or where this machine has mounted it.
    """

    @property
    def is_local(self) -> bool: ...  # noqa: D102 - see above

    def has_folder(self, folder: str = "") -> bool:
        """Whether a folder is there.

        Raises:
            DataError: that cannot be found out.
        """

    def file_names(self, folder: str) -> set[str]:
        """The names of a folder's files, hidden ones left out; none where it is missing.

        A name that is no text is given with its odd bytes spelled out; such a file cannot be read.

        Raises:
            DataError: it cannot be read, or lies outside the root.
        """

    def folder_names(self, folder: str) -> set[str]:
        """The names of the folders in a folder, as `file_names` does of the files.

        Raises:
            DataError: as `file_names`, and where a name is no text.
        """

    def lines(self, file: str) -> list[tuple[int, str]]:
        """The numbered lines of a text file that are not blank; a missing file has none.

        Raises:
            DataError: it is no text file, cannot be read, or lies outside the root.
        """

    def read(self, path: str) -> bytes:
        """The contents of a file.

        Raises:
            DataError: the path leads, by itself or by a symbolic link, out of the root.
            OSError: the file cannot be read.
            ValueError: it is too large.
            RootError: nothing can be read there at present.
        """

    def states(self, paths: Iterable[str]) -> list[tuple[int, str]]:
        """The size of files, and what else changes whenever their contents may have changed."""


@dataclass(frozen=True, slots=True)
class LocalRoot:
    """A folder of this machine.

    Attributes:
        path: without symbolic links.
    """

    path: Path
    is_local: ClassVar[bool] = True

    def __str__(self) -> str:
        """Its path."""
        return str(self.path)

    def has_folder(self, folder: str = "") -> bool:
        """See `Root`."""
        path = self.path / folder
        try:
            return path.is_dir()
        except OSError as error:
            raise DataError(f"{path} cannot be read: {error.strerror}.") from None

    def file_names(self, folder: str) -> set[str]:
        """See `Root`."""
        names = self._names(folder, os.DirEntry.is_file)
        return {os.fsencode(name).decode("utf-8", "backslashreplace") for name in names}

    def folder_names(self, folder: str) -> set[str]:
        """See `Root`."""
        names = self._names(folder, os.DirEntry.is_dir)
        for name in names:
            try:
                name.encode()
            except UnicodeEncodeError:
                place = self.path / folder
                said = f"{place} has a folder whose name is not UTF-8: {name!r}; rename it."
                raise DataError(said) from None
        return names

    def lines(self, file: str) -> list[tuple[int, str]]:
        """See `Root`."""
        path = self.path / file
        self._require_inside(path)
        try:
            return numbered_lines(path.read_bytes(), str(path)) if path.is_file() else []
        except OSError as error:
            raise DataError(f"{path} cannot be read: {error.strerror}.") from None

    def read(self, path: str) -> bytes:
        """See `Root`."""
        folder, _, name = path.rpartition("/")
        root = _real(str(self.path))
        place = f"{_real(f'{root}/{folder}')}/{name}"
        try:
            try:
                handle = _open_within(root, place)
            except OSError as error:
                if error.errno != errno.ELOOP:
                    raise
                handle = _open_within(root, os.path.realpath(place))
            with open(handle, "rb", buffering=0) as file:  # noqa: PTH123 - opened already
                require_size(os.fstat(handle).st_size)
                return file.read()
        except OSError as error:
            if error.errno in _OF_ONE_FILE and (self.path / folder).is_dir():
                raise
            raise RootError(f"{self}/{path} cannot be read: {error.strerror}.") from None

    def states(self, paths: Iterable[str]) -> list[tuple[int, str]]:
        """See `Root`."""
        states = []
        for path in paths:
            try:
                status = os.stat(f"{self.path}/{path}")  # noqa: PTH116 - three times as fast
                states.append((status.st_size, str(status.st_mtime_ns)))
            except OSError as error:
                states.append((0, str(error.strerror)))
        return states

    def _names(self, folder: str, wanted: Callable[[os.DirEntry[str]], bool]) -> set[str]:
        path = self.path / folder
        self._require_inside(path)
        try:
            with os.scandir(path) as entries:
                names = {e.name for e in entries if not e.name.startswith(".") and _is(e, wanted)}
        except (FileNotFoundError, NotADirectoryError):
            return set()
        except OSError as error:
            raise DataError(f"{path} cannot be read: {error.strerror}.") from None
        return names

    def _require_inside(self, path: Path) -> None:
        if not Path(os.path.realpath(path)).is_relative_to(os.path.realpath(self.path)):
            raise DataError(
                f"{path} is a symbolic link out of {self.path}, where nothing is read; put the "
                "files themselves there."
            )


def numbered_lines(contents: bytes, place: str) -> list[tuple[int, str]]:
    """The lines of a text file that are not blank, counted from 1.

    Raises:
        DataError: it is not UTF-8.
    """
    try:
        text = contents.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise DataError(f"{place} is not a UTF-8 text file.") from None
    lines = enumerate(text.replace("\r\n", "\n").replace("\r", "\n").split("\n"), start=1)
    return [(number, line.strip()) for number, line in lines if line.strip()]


def require_size(size: int) -> None:
    """Checks that a file is not too large to be read.

    Raises:
        ValueError: it is.
    """
    if size > LARGEST_FILE:
        raise ValueError(f"the file is larger than {LARGEST_FILE // 2**20} MiB")


def _open_within(root: str, place: str) -> int:
    """Opens a file whose folder is named without symbolic links, and which is none itself.

    Raises:
        DataError: it lies outside the root.
        OSError: it cannot be opened.
    """
    if not place.startswith(root.rstrip("/") + "/"):
        raise DataError(f"{place} lies outside its root {root}.")
    return os.open(place, os.O_RDONLY | os.O_NOFOLLOW)


@lru_cache(maxsize=4096)
def _real(folder: str) -> str:
    """A folder without symbolic links."""
    return os.path.realpath(folder)


def _is(entry: os.DirEntry[str], wanted: Callable[[os.DirEntry[str]], bool]) -> bool:
    try:
        return wanted(entry)
    except OSError:  # a link that leads in a circle; whoever reads it says so
        return wanted is os.DirEntry.is_file
