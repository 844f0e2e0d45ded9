"""From an ONNX file to a :class:`Network` and its params."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from torch import Tensor

from tightrope.core.network import Network
from tightrope.errors import UnsupportedLayerError
from tightrope.frontend import _onnx_arithmetic, _onnx_images, _onnx_shapes
from tightrope.frontend._onnx_converter import Converter, Handlers
from tightrope.frontend._onnx_model import OnnxGraph, read_graph

_HANDLERS: Handlers = {**_onnx_arithmetic.HANDLERS, **_onnx_images.HANDLERS, **_onnx_shapes.HANDLERS}


def from_onnx(source: Path | str | bytes) -> tuple[Network, dict[str, Tensor]]:
    """Read an ONNX file as a network and its weights.

    The function is that of the file for one sample, in real arithmetic: stored numbers become the same numbers in
    float64, and constants are folded in float64. Dropout is left out and batch normalisation takes its statistics.

    Args:
        source: the file (``.onnx``, ``.onnx.gz``), or its bytes.

    Returns:
        The network, which takes samples of the shape of the input without its batch axis (an axis of size 1 or of no
        size that comes first, where there are others), and gives the output's entries as a vector; and its params.

    Raises:
        MissingExtraError: the package onnx is not installed.
        MissingDataError, CorruptDataError: no such file, or no valid ONNX model.
        UnsupportedLayerError: operators that are not supported, all of them named.
        InputError: weights in other files. NumericalError: NaN or infinite weights.

    Example:
        >>> net, params = from_onnx("net.onnx")  # doctest: +SKIP
    """
    graph = read_graph(source)
    _check_supported(graph)
    converter = Converter(graph, _HANDLERS)
    network = converter.convert()
    network.check_params(converter.params)
    return network, converter.params


def _check_supported(graph: OnnxGraph) -> None:
    unknown = Counter(node.op for node in graph.nodes if node.op not in _HANDLERS)
    if unknown:
        found = ", ".join(f"{op} ({count})" if count > 1 else op for op, count in sorted(unknown.items()))
        hint = " Softmax keeps the order of its inputs: cut it off to verify comparisons of outputs." * (
            "Softmax" in unknown
        )
        raise UnsupportedLayerError(
            f"The network uses operators that are not supported yet: {found}.{hint} "
            f"Supported: {', '.join(sorted(_HANDLERS))}."
        )
