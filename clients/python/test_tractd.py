"""Tests of the Python client: `python3 -m unittest discover clients/python`.

The golden vectors are those of the wire crate. Where TRACTD_SOCKET names a daemon that serves models/digits, real
requests are sent too; nothing outside the standard library is needed.
"""

import array
import io
import json
import os
import pathlib
import re
import socket
import struct
import tempfile
import threading
import unittest

import tractd
from tractd import Class, Client, Tensor

REPO = pathlib.Path(__file__).resolve().parent.parent.parent
GOLDEN = REPO / "wire" / "tests" / "golden"
SAMPLES = REPO / "models" / "digits" / "samples"
ALL_DIGITS = list("0123456789")


def golden(name):
    """Header fields, head and body of an annotated hex file; all after a `#` is commentary."""
    lines = (GOLDEN / (name + ".hex")).read_text(encoding="utf-8").splitlines()
    data = bytes.fromhex("".join(re.sub("#.*", "", line) for line in lines))
    head_len, body_len, kind, ident = tractd.decode_header(data[:20])
    head, body = data[20 : 20 + head_len], data[20 + head_len :]
    assert len(body) == body_len, name
    return kind, ident, head, body


class GoldenVectors(unittest.TestCase):
    maxDiff = None

    def check_request(self, name, head, body):
        kind, ident, expected_head, expected_body = golden(name)
        self.assertEqual(kind, tractd.KIND_REQUEST)
        self.assertEqual((head, body), (expected_head, expected_body))
        header = tractd.encode_header(kind, len(head), len(body), ident)
        self.assertEqual(tractd.decode_header(header), (len(head), len(body), kind, ident))

    def test_request_with_tensors(self):
        tensors = tractd.read_tensors({"input:0": [[0.5, -1, 3.25]], "größe": Tensor(-2, "i16")})
        head = tractd.encode_request("digits@7", tensors, False, 1500, "high", ["tensors"])
        self.check_request("request-tensors", head, b"".join(tensor.data for _, tensor in tensors))

    def test_request_with_an_image(self):
        body = tractd.read_image(io.BytesIO(b"\x89PNG\r\n\x1a\n"))
        self.check_request("request-media", tractd.encode_request("digits", [], True), body)

    def test_request_with_every_part_as_long_as_it_may_be(self):
        shape = (4294967295,) * 7 + (0,)
        dtypes = ["u8", "i8", "u16", "u32", "u64", "f16", "f64", "bool"]
        tensors = [("t" * 127, Tensor(b"", dtype, shape)) for dtype in dtypes]
        selector = "a" * 63 + "@" + "b" * 63
        head = tractd.encode_request(selector, tensors, False, 4294967295, "low", [])
        self.check_request("request-limits", head, b"")

    def test_reply(self):
        kind, ident, head, body = golden("reply-ok")
        self.assertEqual((kind, ident), (tractd.KIND_REPLY, 0x0102030405060708))
        reply = tractd.decode_reply(head, body)
        self.assertEqual(reply.classes, [Class(4294967295, 0.75, "sieben ✓"), Class(1, -0.0, "")])
        self.assertEqual(reply.tensors, {"scores": Tensor(bytes([1, 2, 254, 255]), "u8", (1, 2, 2))})
        self.assertEqual(reply.tensors["scores"].tolist(), [[[1, 2], [254, 255]]])
        self.assertEqual((reply.model, reply.version, reply.signed), ("digits", 2**64 - 1, True))
        self.assertEqual(reply.digest, "sha256:" + bytes(range(32)).hex())
        self.assertEqual((reply.queue_us, reply.pre_us, reply.infer_us, reply.post_us), (127, 128, 300, 16384))

    def test_refusal(self):
        _, ident, head, body = golden("reply-refused")
        self.assertEqual(ident, 2**64 - 1)
        with self.assertRaises(tractd.Refused) as caught:
            tractd.decode_reply(head, body)
        refused = caught.exception
        self.assertEqual((refused.code, refused.name), (429, "busy"))
        self.assertEqual((refused.detail, refused.retryable, refused.retry_after), ("the queue is full", True, 0.25))
        self.assertEqual(str(refused), "busy (429): the queue is full; try again in 0.25 s")

    def test_query_and_answer(self):
        kind, _, head, _ = golden("query-models")
        self.assertEqual((kind, head), (tractd.KIND_QUERY, b"\x01"))
        kind, _, head, body = golden("answer-models")
        tractd.decode_answer(head)
        self.assertEqual((kind, json.loads(body.decode())), (tractd.KIND_ANSWER, {"models": []}))

    def test_every_cut_of_a_reply_is_a_protocol_error(self):
        _, _, head, body = golden("reply-ok")
        for cut in range(len(head)):
            with self.assertRaises(tractd.ProtocolError):
                tractd.decode_reply(head[:cut], body)
        with self.assertRaisesRegex(tractd.ProtocolError, "1 bytes too many"):
            tractd.decode_reply(head + b"\0", body)
        with self.assertRaisesRegex(tractd.ProtocolError, "describes 4 bytes of tensors and carries 3"):
            tractd.decode_reply(head, body[:3])


