"""Python client of tractd. One file, standard library only, Python 3.8 or newer: copy it next to your program.

    from tractd import Client
    client = Client()
    print(client.infer("digits", image="7.png").classes)

It speaks the native protocol (docs/wire.md) over the daemon's Unix socket. A `Client` keeps one connection and sends
one request at a time, so give each thread its own.
"""

from __future__ import annotations

import itertools
import json
import os
import socket
import struct
import sys
import time
from dataclasses import dataclass
from typing import Any, Dict, Iterable, List, Mapping, NamedTuple, Optional, Sequence, Tuple, Union

__all__ = [
    "Class",
    "Client",
    "ConnectionFailed",
    "InferTimeout",
    "ProtocolError",
    "Refused",
    "Reply",
    "Tensor",
    "TractdError",
    "default_socket",
]


class TractdError(Exception):
    """Everything this module raises, wrong arguments (`TypeError`, `ValueError`) aside."""


class ConnectionFailed(TractdError):
    """The daemon cannot be reached, or hung up."""


class InferTimeout(TractdError):
    """No answer within the client's `timeout`."""


class ProtocolError(TractdError):
    """What came is not the protocol of docs/wire.md: something else listens there, or another version of it."""


class Refused(TractdError):
    """The daemon answered with another status than ok.

    `code` is its number (404), `name` its word ("model-not-found"), `detail` a sentence for people. `retryable` says
    whether the same request may succeed later, `retry_after` after how many seconds (None: the daemon does not say).
    """

    def __init__(self, code: int, detail: str, retry_after: Optional[float] = None):
        self.code = code
        self.name = STATUS_NAMES.get(code, "status-%d" % code)
        self.detail = detail
        self.retry_after = retry_after
        self.retryable = code in RETRYABLE
        text = "%s (%d)" % (self.name, code)
        if detail:
            text += ": " + detail
        if retry_after is not None:
            text += "; try again in %g s" % retry_after
        super().__init__(text)


class Tensor:
    """Numbers of one type in a shape, row-major.

    Takes nested lists of numbers, `bytes`, `array.array`, NumPy arrays, or anything else with the buffer protocol. A
    buffer says its type and shape; numbers in lists are f32 unless `dtype` says otherwise. `shape` reshapes, and
    `dtype` gives plain `bytes` another meaning. `numpy.asarray(tensor)` works without a copy.
    """

    __slots__ = ("dtype", "shape", "data")

    def __init__(self, values: Any, dtype: Optional[str] = None, shape: Optional[Sequence[int]] = None):
        if dtype is not None and dtype not in DTYPES:
            raise ValueError("no dtype %r; there are %s" % (dtype, ", ".join(DTYPES)))
        if isinstance(values, Tensor):
            found, found_shape, data = values.dtype, values.shape, values.data
        else:
            found, found_shape, data = read_values(values, dtype)
        if dtype is not None and found != dtype:
            if found != "u8" or not isinstance(values, (bytes, bytearray)):
                raise ValueError("the values are %s, not %s" % (found, dtype))
            found, found_shape = dtype, (len(data) // DTYPES[dtype].size,)
        self.dtype: str = found
        self.shape: Tuple[int, ...] = tuple(shape) if shape is not None else found_shape
        self.data: bytes = data
        if count(self.shape) * DTYPES[found].size != len(data):
            raise ValueError("%d bytes are no %s of shape %s" % (len(data), found, list(self.shape)))

    def flat(self) -> List[Any]:
        """The numbers in one list."""
        numbers = struct.unpack("<%d%s" % (count(self.shape), DTYPES[self.dtype].format), self.data)
        return list(numbers)

    def tolist(self) -> Any:
        """The numbers in lists nested as the shape says; a scalar alone."""
        return nested(self.flat(), self.shape)

    @property
    def __array_interface__(self) -> Dict[str, Any]:
        return {"version": 3, "shape": self.shape, "typestr": DTYPES[self.dtype].typestr, "data": self.data}

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Tensor):
            return NotImplemented
        return (self.dtype, self.shape, self.data) == (other.dtype, other.shape, other.data)

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return "Tensor(%s, shape=%s)" % (self.dtype, list(self.shape))


@dataclass(frozen=True)
class Class:
    """One class of a classifier's answer: its place in the output, its score, and its label where the model has any."""

    index: int
    score: float
    label: str


