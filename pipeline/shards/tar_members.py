"""The tar archive itself: members written with the same bytes every time, and read in order.

Headers are those of GNU tar, which every reader knows, with mode 0644 and without time or owner; a
name of more than 100 bytes stands in a long-name member before its own, however long it is.
"""

from __future__ import annotations

import contextlib
import os
import re
import tarfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple, TypeVar

from softlabel.schemas.errors import DataError
from softlabel.schemas.location import Location

BLOCK = 512
END = bytes(2 * BLOCK)
NAME_BYTES = 100
# As webdataset cuts them: the prefix ends at the first dot of the base name.
_NAME = re.compile(r"((?:.*/|)[^.]+)([.][^/]*)")
# What webdataset passes over: members that tell of the archive.
_META = re.compile(r"__[^/]*__(?:/|$)")
_FIELDS = b"0000644\0" + b"0000000\0" * 2
_TIME = b"00000000000\0"
_MAGIC = b"ustar  \0"
_SPACES = b" " * 8
_LONGEST = 8**11 - 1

Group = tuple[str, list[tuple[str, bytes]]]
Taken = TypeVar("Taken")


class Member(NamedTuple):
    """One member: its name, where its first header, its data begin, and its size in bytes."""

    name: str
    start: int
    data: int
    size: int


def member_bytes(name: str, data: bytes) -> bytes:
    """A member of this name with its headers, padded to whole blocks of 512 bytes.

    Raises ValueError for a name with NUL and for 8 GiB and more.
    """
    encoded = name.encode()
    if b"\0" in encoded or len(data) > _LONGEST:
        raise ValueError(f"member {name!r} has NUL in its name, or 8 GiB or more")
    if len(encoded) <= NAME_BYTES:
        head = _header(encoded, len(data), b"0")
    else:
        long = encoded + b"\0"
        # Half a letter in the short name would break readers that look at it first.
        short = encoded[:NAME_BYTES].decode(errors="ignore").encode()
        head = _header(b"././@LongLink", len(long), b"L") + long + _padding(len(long))
        head += _header(short, len(data), b"0")
    return b"".join((head, data, _padding(len(data))))


def read_members(file: BinaryIO, start: int = 0) -> Iterator[Member]:
    """The members from offset `start` to the archive's end, of an archive made by `member_bytes`.

    The file may be moved between two of them. Raises ValueError where it is damaged.
    """
    size = file.seek(0, os.SEEK_END)
    offset = begin = start
    long: str | None = None
    while True:
        file.seek(offset)
        header = file.read(BLOCK)
        if not any(header):
            if header + file.read(BLOCK + 1) != END or long is not None:
                raise ValueError("it is cut short, or goes on behind its end")
            return
        name, length, kind = _read_header(header)
        data = offset + BLOCK
        offset = data + length + -length % BLOCK
        if offset > size:
            raise ValueError("it is cut short")
        if kind == b"L":
            long = file.read(length).rstrip(b"\0").decode()
        else:
            yield Member(name.decode() if long is None else long, begin, data, length)
            long, begin = None, offset


def split_name(name: str) -> tuple[str, str] | None:
    """Prefix and suffix of a member's name, `("a/b", ".seg.png")`; None where it is no sample's."""
    parts = _NAME.fullmatch(name)
    if parts is None or _META.match(name):
        return None
    return parts[1], parts[2]


def is_unsafe(name: str) -> bool:
    """Whether a member of this name could land outside the folder that it is unpacked into."""
    return name.startswith("/") or ".." in name.split("/") or "\0" in name


def _is_text(name: str) -> bool:
    """Whether a name was UTF-8 in the archive; the library marks bytes that were not."""
    return not any("\ud800" <= letter <= "\udfff" for letter in name)


def tar_groups(path: Path, file: BinaryIO | None = None) -> Iterator[Group]:
    """The samples of anybody's WebDataset tar in order: prefix, and `(suffix, bytes)` pairs.

    file: the tar where it is open already; it stays open.

    Members belong together by webdataset's rule: the prefix goes up to the first dot of the base
    name, `("a/b", [(".jpg", ...), (".seg.png", ...)])`. As there, directories, names without a
    suffix and members that tell of the archive (`__name__`) are passed over. One sample is in
    memory at a time. Raises DataError where a sample stands in two places or has a suffix twice, a
    member is a link or a device, or has an unsafe path, and where the file is cut short or no
    plain tar.
    """
    with contextlib.nullcontext(file) if file is not None else open(path, "rb") as opened:
        yield from member_groups(path, _read_whole, opened)