class Tensors(unittest.TestCase):
    def check(self, tensor, dtype, shape, data):
        self.assertEqual((tensor.dtype, tensor.shape, tensor.data), (dtype, shape, data))

    def test_what_becomes_a_tensor(self):
        self.check(Tensor([[1, 2], [3, 4]]), "f32", (2, 2), struct.pack("<4f", 1, 2, 3, 4))
        self.check(Tensor([1, -2], "i64"), "i64", (2,), struct.pack("<2q", 1, -2))
        self.check(Tensor(7), "f32", (), struct.pack("<f", 7))
        self.check(Tensor([]), "f32", (0,), b"")
        self.check(Tensor([True, False], "bool"), "bool", (2,), b"\1\0")
        self.check(Tensor(b"\1\2"), "u8", (2,), b"\1\2")
        self.check(Tensor(b"\0\0\x80\x3f", "f32", (1, 1)), "f32", (1, 1), b"\0\0\x80\x3f")
        self.check(Tensor(array.array("l", [5])), "i%d" % (8 * struct.calcsize("l")), (1,), struct.pack("l", 5))
        grid = memoryview(array.array("f", [0, 1, 2, 3])).cast("B").cast("f", [2, 2])
        self.check(Tensor(grid), "f32", (2, 2), struct.pack("<4f", 0, 1, 2, 3))
        self.check(Tensor(memoryview(bytes(range(6)))[::2]), "u8", (3,), b"\0\2\4")
        self.check(Tensor(array.array("d", [1, 2]), shape=(1, 2)), "f64", (1, 2), struct.pack("<2d", 1, 2))

    def test_what_does_not(self):
        for values, options, message in [
            ([[1], [2, 3]], {}, "different lengths"),
            ([1, [2]], {}, "do not fit f32"),
            (["a"], {}, "do not fit f32"),
            ([256], {"dtype": "u8"}, "do not fit u8"),
            ([1], {"dtype": "float"}, "no dtype 'float'; there are u8, i8"),
            ([1, 2], {"shape": (3,)}, r"8 bytes are no f32 of shape \[3\]"),
            (b"abc", {"dtype": "f32"}, "3 bytes are no f32"),
            (array.array("d", [1]), {"dtype": "f32"}, "the values are f64, not f32"),
        ]:
            with self.subTest(values=values), self.assertRaisesRegex(ValueError, message):
                Tensor(values, **options)

    def test_numpy_goes_in_and_out(self):
        try:
            import numpy
        except ImportError:
            self.skipTest("no NumPy here")
        grid = numpy.arange(6, dtype="f4").reshape(2, 3)
        self.check(Tensor(grid), "f32", (2, 3), grid.tobytes())
        self.check(Tensor(grid.T), "f32", (3, 2), grid.T.copy().tobytes())
        self.check(Tensor(numpy.float16(1)), "f16", (), b"\0\x3c")
        back = numpy.asarray(Tensor(grid))
        self.assertEqual((back.dtype, back.shape, back.tolist()), (grid.dtype, (2, 3), grid.tolist()))
        with self.assertRaisesRegex(TypeError, "'>f' cannot be sent"):
            Tensor(grid.astype(">f4"))

    def test_lists_come_back_as_they_went(self):
        for values in [5.0, [], [1.0], [[1.0, 2.0, 3.0]], [[[1.0], [2.0]], [[3.0], [4.0]]], [[], []]]:
            self.assertEqual(Tensor(values).tolist(), values)

    def test_wrong_arguments(self):
        client = Client("/nowhere")
        for arguments in [{}, {"tensors": [1], "image": b""}]:
            with self.assertRaises(TypeError):
                client.infer("digits", **arguments)
        with self.assertRaisesRegex(ValueError, "no priority 'urgent'; there are low, normal, high"):
            client.infer("digits", [1], priority="urgent")
        with self.assertRaisesRegex(ValueError, "9 tensors; at most 8"):
            client.infer("digits", {str(i): [1] for i in range(9)})
        with self.assertRaises(FileNotFoundError):
            client.infer("digits", image="/nowhere.png")