@dataclass(frozen=True)
class Reply:
    """An answer: the classes best first, the output tensors by name, who gave it, and where the time went."""

    classes: List[Class]
    tensors: Dict[str, Tensor]
    model: str
    version: int
    digest: str
    signed: bool
    queue_us: int
    pre_us: int
    infer_us: int
    post_us: int


Values = Union[Tensor, Sequence[Any], bytes, Any]
Image = Union[str, "os.PathLike[str]", bytes, Any]


class Client:
    """A connection to tractd, opened by the first request and again after it broke.

    `path` is the daemon's socket (default: see `default_socket`), `timeout` the seconds to wait for each answer.
    """

    def __init__(self, path: Optional[str] = None, timeout: float = 30.0):
        path = path or default_socket()
        self.path = path[len("unix:") :] if path.startswith("unix:") else path
        self.timeout = timeout
        self._socket: Optional[socket.socket] = None
        self._ids = itertools.count(1)

    def infer(
        self,
        model: str,
        tensors: Optional[Union[Mapping[str, Values], Values]] = None,
        *,
        image: Optional[Image] = None,
        deadline_ms: int = 0,
        priority: str = "normal",
        want: Iterable[str] = ("tensors", "classes"),
        timeout: Optional[float] = None
    ) -> Reply:
        """Ask `model` (`digits`, `digits@7`, `digits@canary`) about tensors or about one image.

        `tensors` is `{name: values}`, or values alone when the model has one input; see `Tensor` for what values can
        be. `image` is the path of a JPEG or PNG, its bytes, or a file opened in binary mode: the daemon decodes and
        scales it. `deadline_ms` counts from the daemon's receipt (0: its default); a request that misses it is refused.

        Raises `Refused`, `InferTimeout`, `ConnectionFailed` or `ProtocolError`.
        """
        if (tensors is None) == (image is None):
            raise TypeError("infer() takes either tensors or image=")
        if image is not None:
            named: List[Tuple[str, Tensor]] = []
            body = read_image(image)
        else:
            named = read_tensors(tensors)
            body = b"".join(tensor.data for _, tensor in named)
        head = encode_request(model, named, image is not None, deadline_ms, priority, want)
        head, body = self._exchange(KIND_REQUEST, KIND_REPLY, head, body, timeout)
        return decode_reply(head, body)

    def models(self, timeout: Optional[float] = None) -> Any:
        """The models and their tensors, as `tractctl models --json` prints them."""
        return self._query(1, timeout)

    def status(self, timeout: Optional[float] = None) -> Any:
        """Counters, queues and versions, as `tractctl status --json` prints them."""
        return self._query(2, timeout)

    def check_updates(self, timeout: Optional[float] = None) -> Any:
        """Have the daemon look into its registry now."""
        return self._query(3, timeout)

    def close(self) -> None:
        """Hang up. The next request connects again."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def __enter__(self) -> "Client":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _query(self, what: int, timeout: Optional[float]) -> Any:
        head, body = self._exchange(KIND_QUERY, KIND_ANSWER, bytes([what]), b"", timeout)
        decode_answer(head)
        try:
            return json.loads(body.decode("utf-8")) if body else None
        except ValueError as error:
            raise ProtocolError("the answer is no JSON: %s" % error) from None

    def _exchange(
        self, kind: int, expected: int, head: bytes, body: bytes, timeout: Optional[float]
    ) -> Tuple[bytes, bytes]:
        """Send one frame and receive its answer. Any failure hangs up: a late answer must not meet the next request."""
        ident = next(self._ids)
        frame = encode_header(kind, len(head), len(body), ident) + head
        deadline = time.monotonic() + (self.timeout if timeout is None else timeout)
        reused = self._socket is not None
        try:
            try:
                return self._attempt(frame, body, expected, ident, deadline)
            except Hangup:
                # A daemon that restarted since the last request has closed this connection without reading the frame.
                if not reused:
                    raise
                self.close()
                return self._attempt(frame, body, expected, ident, deadline)
        except BaseException as error:
            self.close()
            if isinstance(error, socket.timeout):
                raise InferTimeout("no answer from %s in time" % self.path) from None
            if isinstance(error, OSError):
                raise ConnectionFailed("%s: %s" % (self.path, error.strerror or error)) from None
            raise

    def _attempt(self, frame: bytes, body: bytes, expected: int, ident: int, deadline: float) -> Tuple[bytes, bytes]:
        connection = self._connection(deadline)
        try:
            send(connection, frame, deadline)
            send(connection, body, deadline)
        except (BrokenPipeError, ConnectionResetError):
            # A daemon that refuses a frame by its header answers and hangs up while the body is still on its way.
            pass
        head_len, body_len, kind, answered = decode_header(receive(connection, HEADER.size, deadline, first=True))
        if body_len > BODY_LEN_MAX:
            raise ProtocolError("an answer of %d bytes; at most %d are accepted" % (body_len, BODY_LEN_MAX))
        head = receive(connection, head_len, deadline)
        content = receive(connection, body_len, deadline)
        # What cannot be told apart by its header is refused with id 0.
        if answered not in (ident, 0):
            raise ProtocolError("an answer to request %d came instead of one to %d" % (answered, ident))
        if kind != expected:
            if kind == KIND_REPLY:
                decode_reply(head, content)
            raise ProtocolError("a frame of kind %d came instead of %d" % (kind, expected))
        return head, content

    def _connection(self, deadline: float) -> socket.socket:
        if self._socket is None:
            connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            try:
                connection.settimeout(remaining(deadline))
                connection.connect(self.path)
            except BaseException:
                connection.close()
                raise
            self._socket = connection
        return self._socket


def default_socket() -> str:
    """Where the daemon listens: `$TRACTD_SOCKET`, the system's socket, or the one of this user's own daemon."""
    given = os.environ.get("TRACTD_SOCKET")
    if given:
        return given
    system = "/run/tractd/tractd.sock"
    if os.geteuid() == 0 or os.path.exists(system):
        return system
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    if runtime:
        return os.path.join(runtime, "tractd", "tractd.sock")
    return "/tmp/tractd-%d/tractd.sock" % os.geteuid()


# The wire: docs/wire.md. Every number below is frozen.

HEADER = struct.Struct("<2sBBHHIQ")
MAGIC = b"td"
VERSION = 1
HEAD_LEN_MAX = 4096
BODY_LEN_MAX = 64 << 20
TENSORS_MAX = 8
RANK_MAX = 8
CLASSES_MAX = 10
KIND_REQUEST, KIND_REPLY, KIND_QUERY, KIND_ANSWER = 1, 2, 3, 4
PRIORITIES = {"low": 0, "normal": 1, "high": 2}
WANTS = {"tensors": 1, "classes": 2}
STATUS_OK = 200
RETRYABLE = (429, 503, 507)
STATUS_NAMES = {
    200: "ok",
    400: "malformed",
    403: "forbidden",
    404: "model-not-found",
    408: "deadline-exceeded",
    413: "too-large",
    415: "unsupported-type",
    422: "invalid-input",
    429: "busy",
    500: "internal",
    502: "quarantined",
    503: "draining",
    505: "version",
    507: "insufficient-memory",
}


class DType(NamedTuple):
    number: int
    size: int
    format: str
    typestr: str


DTYPES = {
    "u8": DType(1, 1, "B", "|u1"),
    "i8": DType(2, 1, "b", "|i1"),
    "u16": DType(3, 2, "H", "<u2"),
    "i16": DType(4, 2, "h", "<i2"),
    "u32": DType(5, 4, "I", "<u4"),
    "i32": DType(6, 4, "i", "<i4"),
    "u64": DType(7, 8, "Q", "<u8"),
    "i64": DType(8, 8, "q", "<i8"),
    "f16": DType(9, 2, "e", "<f2"),
    "f32": DType(10, 4, "f", "<f4"),
    "f64": DType(11, 8, "d", "<f8"),
    "bool": DType(12, 1, "?", "|b1"),
}
DTYPE_NAMES = {dtype.number: name for name, dtype in DTYPES.items()}


def encode_header(kind: int, head_len: int, body_len: int, ident: int) -> bytes:
    if head_len > HEAD_LEN_MAX:
        raise ValueError("the request's head has %d bytes; at most %d are allowed" % (head_len, HEAD_LEN_MAX))
    if body_len > BODY_LEN_MAX:
        raise ValueError("the request's body has %d bytes; at most %d are allowed" % (body_len, BODY_LEN_MAX))
    return HEADER.pack(MAGIC, VERSION, kind, head_len, 0, body_len, ident)


def decode_header(data: bytes) -> Tuple[int, int, int, int]:
    """Head length, body length, kind, id."""
    magic, version, kind, head_len, reserved, body_len, ident = HEADER.unpack(data)
    if magic != MAGIC:
        raise ProtocolError("this is not tractd: the answer begins with %r" % bytes(data[:4]))
    if version != VERSION:
        raise ProtocolError("the daemon speaks version %d, this client version %d" % (version, VERSION))
    if reserved != 0 or head_len > HEAD_LEN_MAX:
        raise ProtocolError("the answer's header is malformed")
    return head_len, body_len, kind, ident


def encode_request(
    model: str,
    tensors: Sequence[Tuple[str, Tensor]],
    media: bool = False,
    deadline_ms: int = 0,
    priority: str = "normal",
    want: Iterable[str] = ("tensors", "classes"),
) -> bytes:
    if priority not in PRIORITIES:
        raise ValueError("no priority %r; there are %s" % (priority, ", ".join(PRIORITIES)))
    wanted = [want] if isinstance(want, str) else list(want)
    if not set(wanted) <= set(WANTS):
        raise ValueError("no want %r; there are %s" % (wanted, ", ".join(WANTS)))
    if len(tensors) > TENSORS_MAX:
        raise ValueError("%d tensors; at most %d are allowed" % (len(tensors), TENSORS_MAX))
    stream = sequence = 0
    parts = [text(model), varint(deadline_ms, 32), bytes([PRIORITIES[priority], media])]
    parts += [bytes([sum({WANTS[word] for word in wanted})]), varint(stream, 32), varint(sequence, 32)]
    parts.append(varint(len(tensors), 32))
    for name, tensor in tensors:
        if len(tensor.shape) > RANK_MAX:
            raise ValueError("%d dimensions; at most %d are allowed" % (len(tensor.shape), RANK_MAX))
        parts += [text(name), bytes([DTYPES[tensor.dtype].number]), varint(len(tensor.shape), 32)]
        parts += [varint(size, 32) for size in tensor.shape]
    return b"".join(parts)


def decode_reply(head: bytes, body: bytes) -> Reply:
    """The reply, or its refusal as an exception."""
    reader = Reader(head)
    code, model, version = reader.varint(16), reader.text(), reader.varint(64)
    digest, signed = reader.take(32), reader.flag()
    queue_us, pre_us, infer_us, post_us = (reader.varint(32) for _ in range(4))
    retry_after_ms, detail = reader.varint(32), reader.text()
    described = []
    for _ in range(reader.length(TENSORS_MAX)):
        name, number = reader.text(), reader.byte()
        if number not in DTYPE_NAMES:
            raise ProtocolError("the answer has a tensor of the unknown type %d" % number)
        shape = tuple(reader.varint(32) for _ in range(reader.length(RANK_MAX)))
        described.append((name, DTYPE_NAMES[number], shape))
    classes = [Class(reader.varint(32), reader.float(), reader.text()) for _ in range(reader.length(CLASSES_MAX))]
    reader.end()
    sizes = [count(shape) * DTYPES[dtype].size for _, dtype, shape in described]
    if sum(sizes) != len(body):
        raise ProtocolError("the answer describes %d bytes of tensors and carries %d" % (sum(sizes), len(body)))
    starts = itertools.accumulate([0] + sizes)
    tensors = {
        name: Tensor(body[at : at + size], dtype, shape)
        for (name, dtype, shape), size, at in zip(described, sizes, starts)
    }
    if code != STATUS_OK:
        raise Refused(code, detail, retry_after_ms / 1000 if retry_after_ms else None)
    named = "sha256:" + digest.hex()
    return Reply(classes, tensors, model, version, named, signed, queue_us, pre_us, infer_us, post_us)


def decode_answer(head: bytes) -> None:
    """Nothing, or the refusal as an exception."""
    reader = Reader(head)
    code, detail = reader.varint(16), reader.text()
    reader.end()
    if code != STATUS_OK:
        raise Refused(code, detail)


class Reader:
    """Postcard, taken off the front of a head."""

    def __init__(self, data: bytes):
        self.data, self.at = data, 0

    def take(self, size: int) -> bytes:
        if size > len(self.data) - self.at:
            raise ProtocolError("the answer's head is truncated")
        self.at += size
        return self.data[self.at - size : self.at]

    def byte(self) -> int:
        return self.take(1)[0]

    def varint(self, bits: int) -> int:
        value = 0
        for shift in range(0, bits, 7):
            byte = self.byte()
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                if value >> bits:
                    break
                return value
        raise ProtocolError("the answer has a number beyond %d bits" % bits)

    def flag(self) -> bool:
        byte = self.byte()
        if byte > 1:
            raise ProtocolError("the answer has a flag that is neither 0 nor 1")
        return byte == 1

    def float(self) -> float:
        return struct.unpack("<f", self.take(4))[0]

    def text(self) -> str:
        try:
            return self.take(self.varint(32)).decode("utf-8")
        except UnicodeDecodeError:
            raise ProtocolError("the answer has text that is not UTF-8") from None

    def length(self, most: int) -> int:
        size = self.varint(32)
        if size > most:
            raise ProtocolError("the answer has a list of %d entries; at most %d are allowed" % (size, most))
        return size

    def end(self) -> None:
        if self.at != len(self.data):
            raise ProtocolError("the answer's head has %d bytes too many" % (len(self.data) - self.at))


def varint(value: int, bits: int) -> bytes:
    if not 0 <= value < 1 << bits:
        raise ValueError("%r is no number of %d bits" % (value, bits))
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def text(value: str) -> bytes:
    data = value.encode("utf-8")
    return varint(len(data), 32) + data


# The socket.


class Hangup(ConnectionError):
    """The other side closed before the first byte of an answer."""


def send(connection: socket.socket, data: bytes, deadline: float) -> None:
    connection.settimeout(remaining(deadline))
    connection.sendall(data)


def receive(connection: socket.socket, size: int, deadline: float, first: bool = False) -> bytes:
    data = bytearray(size)
    view, at = memoryview(data), 0
    while at < size:
        connection.settimeout(remaining(deadline))
        try:
            got = connection.recv_into(view[at:])
        except ConnectionResetError:
            got = 0
        if got == 0:
            raise (Hangup if first and at == 0 else ConnectionError)("the daemon hung up")
        at += got
    return bytes(data)


def remaining(deadline: float) -> float:
    left = deadline - time.monotonic()
    if left <= 0:
        raise socket.timeout()
    return left


# Arguments.


def read_image(image: Image) -> bytes:
    if isinstance(image, (bytes, bytearray, memoryview)):
        return bytes(image)
    if hasattr(image, "read"):
        data = image.read()
        if not isinstance(data, bytes):
            raise TypeError("the image file must be opened in binary mode")
        return data
    with open(os.fspath(image), "rb") as file:
        return file.read()


def read_tensors(tensors: Any) -> List[Tuple[str, Tensor]]:
    named = tensors.items() if isinstance(tensors, Mapping) else [("", tensors)]
    return [(name, values if isinstance(values, Tensor) else Tensor(values)) for name, values in named]


def read_values(values: Any, dtype: Optional[str]) -> Tuple[str, Tuple[int, ...], bytes]:
    try:
        view = memoryview(values)
    except TypeError:
        return read_lists(values, dtype or "f32")
    found = dtype_of(view)
    if sys.byteorder == "big" and DTYPES[found].size > 1:
        return read_lists(view.tolist(), found)
    return found, tuple(view.shape or ()), view.tobytes()


def dtype_of(view: memoryview) -> str:
    """By kind and size, because C's `long` has another size on another platform."""
    format = view.format.lstrip("@=<" if sys.byteorder == "little" else "@=")
    kind = {"e": "f", "f": "f", "d": "f", "?": "bool"}.get(format)
    if format in ("b", "h", "i", "l", "q", "n"):
        kind = "i"
    if format in ("B", "H", "I", "L", "Q", "N"):
        kind = "u"
    name = kind if kind in (None, "bool") else "%s%d" % (kind, 8 * view.itemsize)
    if name not in DTYPES:
        raise TypeError("a buffer of format %r cannot be sent" % view.format)
    return name


def read_lists(values: Any, dtype: str) -> Tuple[str, Tuple[int, ...], bytes]:
    shape: List[int] = []
    level = values
    while isinstance(level, (list, tuple)):
        shape.append(len(level))
        level = level[0] if level else None
    flat = [values]
    for size in shape:
        if any(not isinstance(inner, (list, tuple)) or len(inner) != size for inner in flat):
            raise ValueError("the nested lists have different lengths")
        flat = [number for inner in flat for number in inner]
    try:
        return dtype, tuple(shape), struct.pack("<%d%s" % (len(flat), DTYPES[dtype].format), *flat)
    except (struct.error, OverflowError) as error:
        raise ValueError("the values do not fit %s: %s" % (dtype, error)) from None


def nested(flat: List[Any], shape: Tuple[int, ...]) -> Any:
    if len(shape) < 2:
        return flat if shape else flat[0]
    step = len(flat) // max(shape[0], 1)
    return [nested(flat[i * step : (i + 1) * step], shape[1:]) for i in range(shape[0])]


def count(shape: Iterable[int]) -> int:
    total = 1
    for size in shape:
        total *= size
    return total
