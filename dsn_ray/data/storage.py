"""Folders on this machine or behind a URL such as `s3://bucket/path`, as pyarrow reaches them."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
from pyarrow import fs

from dsn_ray.errors import UserError


def cache_folder() -> Path:
    """The user's folder for what is computed once."""
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "dsn_ray"


@dataclass(frozen=True)
class Folder:
    """A folder; it need not exist.

    Attributes:
        filesystem: reaches it.
        path: as the file system names it.
        place: as people name it, a path or a URL.
    """

    filesystem: fs.FileSystem
    path: str
    place: str

    @classmethod
    def at(cls, place: str | Path) -> Folder:
        """The folder at a path or URL.

        Raises:
            UserError: If the URL is of no kind that pyarrow knows.
        """
        text = str(place)
        if "://" not in text:
            path = str(Path(text).absolute())
            return cls(fs.LocalFileSystem(), path, path)
        try:
            filesystem, path = fs.FileSystem.from_uri(text)
        except (pa.ArrowInvalid, OSError) as error:
            reason = str(error).splitlines()[0].rstrip(".")
            raise UserError(f"{text} cannot be reached: {reason}.") from None
        return cls(filesystem, path, text.rstrip("/"))

    def __truediv__(self, name: str) -> Folder:
        """A folder within this one."""
        return Folder(self.filesystem, f"{self.path}/{name}", f"{self.place}/{name}")

    def __str__(self) -> str:
        """As people name it."""
        return self.place

    @property
    def is_local(self) -> bool:
        """Whether it lies on this machine, or where this machine has mounted it."""
        return isinstance(self.filesystem, fs.LocalFileSystem)

    def exists(self) -> bool:
        """Whether anything is there.

        Raises:
            OSError: If that cannot be found out.
        """
        return bool(self.filesystem.get_file_info(self.path).type != fs.FileType.NotFound)

    def holds(self, name: str) -> bool:
        """Whether a file of that name is in it."""
        info = self.filesystem.get_file_info(f"{self.path}/{name}")
        return bool(info.type == fs.FileType.File)

    def names(self) -> list[str]:
        """The names of its files, sorted; none where it does not exist.

        Hidden ones are left out: a process that was killed leaves what it was writing.
        """
        files = (info.base_name for info in self._entries() if info.type == fs.FileType.File)
        return sorted(name for name in files if not name.startswith("."))

    def folders(self) -> list[str]:
        """The names of the folders in it, sorted; none where it does not exist."""
        return sorted(e.base_name for e in self._entries() if e.type == fs.FileType.Directory)

    def is_used(self) -> bool:
        """Whether there is anything in it."""
        return bool(self._entries())

    def sizes(self) -> dict[str, int]:
        """The bytes of each file in it and below it, by path within it; hidden ones left out."""
        below = fs.FileSelector(self.path, recursive=True, allow_not_found=True)
        sizes = {}
        for info in self.filesystem.get_file_info(below):
            name = info.path.strip("/")[len(self.path.strip("/")) :].strip("/")
            if info.type == fs.FileType.File and not f"/{name}".count("/."):
                sizes[name] = info.size
        return sizes

    def _entries(self) -> list[fs.FileInfo]:
        chosen = fs.FileSelector(self.path, allow_not_found=True)
        try:
            return self.filesystem.get_file_info(chosen)
        except FileNotFoundError:  # it was missing, and there by the time that pyarrow looked again
            return self.filesystem.get_file_info(chosen)

    def read(self, name: str) -> bytes:
        """The contents of a file.

        Raises:
            OSError: If it cannot be read.
        """
        with self.filesystem.open_input_stream(f"{self.path}/{name}") as stream:
            return bytes(stream.read())

    def write(self, name: str, contents: bytes | pa.Buffer, *, once: bool = False) -> None:
        """Writes a file, whole or not at all.

        Args:
            name: of the file.
            contents: of the file.
            once: leave it as it is where it is there; of two who write at the same moment on one
                machine, the first counts.
        """
        with self.writing(name, once=once) as stream:
            stream.write(contents)

    @contextmanager
    def writing(self, name: str, *, once: bool = False) -> Iterator[pa.NativeFile]:
        """A stream into a file, which appears under its name when the stream ends without error.

        On this machine the file is on the disk by then, and is renamed; for an object store it is
        held in memory and sent at the end.

        Raises:
            OSError: If it cannot be written.
        """
        target = f"{self.path}/{name}"
        self.filesystem.create_dir(target.rpartition("/")[0], recursive=True)
        if not self.is_local:
            contents = pa.BufferOutputStream()
            yield contents
            with self.filesystem.open_output_stream(target) as stream:
                stream.write(contents.getvalue())
            return
        unfinished = Path(target).with_name(f".{Path(target).name}.{uuid.uuid4().hex[:8]}")
        try:
            with self.filesystem.open_output_stream(str(unfinished)) as stream:
                yield stream
            with unfinished.open("rb") as written:
                os.fsync(written.fileno())
            if not (once and _linked(unfinished, Path(target))):
                unfinished.replace(target)
        finally:
            unfinished.unlink(missing_ok=True)

    def remove(self) -> None:
        """Takes the folder away with all that is in it; it may be missing, or vanish meanwhile."""
        while self.exists():
            with suppress(FileNotFoundError):
                self.filesystem.delete_dir(self.path)


def _linked(file: Path, name: Path) -> bool:
    """Gives a file another name, unless something has it; False where nothing can have two."""
    try:
        name.hardlink_to(file)
    except FileExistsError:
        pass
    except OSError:
        return False
    return True
