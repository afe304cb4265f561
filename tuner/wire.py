"""Messages between the tuner and its worker: a JSON header and a payload, both length-prefixed."""

from __future__ import annotations

import json
import struct
from typing import Any, BinaryIO

_LENGTHS = struct.Struct("<II")


def send(stream: BinaryIO, header: dict[str, Any], payload: bytes = b"") -> None:
    text = json.dumps(header).encode()
    stream.write(_LENGTHS.pack(len(text), len(payload)) + text + payload)
    stream.flush()


def receive(stream: BinaryIO) -> tuple[dict[str, Any], bytes] | None:
    """The next message; None where the stream ended, even inside one."""
    lengths = stream.read(_LENGTHS.size)
    if len(lengths) < _LENGTHS.size:
        return None
    head, tail = _LENGTHS.unpack(lengths)
    text, payload = stream.read(head), stream.read(tail)
    if len(text) < head or len(payload) < tail:
        return None
    return json.loads(text), payload