class FakeDaemon:
    """A socket that treats its connections in turn as the given functions do; each gets (connection, frames)."""

    def __init__(self, *turns):
        self.folder = tempfile.TemporaryDirectory()
        self.path = os.path.join(self.folder.name, "s")
        self.listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.listener.bind(self.path)
        self.listener.listen(4)
        self.thread = threading.Thread(target=self.serve, args=(turns,), daemon=True)
        self.thread.start()

    def serve(self, turns):
        for turn in turns:
            connection, _ = self.listener.accept()
            with connection:
                turn(connection)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.thread.join(5)
        self.listener.close()
        self.folder.cleanup()


def read_frame(connection):
    deadline = tractd.time.monotonic() + 5
    header = tractd.receive(connection, 20, deadline)
    head_len, body_len, kind, ident = tractd.decode_header(header)
    return kind, ident, tractd.receive(connection, head_len, deadline), tractd.receive(connection, body_len, deadline)


def answer(connection, as_id=None):
    _, ident, _, _ = read_frame(connection)
    kind, _, head, body = golden("reply-ok")
    ident = ident if as_id is None else as_id
    connection.sendall(tractd.encode_header(kind, len(head), len(body), ident) + head + body)


def refuse(connection, ident):
    kind, _, head, _ = golden("reply-refused")
    connection.sendall(tractd.encode_header(kind, len(head), 0, ident) + head)


class Connections(unittest.TestCase):
    def test_one_connection_serves_many_requests_and_refusals(self):
        def turn(connection):
            answer(connection)
            refuse(connection, read_frame(connection)[1])
            answer(connection)

        with FakeDaemon(turn) as daemon, Client("unix:" + daemon.path) as client:
            self.assertEqual(client.infer("digits", [1]).classes[0].label, "sieben ✓")
            with self.assertRaises(tractd.Refused):
                client.infer("digits", [1])
            self.assertEqual(client.infer("digits", [1]).version, 2**64 - 1)

    def test_a_restarted_daemon_is_asked_again(self):
        with FakeDaemon(answer, answer) as daemon, Client(daemon.path) as client:
            client.infer("digits", [1])
            self.assertEqual(client.infer("digits", [1]).model, "digits")

    def test_a_first_request_is_not_repeated(self):
        with FakeDaemon(lambda connection: read_frame(connection)) as daemon, Client(daemon.path) as client:
            with self.assertRaisesRegex(tractd.ConnectionFailed, "hung up"):
                client.infer("digits", [1])

    def test_half_an_answer(self):
        def turn(connection):
            read_frame(connection)
            connection.sendall(tractd.encode_header(tractd.KIND_REPLY, 100, 0, 1) + b"half")

        with FakeDaemon(turn) as daemon, Client(daemon.path) as client:
            with self.assertRaisesRegex(tractd.ConnectionFailed, "hung up"):
                client.infer("digits", [1])

    def test_a_late_answer_does_not_meet_the_next_request(self):
        go = threading.Event()

        def late(connection):
            read_frame(connection)
            go.wait(5)

        with FakeDaemon(late, answer) as daemon, Client(daemon.path, timeout=0.05) as client:
            with self.assertRaises(tractd.InferTimeout):
                client.infer("digits", [1])
            go.set()
            self.assertEqual(client.infer("digits", [1], timeout=5).model, "digits")

    def test_a_refusal_while_the_body_is_on_its_way(self):
        def turn(connection):
            tractd.receive(connection, 20, tractd.time.monotonic() + 5)
            refuse(connection, 0)

        with FakeDaemon(turn) as daemon, Client(daemon.path) as client:
            with self.assertRaises(tractd.Refused):
                client.infer("digits", bytes(8 << 20))

    def test_another_requests_answer(self):
        with FakeDaemon(lambda connection: answer(connection, as_id=99)) as daemon, Client(daemon.path) as client:
            with self.assertRaisesRegex(tractd.ProtocolError, "to request 99 came instead of one to 1"):
                client.infer("digits", [1])

    def test_something_else_listens(self):
        def turn(connection):
            read_frame(connection)
            connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")

        with FakeDaemon(turn) as daemon, Client(daemon.path) as client:
            with self.assertRaisesRegex(tractd.ProtocolError, "not tractd"):
                client.infer("digits", [1])

    def test_a_refused_query(self):
        def turn(connection):
            refuse(connection, read_frame(connection)[1])

        with FakeDaemon(turn) as daemon, Client(daemon.path) as client:
            with self.assertRaises(tractd.Refused):
                client.models()

    def test_nobody_listens(self):
        with self.assertRaisesRegex(tractd.ConnectionFailed, "/nowhere/s: No such file"):
            Client("/nowhere/s").status()


