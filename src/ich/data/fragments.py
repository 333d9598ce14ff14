"""The frames of encapsulated (compressed) pixel data, found without reading them (DICOM PS3.5, A.4)."""

import struct
from dataclasses import dataclass
from typing import BinaryIO

from ich.data.refusal import Reason, Unreadable

ITEM, END = 0xFFFEE000, 0xFFFEE0DD
MOST = 100_000  # fragments


@dataclass(frozen=True)
class Fragments:
    """Where the pieces of the compressed frames lie in the file."""

    first: int  # offset of the first fragment's item tag, from which the offset table counts
    offsets: tuple[int, ...]  # of each fragment's bytes
    lengths: tuple[int, ...]
    table: tuple[int, ...]  # offset of each frame's first item tag after `first`; often empty

    def of_frame(self, frame: int, frames: int) -> range:
        """The fragments of a frame, from 0. Raises Unreadable where the file does not tell."""
        if frames == 1:
            return range(len(self.offsets))
        if len(self.offsets) == frames:
            return range(frame, frame + 1)
        starts = {offset - 8 - self.first: i for i, offset in enumerate(self.offsets)}
        bounds = [starts.get(begin, -1) for begin in self.table] + [len(self.offsets)]
        if len(self.table) != frames or not -1 < bounds[frame] < bounds[frame + 1]:
            raise Unreadable(
                Reason.NOT_DECODED, f"which of {len(self.offsets)} fragments are frame {frame} of {frames}"
            )
        return range(bounds[frame], bounds[frame + 1])

    def read(self, stream: BinaryIO, frame: int, frames: int) -> bytes:
        """The bytes of a frame."""
        parts: list[bytes] = []
        for i in self.of_frame(frame, frames):
            stream.seek(self.offsets[i])
            parts.append(stream.read(self.lengths[i]))
        return b"".join(parts)


def find(stream: BinaryIO, size: int, frames: int, table: tuple[int, ...] = ()) -> Fragments:
    """The fragments of pixel data whose value begins where `stream` stands, in a file of `size` bytes.

    `table` is the extended offset table, where there is one. Raises Unreadable.
    """
    offset, length = _item(stream, size) or (0, -1)
    if length < 0:
        raise Unreadable(Reason.TRUNCATED, "no frame")
    basic = stream.read(length)
    if not table:
        table = struct.unpack(f"<{len(basic) // 4}L", basic[: len(basic) // 4 * 4])
    first = offset + length
    found: list[tuple[int, int]] = []
    while item := _item(stream, size):
        found.append(item)
        stream.seek(item[1], 1)
        if len(found) > MOST:
            raise Unreadable(Reason.BAD_SIZE, f"more than {MOST} fragments")
    if len(found) < frames or not any(length for _, length in found):
        raise Unreadable(Reason.TRUNCATED, f"{len(found)} fragments for {frames} frames")
    return Fragments(first, tuple(o for o, _ in found), tuple(n for _, n in found), table)


def _item(stream: BinaryIO, size: int) -> tuple[int, int] | None:
    """Offset and length of the item at which the stream stands; None at the end of all."""
    head = stream.read(8)
    if len(head) < 8:
        return None  # many files lack the closing item
    group, element, length = struct.unpack("<HHL", head)
    tag, offset = group << 16 | element, stream.tell()
    if tag == END:
        return None
    if tag != ITEM:
        raise Unreadable(Reason.NOT_DECODED, f"tag {tag:08x} among the fragments")
    if offset + length > size:
        raise Unreadable(Reason.TRUNCATED, f"a fragment of {length} bytes, {size - offset} are there")
    return offset, length
