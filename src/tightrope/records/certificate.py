"""Certificates: what the verdict on one box rests on, as one file that anyone can check.

A file is a safetensors file whose JSON (graph, property, verdict, recipe) is in its header. It holds numbers and names,
no code, and nothing that has to be trusted: :mod:`tightrope.auditor` recomputes all that it claims.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors import SafetensorError
from safetensors.numpy import load as parse_arrays
from safetensors.numpy import save as pack_arrays

from tightrope.errors import CorruptDataError, MissingDataError
from tightrope.records.files import write_atomic

SCHEMA: Literal[1] = 1
SUFFIX = ".safetensors"
MODEL_FILE = f"model{SUFFIX}"
"""Name of the network's file beside the certificates that refer to it."""

Array = npt.NDArray[Any]
_KEY = "tightrope"
_WEIGHTS = "weights/"


# --------------------------------------------------------------------------------------------------- network


@dataclass(frozen=True, eq=False)
class Model:
    """A network in canonical form.

    Attributes:
        graph: JSON values: ``input_shape``; ``nodes`` in order, each with ``name``, ``op``, ``inputs``, ``facts`` and
            ``shape``; ``source``, the name and SHA-256 of the file that it came from, or None.
        weights: by the names that the facts give.
    """

    graph: Mapping[str, Any]
    weights: Mapping[str, Array]

    @cached_property
    def sha256(self) -> str:
        """Of the graph's canonical JSON and of names, types, shapes and little-endian bytes of the weights."""
        total = hashlib.sha256(json.dumps(self.graph, sort_keys=True, separators=(",", ":")).encode())
        for name in sorted(self.weights):
            value = np.ascontiguousarray(self.weights[name])
            total.update(f"\n{name}:{value.dtype}:{value.shape};".encode())
            total.update(value.astype(value.dtype.newbyteorder("<"), copy=False).tobytes())
        return total.hexdigest()

    def write(self, path: Path) -> None:
        """Write a file of its own, atomically."""
        weights = {f"{_WEIGHTS}{name}": value for name, value in self.weights.items()}
        _write(path, weights, {"format": "tightrope-model", "schema_version": SCHEMA, "graph": self.graph})

    @classmethod
    def read(cls, path: Path) -> Model:
        """Read such a file.

        Raises:
            MissingDataError: there is none.
            CorruptDataError: it is not one, or is damaged.
        """
        arrays, header = _read(path, "model")
        if header.get("schema_version") != SCHEMA or not isinstance(header.get("graph"), dict):
            raise CorruptDataError(f"{path} is not a model of schema {SCHEMA}.")
        return _model(header["graph"], arrays)


def _model(graph: Any, arrays: Mapping[str, Array]) -> Model:
    prefix = len(_WEIGHTS)
    return Model(graph, {name[prefix:]: value for name, value in arrays.items() if name.startswith(_WEIGHTS)})


# --------------------------------------------------------------------------------------------------- evidence


@dataclass(frozen=True, eq=False)
class Leaves:
    """Subproblems that cover a box, clause by clause, each with what its bound is made of.

    A leaf is the part of its box where some neurons have a given sign. Its bound is that of

        sum_r weight_r row_r  -  sum_j multiplier_j sign_j neuron_j

    over the box, by back-substitution with the leaf's lower slopes. Pre-activation bounds are **recomputed**: those of
    the relaxation on the leaf's box, intersected with those on the boxes it was cut out of, and with the signs. On the
    whole box ``ends`` may tighten some of them, in the order of the nodes: back-substitution with slopes of their own,
    on the bounds of earlier nodes that were tightened before.

    Attributes:
        relaxation: its name and options; also the rule of all lines that ``slopes`` does not give.
        nodes: names of the pre-activations.
        neurons: (k, 2): the number of a node, and the position in it, row-major.
        clause: (n,), of each leaf.
        weights: (n, rows), on the simplex, 0 for rows of other clauses.
        slopes: (n, k) in [0, 1]: from the flattest to the steepest lower line.
        splits: (m, 3): the number of a leaf, that of a neuron, and the neuron's sign, 1 or -1.
        multipliers: (m,), not negative, of the splits.
        boxes: (n, 2, *input shape), lower and upper ends; None where every leaf has the whole box.
        ends: (e, 2): the number of a neuron, and 1 for its lower end or -1 for its upper one; None if there are none.
        end_slopes: (e, k) in [0, 1], of the back-substitution that bounds an end.
    """

    relaxation: Mapping[str, Any]
    nodes: tuple[str, ...]
    neurons: Array
    clause: Array
    weights: Array
    slopes: Array
    splits: Array
    multipliers: Array
    boxes: Array | None = None
    ends: Array | None = None
    end_slopes: Array | None = None

    @property
    def size(self) -> int:
        """Number of leaves."""
        return len(self.clause)