def member_groups(
    path: Location, take: Callable[[BinaryIO, Member], Taken], file: BinaryIO
) -> Iterator[tuple[str, list[tuple[str, Taken]]]]:
    """As `tar_groups` of an open file, with what `take` makes of a member in place of its bytes.

    It hears of all members that are plain files, of those that are passed over too.
    """
    seen: set[str] = set()
    group: tuple[str, list[tuple[str, Taken]]] | None = None
    for name, data in _foreign_members(path, take, file):
        parts = split_name(name)
        if parts is None:
            continue
        prefix, suffix = parts
        if group is None or group[0] != prefix:
            if group is not None:
                yield group
            if prefix in seen:
                raise DataError(
                    f"{path}: the members of sample {prefix!r} are not all in one place; write "
                    "the tar again, sorted by name"
                )
            seen.add(prefix)
            group = (prefix, [])
        # Without regard to case, as loaders tell them apart.
        if any(suffix.lower() == other.lower() for other, _ in group[1]):
            raise DataError(f"{path}: member {name!r} appears twice; keep one and write it again")
        group[1].append((suffix, data))
    if group is not None:
        yield group


def _read_whole(file: BinaryIO, member: Member) -> bytes:
    file.seek(member.data)
    return file.read(member.size)


def _foreign_members(
    path: Location, take: Callable[[BinaryIO, Member], Taken], file: BinaryIO
) -> Iterator[tuple[str, Taken]]:
    remedy = "write or fetch it again"
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    try:
        tar = tarfile.open(fileobj=file, mode="r:", encoding="utf-8", tarinfo=_QuickHeader)
        while (member := tar.next()) is not None:
            # Else it keeps them all.
            tar.members = []  # type: ignore[attr-defined]
            if member.size < 0 or member.offset_data + member.size > size:
                raise DataError(f"{path}: is cut short in member {member.name!r}; {remedy}")
            if member.isdir():
                continue
            if is_unsafe(member.name) or not _is_text(member.name):
                raise DataError(
                    f"{path}: member {member.name!r} has an unsafe path, or no text; {remedy}"
                )
            if member.type not in (tarfile.REGTYPE, tarfile.AREGTYPE) or member.issparse():
                raise DataError(
                    f"{path}: member {member.name!r} is a link, a device or another thing "
                    f"that is no plain file; {remedy}"
                )
            place = Member(member.name, member.offset, member.offset_data, member.size)
            yield member.name, take(file, place)
        # The library ends in silence at whatever is no header.
        file.seek(tar.offset)
        end = file.read(BLOCK)
    except (tarfile.TarError, ValueError, OverflowError, EOFError) as error:
        raise DataError(f"{path}: is no plain tar, or damaged ({error}); {remedy}") from error
    if end != END[:BLOCK]:
        raise DataError(f"{path}: is damaged or cut short at byte {tar.offset}; {remedy}")


class _QuickHeader(tarfile.TarInfo):
    """Plain files by name and size; the library takes five times as long, for owners and rights."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> _QuickHeader:
        header = bytes(buf)
        # A base-256 size or a folder's part of the name, and all else, is the library's to read.
        if (
            header[156:157] == b"0"
            and header[135:136] in (b"\0", b" ")
            and header[345:346] == b"\0"
        ):
            with contextlib.suppress(ValueError):
                name, size, _ = _read_header(header)
                if b"\0" not in name:
                    info = cls(name.decode(encoding, errors))
                    info.size = size
                    return info
        return super().frombuf(buf, encoding, errors)


def _header(name: bytes, size: int, kind: bytes) -> bytes:
    front = name.ljust(NAME_BYTES, b"\0") + _FIELDS + b"%011o\0" % size + _TIME
    back = kind + bytes(100) + _MAGIC
    check = _byte_sum(front + _SPACES + back)
    return (front + b"%06o\0 " % check + back).ljust(BLOCK, b"\0")


def _read_header(header: bytes) -> tuple[bytes, int, bytes]:
    """Name, size and kind of a member; ValueError where this is no header of such an archive."""
    if len(header) != BLOCK:
        raise ValueError("it is cut short")
    try:
        check = int(header[148:154], 8)
        size = int(header[124:135], 8)
    except ValueError:
        raise ValueError("it is no tar, or damaged") from None
    if _byte_sum(header[:148] + _SPACES + header[156:]) != check:
        raise ValueError("the checksum of a member's header is wrong")
    kind = header[156:157]
    if kind not in (b"0", b"L") or size < 0:
        raise ValueError("it holds a member that is no plain file")
    return header[:NAME_BYTES].rstrip(b"\0"), size, kind


def _byte_sum(data: bytes) -> int:
    """The sum of the bytes of a header, which is far below 65,521.

    The lower half of Adler-32 is one more than it, modulo that, and takes a tenth of the time.
    """
    return (zlib.adler32(data) & 0xFFFF) - 1


def _padding(size: int) -> bytes:
    return bytes(-size % BLOCK)