@unittest.skipUnless(os.environ.get("TRACTD_SOCKET"), "TRACTD_SOCKET names no daemon")
class RealDaemon(unittest.TestCase):
    def setUp(self):
        self.client = Client()
        self.addCleanup(self.client.close)

    def test_every_sample_is_answered_rightly(self):
        samples = sorted(SAMPLES.glob("*.png"))
        self.assertEqual(len(samples), 20)
        for path in samples:
            reply = self.client.infer("digits", image=path)
            self.assertEqual(reply.classes[0].label, path.name[0], path.name)
            self.assertEqual(len(reply.classes), 3)
            logits = reply.tensors["logits"]
            self.assertEqual((logits.dtype, logits.shape), ("f32", (1, 10)))
            self.assertEqual(max(range(10), key=logits.flat().__getitem__), reply.classes[0].index)

    def test_image_and_tensor_give_the_same_bytes(self):
        folder = REPO / "models" / "digits" / "1" / "golden"
        for digit in ALL_DIGITS:
            (given,) = folder.glob(digit + "-*.image.bin")
            image = SAMPLES / given.name.replace(".image.bin", ".png")
            tensor = Tensor(given.read_bytes(), "f32", (1, 1, 8, 8))
            by_image = self.client.infer("digits", image=image.read_bytes())
            by_tensor = self.client.infer("digits", {"image": tensor})
            unnamed = self.client.infer("digits", tensor.tolist())
            self.assertEqual(by_image.tensors, by_tensor.tensors)
            self.assertEqual(by_image.tensors, unnamed.tensors)
            self.assertEqual(by_image.classes, by_tensor.classes)

    def test_only_what_is_wanted_comes(self):
        tensor = Tensor(bytes(256), "f32", (1, 1, 8, 8))
        classes = self.client.infer("digits", tensor, want="classes")
        self.assertEqual((classes.tensors, len(classes.classes)), ({}, 3))
        tensors = self.client.infer("digits", tensor, want="tensors")
        self.assertEqual((list(tensors.tensors), tensors.classes), (["logits"], []))

    def test_refusals_leave_the_connection_usable(self):
        good = Tensor(bytes(256), "f32", (1, 1, 8, 8))
        nan = Tensor(struct.pack("<64f", *[float("nan")] * 64), "f32", (1, 1, 8, 8))
        for code, model, arguments in [
            (404, "no-such-model", {"tensors": good}),
            (404, "digits@999", {"tensors": good}),
            (422, "digits", {"tensors": [1.0]}),
            (422, "digits", {"tensors": {"no-such-input": good}}),
            (422, "digits", {"tensors": Tensor(bytes(64), "u8", (1, 1, 8, 8))}),
            (422, "digits", {"tensors": nan}),
            (415, "digits", {"image": b"neither JPEG nor PNG"}),
        ]:
            with self.subTest(code=code, model=model), self.assertRaises(tractd.Refused) as caught:
                self.client.infer(model, **arguments)
            self.assertEqual(caught.exception.code, code)
            self.assertNotEqual(caught.exception.detail, "")
            self.assertEqual(len(self.client.infer("digits", good).classes), 3)

    def test_models_and_status(self):
        self.assertIn('"digits"', json.dumps(self.client.models()))
        self.assertIsInstance(self.client.status(), dict)


if __name__ == "__main__":
    unittest.main()