@dataclass(frozen=True, eq=False)
class Origin:
    """The image that box and property were made from.

    Attributes:
        image: (*input shape).
        eps: exact radius as text.
        data_range: ends that the box is clipped to, as text; None if it is not.
        label: the class whose output is to stay the largest; None for another property.
        index: of the image in its dataset.
    """

    image: Array
    eps: str
    data_range: tuple[str, str] | None
    label: int | None
    index: int | None


@dataclass(frozen=True)
class Part:
    """Which of the problems of a property a certificate is about: all of them verified, or one falsified, decide it.

    Attributes:
        number: of the problem, from 0.
        count: of problems.
        name, sha256: of the property's file, if it came from one.
    """

    number: int
    count: int
    name: str | None
    sha256: str | None


@dataclass(frozen=True, eq=False)
class Certificate:
    """A verdict on one box, and what it rests on.

    The property is that in every clause some row has ``matrix @ output + offset > 0``.

    Attributes:
        model_sha256: see :attr:`Model.sha256`.
        verdict: verified on the whole box, or falsified by ``counterexample``.
        method: the verifier that decided.
        lower, upper: the box, (*input shape).
        matrix: (rows, outputs).
        offset: (rows,).
        clause: of each row.
        origin: what box and property were made from, if an image.
        part: of a property of several problems.
        leaves: of a verified box.
        counterexample: (*input shape).
        model: the network itself, in files that can stand alone.
    """

    model_sha256: str
    verdict: Literal["verified", "falsified"]
    method: str
    lower: Array
    upper: Array
    matrix: Array
    offset: Array
    clause: tuple[int, ...]
    origin: Origin | None = None
    part: Part | None = None
    leaves: Leaves | None = None
    counterexample: Array | None = None
    model: Model | None = None

    def write(self, path: Path) -> None:
        """Write one file, atomically; with the network if ``model`` is set, else it refers to it by its hash."""
        arrays = {"box/lower": self.lower, "box/upper": self.upper, "spec/matrix": self.matrix}
        arrays["spec/offset"] = self.offset
        if self.counterexample is not None:
            arrays["counterexample"] = self.counterexample
        if self.origin is not None:
            arrays["image"] = self.origin.image
        if self.leaves is not None:
            parts = {name: getattr(self.leaves, name) for name in (*_LEAF_ARRAYS, *_MORE_ARRAYS)}
            arrays |= {f"leaves/{name}": value for name, value in parts.items() if value is not None}
        if self.model is not None:
            arrays |= {f"{_WEIGHTS}{name}": value for name, value in self.model.weights.items()}
        _write(path, arrays, _Header.of(self).model_dump(mode="json"))

    @classmethod
    def read(cls, path: Path) -> Certificate:
        """Read such a file. What it claims is not checked, see :func:`tightrope.auditor.audit.audit`.

        Raises:
            MissingDataError: there is none.
            CorruptDataError: it is not a certificate of this schema, or is truncated.
        """
        arrays, header = _read(path, "certificate")
        try:
            return _certificate(_Header.model_validate(header), arrays)
        except (ValidationError, KeyError) as error:
            raise CorruptDataError(f"{path} is not a certificate of schema {SCHEMA}: {_first_line(error)}.") from None


