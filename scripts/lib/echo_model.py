#!/usr/bin/env python3
"""echo_model.py DIR ELEMENTS: a model that costs next to nothing, for measuring what is around it.

Writes DIR/model.onnx: float32[ELEMENTS] in, its first element out. Standard library only; the few fields of an ONNX file
that it needs are written by hand (onnx.proto, IR version 8, opset 13).
"""

import pathlib
import sys

FLOAT = 1
INT64 = 7


def varint(value):
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def number(field, value):
    return varint(field << 3) + varint(value)


def text(field, value):
    value = value.encode() if isinstance(value, str) else value
    return varint(field << 3 | 2) + varint(len(value)) + value


def value_info(name, elements):
    shape = text(1, number(1, elements))
    return text(1, name) + text(2, text(1, number(1, FLOAT) + text(2, shape)))


def index(name, value):
    return number(1, 1) + number(2, INT64) + text(8, name) + text(9, value.to_bytes(8, "little"))


def main():
    folder, elements = pathlib.Path(sys.argv[1]), int(sys.argv[2])
    bounds = {"start": 0, "end": 1, "axis": 0}
    node = b"".join(text(1, name) for name in ["x", *bounds]) + text(2, "y") + text(4, "Slice")
    graph = text(1, node) + text(2, "echo")
    graph += b"".join(text(5, index(name, value)) for name, value in bounds.items())
    graph += text(11, value_info("x", elements)) + text(12, value_info("y", 1))
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "model.onnx").write_bytes(number(1, 8) + text(7, graph) + text(8, number(2, 13)))


main()
