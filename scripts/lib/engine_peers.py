"""What scripts/bench-engine does in Python: time a peer's engine on a model, and make the table.

  engine_peers.py npz MODEL.onnx RAW OUT.npz                     the raw f32 input as tractctl reads it
  engine_peers.py identity OUT.onnx                              a model that does nothing: what a call costs
  engine_peers.py measure ort|openvino MODEL.onnx RAW SECONDS    one JSON line, from a fresh process
  engine_peers.py table RESULTS PEER...                          medians of the JSON lines, as tables
"""

import collections
import json
import math
import pathlib
import resource
import statistics
import sys
import time

# As tractctl's: shorter calls are timed several at once, and warming up lasts a while.
SAMPLE_MIN_S, WARM_UP_S, WARM_UP_RUNS, SAMPLES_MIN = 20e-6, 0.1, 20, 20
NAMES = {"ort": "ONNX Runtime", "openvino": "OpenVINO", "tractd": "tractd"}


def main():
    command, *arguments = sys.argv[1:]
    {"npz": npz, "identity": identity, "measure": measure, "table": table}[command](*arguments)


def npz(model, raw, out):
    import numpy as np

    name, array = read_input(model, raw)
    np.savez(out, **{name: array})


def read_input(model, raw):
    import numpy as np
    import onnx

    value = onnx.load(model).graph.input[0]
    shape = [dim.dim_value for dim in value.type.tensor_type.shape.dim]
    return value.name, np.fromfile(raw, dtype="<f4").reshape(shape)


def identity(out):
    import onnx
    from onnx import TensorProto, helper

    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 1]) for name in ("input", "output")]
    graph = helper.make_graph([helper.make_node("Identity", ["input"], ["output"])], "identity", [values[0]], [values[1]])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), out)
    pathlib.Path(out).with_suffix(".input").write_bytes(bytes(4))


def measure(peer, model, raw, seconds):
    _, array = read_input(model, raw)
    begin, run = {"ort": with_ort, "openvino": with_openvino}[peer](model, array)
    run()
    load_ms = (time.perf_counter() - begin) * 1e3
    median_us = time_calls(run, float(seconds))
    peak_rss_kb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(json.dumps({"median_us": median_us, "load_ms": load_ms, "peak_rss_kb": peak_rss_kb}))


def with_ort(model, array):
    import onnxruntime as ort

    begin = time.perf_counter()
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.log_severity_level = 3
    session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    # Input and output stay where they are: nothing is copied, looked up or converted in a call.
    binding = session.io_binding()
    binding.bind_ortvalue_input(session.get_inputs()[0].name, ort.OrtValue.ortvalue_from_numpy(array))
    session.run_with_iobinding(bind_output(ort, session, binding, array))
    return begin, lambda: session.run_with_iobinding(binding)


def bind_output(ort, session, binding, array):
    import numpy as np

    output = session.get_outputs()[0]
    first = session.run(None, {session.get_inputs()[0].name: array})[0]
    binding.bind_ortvalue_output(output.name, ort.OrtValue.ortvalue_from_numpy(np.empty_like(first)))
    return binding


def with_openvino(model, array):
    import openvino as ov

    begin = time.perf_counter()
    options = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": 1, "NUM_STREAMS": 1}
    request = ov.Core().compile_model(model, "CPU", options).create_infer_request()
    request.set_input_tensor(ov.Tensor(array, shared_memory=True))
    return begin, lambda: request.infer(share_outputs=True)


def time_calls(run, seconds):
    """The median in µs, by the same rule as `tractctl bench engine`."""
    clock = time.perf_counter_ns
    begin, warm = clock(), 0
    while warm < WARM_UP_RUNS or clock() - begin < WARM_UP_S * 1e9:
        run()
        warm += 1
    group = max(1, math.ceil(SAMPLE_MIN_S * 1e9 * warm / (clock() - begin)))
    calls, samples, begin = range(group), [], clock()
    while len(samples) < SAMPLES_MIN or clock() - begin < seconds * 1e9:
        started = clock()
        for _ in calls:
            run()
        samples.append((clock() - started) / group)
    return statistics.median(samples) / 1e3


def table(results, *peers):
    lines = collections.defaultdict(list)
    for line in pathlib.Path(results).read_text().splitlines():
        model, engine, form, figures = line.split("\t")
        lines[model, engine, form].append(json.loads(figures))
    medians = {
        key: {name: statistics.median(run[name] for run in runs) for name in ("median_us", "load_ms", "peak_rss_kb")}
        for key, runs in lines.items()
    }
    overhead = {peer: medians["identity", peer, "f32"]["median_us"] for peer in peers}
    models = list(dict.fromkeys(model for model, _, _ in lines if model != "identity"))

    ratios, called, rows, loads = [], [], [], []
    for model in models:
        (ours,) = [form for name, engine, form in medians if (name, engine) == (model, "tractd")]
        ours = medians[model, "tractd", ours]
        best = {}
        for peer in peers:
            forms = [form for name, engine, form in medians if (name, engine) == (model, peer)]
            best[peer] = min((medians[model, peer, form] | {"form": form} for form in forms), key=lambda m: m["median_us"])
        net = {peer: best[peer]["median_us"] - overhead[peer] for peer in peers}
        ratio = min(net.values()) / ours["median_us"]
        ratios.append(ratio)
        called.append(min(best[peer]["median_us"] for peer in peers) / ours["median_us"])
        first = lines[model, "tractd", "qdq"][0]
        share = first["int8_macs"] / max(first["total_macs"], 1)
        cells = [f"{net[peer]:.1f} {best[peer]['form']}" for peer in peers]
        rows.append([model, f"{ours['median_us']:.2f}", *cells, f"{ratio:.2f}", f"{called[-1]:.2f}", f"{share:.1%}", first["outside"]])
        cells = [f"{m['load_ms']:.1f}" for m in (ours, *best.values())] + [f"{m['peak_rss_kb'] / 1024:.0f}" for m in (ours, *best.values())]
        loads.append([model, *cells])

    engines = ["tractd", *(NAMES[peer] for peer in peers)]
    kernels = lines[models[0], "tractd", "qdq"][0]["kernels"]
    rounds = len(lines[models[0], "tractd", "qdq"])
    calls = ", ".join(f"{NAMES[peer]} {overhead[peer]:.1f} µs" for peer in peers)
    print(f"int8, batch 1, one core, one thread, tractd's kernels {kernels}, medians of {rounds} rounds in µs.")
    print(f"Subtracted from the peers, a call on a model that does nothing: {calls}.")
    print("That is more than Python's share, so the first ratio is too low for the smallest models; the second is as called.\n")
    show([["model", *engines, "best peer ÷ tractd", "as called", "MACs in int8", "nodes outside"], *rows])
    mean, mean_called = (math.exp(statistics.fmean(math.log(max(ratio, 0.01)) for ratio in each)) for each in (ratios, called))
    print(f"\ngeometric mean {mean:.2f}, worst {min(ratios):.2f}; as called {mean_called:.2f}, worst {min(called):.2f}\n")
    print("From opening the file to the first answer in ms; peak memory of the process in MiB, Python's own included.\n")
    show([["model", *(f"{engine} ms" for engine in engines), *(f"{engine} MiB" for engine in engines)], *loads])


def show(rows):
    rows = [[str(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*rows)]
    for index, row in enumerate(rows):
        cells = [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:]))]
        print("| " + " | ".join(cells) + " |")
        if index == 0:
            print("|" + "|".join(["-" * (widths[0] + 2), *("-" * (width + 1) + ":" for width in widths[1:])]) + "|")


if __name__ == "__main__":
    main()
