"""The bytes of a text trace: plain or gzip, from a file or a pipe, in one pass and bounded memory.

What a file is, is told by its first bytes, never by its name.
"""

import stat
from collections.abc import Callable, Iterator
from functools import partial
from io import FileIO
from pathlib import Path
from typing import Final

from isal import isal_zlib

from guest_svc.errors import TraceError

PART_BYTES: Final = 1 << 18
_HEAD_BYTES: Final = 4096
_GZIP: Final = b"\x1f\x8b"
_ZIP: Final = b"PK\x03\x04"
_NPY: Final = b"\x93NUMPY"
_GZIP_WINDOW: Final = 31  # of zlib: a gzip header is expected
_TEXT_BOM: Final = b"\xef\xbb\xbf"
# What files begin with that are no text, and what to do about it.
_FOREIGN: Final = (
    (b"\x17\x08Dtracing", "a trace.dat of trace-cmd; run first: trace-cmd report -R {file} > trace.txt"),
    (b"PERFILE2", "a perf.data; run first: perf script --ns -i {file} > trace.txt"),
    (b"PERFFILE", "a perf.data; run first: perf script --ns -i {file} > trace.txt"),
    (b"2ELIFREP", "a perf.data of another byte order; run perf script on that machine first"),
    (b"\x28\xb5\x2f\xfd", "compressed by zstd; decompress it first: zstd -d"),
    (b"\xfd7zXZ\x00", "compressed by xz; decompress it first: xz -d"),
    (b"BZh", "compressed by bzip2; decompress it first: bzip2 -d"),
    (b"\xff\xfe", "UTF-16 text; convert it first: iconv -f UTF-16 -t UTF-8 {file} > trace.txt"),
    (b"\xfe\xff", "UTF-16 text; convert it first: iconv -f UTF-16 -t UTF-8 {file} > trace.txt"),
)
_LINE: Final = 64  # bytes that a head is looked through for zeros at every second place


def is_capture(path: Path) -> bool:
    """Return whether a file is an archive of columns, or a lone column; a pipe is not looked into."""
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            return False
        with path.open("rb") as file:
            return file.read(8).startswith((_ZIP, _NPY))
    except OSError:
        return False  # whoever reads it says what is wrong


class TextFile:
    """A file's text in parts, once from its start to its end.

    Attributes:
        size: Bytes of the file as it is stored, or nothing where that is not known (a pipe).
        read_bytes: How many of them are read.
        damage: What broke the reading off in the middle, or nothing: what came before can be used.

    """

    def __init__(self, path: Path) -> None:
        """Look at it; it is opened when its parts are asked for.

        Raises:
            TraceError: It is not there.

        """
        self.path = path
        self.read_bytes = 0
        self.damage = ""
        try:
            facts = path.stat()
        except OSError as error:
            raise TraceError(f"{path}: {error.strerror or error}") from error
        self.is_regular = stat.S_ISREG(facts.st_mode)
        self.size = facts.st_size if self.is_regular else None

    def parts(self) -> Iterator[bytes]:
        """Yield the text; the file is closed at its end, or when no more is asked for.

        Raises:
            TraceError: It is no text, or cannot be read from its start.

        """
        try:
            file = self.path.open("rb", buffering=0)
        except OSError as error:
            raise TraceError(f"{self.path}: {error.strerror or error}") from error
        with file:
            read = partial(self._read, file)
            head = read()
            while head and len(head) < _HEAD_BYTES and (more := read()):
                head += more
            if not head:
                raise TraceError(f"{self.path}: the file is empty")
            if head.startswith(_GZIP):
                yield from self._inflated(head, read)
                return
            yield self._checked(head)
            while part := read():
                yield part

    def _read(self, file: FileIO) -> bytes:
        try:
            part = file.read(PART_BYTES) or b""
        except OSError as error:
            raise TraceError(f"{self.path}: {error.strerror or error}") from error
        self.read_bytes += len(part)
        return part

    def _checked(self, head: bytes) -> bytes:
        """Return the beginning of a text.

        Raises:
            TraceError: It is the beginning of something else.

        """
        for magic, what in _FOREIGN:
            if head.startswith(magic):
                raise TraceError(f"{self.path}: {what.format(file=self.path)}")
        sample = head[:_HEAD_BYTES]
        if sample.count(0) * 3 >= len(sample) and not (any(sample[:_LINE:2]) and any(sample[1:_LINE:2])):
            raise TraceError(f"{self.path}: UTF-16 text; convert it first: iconv -f UTF-16 -t UTF-8")
        if 0 in sample:
            at = sample.index(0)
            line = sample.count(b"\n", 0, at) + 1
            raise TraceError(f"{self.path}: a binary file, not a text trace: line {line} has a zero byte")
        return head.removeprefix(_TEXT_BOM)

    def _inflated(self, part: bytes, read: Callable[[], bytes]) -> Iterator[bytes]:
        """Yield what a gzip file holds, member after member, never more than a part at a time."""
        inflate = isal_zlib.decompressobj(wbits=_GZIP_WINDOW)
        is_first, inflated = True, 0
        while part:
            try:
                text = inflate.decompress(part, PART_BYTES)
            except isal_zlib.error as error:  # type: ignore[misc]  # a class, which the stub has as a value
                self.damage = f"the gzip data is damaged after {inflated:,} bytes of text: {error}"
                break
            inflated += len(text)
            if text:
                yield self._checked(text) if is_first else text
                is_first = False
            part = inflate.unconsumed_tail
            if inflate.eof:
                # Members may follow one another, and zeros may follow the last.
                part = _after_zeros(inflate.unused_data, read)
                inflate = isal_zlib.decompressobj(wbits=_GZIP_WINDOW)
                if part and not part.startswith(_GZIP[: len(part)]):
                    self.damage = f"after {inflated:,} bytes of text something follows that is no gzip data"
                    break
            elif not part:
                part = read()
                if not part:
                    self.damage = f"the gzip data ends too early, after {inflated:,} bytes of text"
        if is_first:
            told = f": {self.damage}" if self.damage else ", compressed"
            raise TraceError(f"{self.path}: the file is empty{told}")


def _after_zeros(part: bytes, read: Callable[[], bytes]) -> bytes:
    """Return what follows zeros, however many: empty at the file's end."""
    part = part.lstrip(b"\0")
    while not part and (more := read()):
        part = more.lstrip(b"\0")
    return part
