"""The files that certificates of a property are about."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from tightrope.auditor.audit import outputs
from tightrope.experiments.evidence import close, file_of
from tightrope.frontend.graph import canonical
from tightrope.frontend.onnx import from_onnx
from tightrope.frontend.onnx_runtime import run_onnx
from tightrope.frontend.vnnlib import Property, read_property
from tightrope.records.certificate import Certificate, Model


class Originals:
    """The files that certificates are said to be about.

    Args:
        net: an ONNX file.
        prop: a VNN-LIB file.
    """

    def __init__(self, net: Path | str | None, prop: Path | str | None) -> None:
        self._prop: Property | None = None if prop is None else read_property(prop)
        self._net, self._prop_file = net, file_of(prop)
        self._own = None if net is None else canonical(*from_onnx(net), file_of(net))

    @property
    def replays(self) -> bool:
        """Whether there is a network to ask."""
        return self._net is not None

    def objection(self, given: Certificate, model: Model | None) -> str:
        """Where a certificate differs from them; empty if it does not.

        Args:
            model: that it refers to, if it is there.
        """
        if self._own is not None and given.model_sha256 != _called_as(self._own, model).sha256:
            return f"its network is not that of {self._net}"
        return "" if self._prop is None else "; ".join(self._differences(given, self._prop))

    def _differences(self, given: Certificate, prop: Property) -> Iterator[str]:
        assert self._prop_file is not None
        part, (name, sha256) = given.part, self._prop_file
        if part is None or part.sha256 != sha256 or part.count != len(prop.problems) or part.number >= part.count:
            yield f"it is not about the property in {name}"
            return
        problem = prop.problems[part.number]
        spec, box = problem.spec(prop.outputs), problem.bounds()
        ends = zip(box, (given.lower, given.upper), strict=True)
        if not all(np.array_equal(end[0].numpy(), found.ravel()) for end, found in ends):
            yield f"its box is not number {part.number} of {name}"
        rows = zip((spec.matrix, spec.offset), (given.matrix, given.offset), strict=True)
        if spec.clause != given.clause or not all(np.array_equal(ours[0].numpy(), found) for ours, found in rows):
            yield f"its property is not number {part.number} of {name}"

    def disagreement(self, given: Certificate, model: Model) -> str:
        """What onnxruntime has against a certificate: other outputs, at a counterexample or in the box's middle."""
        assert self._net is not None
        x = given.counterexample if given.counterexample is not None else (given.lower + given.upper) / 2
        rounded, theirs = run_onnx(self._net, x.ravel())
        lower, upper = outputs(model, rounded.reshape(x.shape))
        return "" if close(theirs, (lower + upper) / 2) else "onnxruntime computes other outputs there"


def _called_as(own: Model, other: Model | None) -> Model:
    """A network with the name that its file has in another one: a file is the same after it was renamed."""
    named = None if other is None else other.graph.get("source")
    source = own.graph["source"]
    if not isinstance(named, list) or named[1:] != source[1:]:
        return own
    return Model({**own.graph, "source": named}, own.weights)
