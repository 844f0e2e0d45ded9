"""ONNX files evaluated by onnxruntime, an implementation that shares no code with ours."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from tightrope.core.extras import require
from tightrope.errors import InputError
from tightrope.frontend._onnx_model import LARGEST_FILE, Array
from tightrope.frontend._source import read_limited

_TYPES = {"tensor(float)": np.float32, "tensor(double)": np.float64, "tensor(float16)": np.float16}


def run_onnx(source: Path | str | bytes, x: Array) -> tuple[Array, Array]:
    """The output for one input, on one thread.

    Args:
        source: the file (``.onnx``, ``.onnx.gz``), or its bytes.
        x: the entries of the input, (inputs,), rounded to the type of numbers that the file takes.

    Returns:
        The input as it was rounded, and the entries of the output, float64 vectors.

    Raises:
        MissingExtraError: onnxruntime is not installed.
        InputError: it refuses the file.
    """
    runtime = require("onnxruntime", "onnx")
    data = source if isinstance(source, bytes) else read_limited(source, LARGEST_FILE)
    options = runtime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 4
    # The graph as it is written: some of its optimisations fail on valid graphs.
    options.graph_optimization_level = runtime.GraphOptimizationLevel.ORT_DISABLE_ALL
    try:
        session = runtime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
        [entry] = session.get_inputs()
        shape = [size if isinstance(size, int) and size > 0 else 1 for size in entry.shape]
        with np.errstate(over="ignore"):
            value = np.asarray(x, dtype=_TYPES[entry.type]).reshape(shape)
        output = session.run(None, {entry.name: value})[0]
    except Exception as error:  # its own classes, which derive from no common one
        raise InputError(f"onnxruntime cannot run the network: {' '.join(str(error).split())[:200]}") from None
    return value.astype(np.float64).reshape(-1), np.asarray(output, dtype=np.float64).reshape(-1)