_MORE_ARRAYS = ("boxes", "ends", "end_slopes")
_LEAF_ARRAYS = ("neurons", "clause", "weights", "slopes", "splits", "multipliers")


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class _Image(_Section):
    eps: str
    data_range: tuple[str, str] | None
    label: int | None
    index: int | None


class _Piece(_Section):
    number: Annotated[int, Field(ge=0)]
    count: Annotated[int, Field(ge=1)]
    name: str | None
    sha256: str | None


class _Proof(_Section):
    relaxation: dict[str, Any]
    nodes: tuple[str, ...]


class _Header(_Section):
    format: Literal["tightrope-certificate"] = "tightrope-certificate"
    schema_version: Literal[1] = SCHEMA
    model_sha256: str
    verdict: Literal["verified", "falsified"]
    method: str
    clause: tuple[int, ...]
    image: _Image | None
    part: _Piece | None = None
    proof: _Proof | None
    graph: dict[str, Any] | None

    @classmethod
    def of(cls, given: Certificate) -> _Header:
        image, proof = None, None
        if (origin := given.origin) is not None:
            image = _Image(eps=origin.eps, data_range=origin.data_range, label=origin.label, index=origin.index)
        if (leaves := given.leaves) is not None:
            proof = _Proof(relaxation=dict(leaves.relaxation), nodes=leaves.nodes)
        return cls(
            model_sha256=given.model_sha256,
            verdict=given.verdict,
            method=given.method,
            clause=given.clause,
            image=image,
            part=None if given.part is None else _Piece(**asdict(given.part)),
            proof=proof,
            graph=None if given.model is None else dict(given.model.graph),
        )


def _certificate(header: _Header, arrays: Mapping[str, Array]) -> Certificate:
    origin, leaves = None, None
    if (image := header.image) is not None:
        origin = Origin(arrays["image"], image.eps, image.data_range, image.label, image.index)
    if (proof := header.proof) is not None:
        found = {name: arrays[f"leaves/{name}"] for name in _LEAF_ARRAYS}
        boxes, ends, end_slopes = (arrays.get(f"leaves/{name}") for name in _MORE_ARRAYS)
        leaves = Leaves(proof.relaxation, proof.nodes, **found, boxes=boxes, ends=ends, end_slopes=end_slopes)
    return Certificate(
        model_sha256=header.model_sha256,
        verdict=header.verdict,
        method=header.method,
        lower=arrays["box/lower"],
        upper=arrays["box/upper"],
        matrix=arrays["spec/matrix"],
        offset=arrays["spec/offset"],
        clause=header.clause,
        origin=origin,
        part=None if header.part is None else Part(**header.part.model_dump()),
        leaves=leaves,
        counterexample=arrays.get("counterexample"),
        model=None if header.graph is None else _model(header.graph, arrays),
    )


# ------------------------------------------------------------------------------------------------------ files


def _write(path: Path, arrays: Mapping[str, Array], header: Mapping[str, Any]) -> None:
    plain = {name: np.ascontiguousarray(value) for name, value in arrays.items()}
    write_atomic(path, pack_arrays(plain, {_KEY: json.dumps(header, allow_nan=False)}), shared=True)


def _read(path: Path, kind: str) -> tuple[dict[str, Array], dict[str, Any]]:
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise MissingDataError(f"{path} does not exist.") from None
    try:
        arrays = parse_arrays(data)
        header = json.loads(json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])["__metadata__"][_KEY])
    except (SafetensorError, ValueError, LookupError, TypeError, OverflowError, MemoryError) as error:
        raise CorruptDataError(f"{path} is truncated, damaged or no {kind} ({_first_line(error)}).") from None
    if not isinstance(header, dict) or header.get("format") != f"tightrope-{kind}":
        raise CorruptDataError(f"{path} is not a {kind}.")
    return arrays, header


def _first_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
