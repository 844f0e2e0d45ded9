"""Networks of other libraries: from a file to a folder that is certified, audited and exported like a run's."""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property, partial
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from tightrope._version import __version__
from tightrope.core import registry
from tightrope.core.bounds import Shape
from tightrope.core.digest import tensor_digest
from tightrope.core.network import Network
from tightrope.data._loader import Dataset
from tightrope.errors import CheckpointError, InputError, TightropeError
from tightrope.evaluation.certify import eps_text
from tightrope.experiments.plugins import model_class
from tightrope.experiments.published import read_published
from tightrope.frontend.checkpoints import Weights, find_network
from tightrope.frontend.fx import from_module
from tightrope.frontend.graph import from_json, to_json
from tightrope.frontend.onnx import from_onnx
from tightrope.records.files import read_json, write_json
from tightrope.records.folder import RunFolder
from tightrope.records.imported import ImportedRecord, Published
from tightrope.training.state import load_tensors, save_tensors

ONNX = (".onnx", ".onnx.gz")


@dataclass(frozen=True)
class Imported:
    """A network of another library, read from the folder that was made for it.

    Attributes:
        folder: where its files are.
        record: what it was read from.
    """

    folder: RunFolder
    record: ImportedRecord

    @property
    def path(self) -> Path:
        """The folder."""
        return self.folder.path

    @property
    def name(self) -> str:
        """What to call it."""
        return self.record.name

    @property
    def dataset(self) -> str:
        """The dataset that it is for."""
        return self.record.dataset

    @property
    def eps(self) -> str:
        """The radius that it is for, exactly."""
        return self.record.eps

    @cached_property
    def network(self) -> Network:
        """The graph."""
        return from_json(read_json(self.folder.network))

    @cached_property
    def params(self) -> dict[str, Tensor]:
        """The weights.

        Raises:
            CheckpointError: the file is truncated, altered, or of another network.
        """
        params, _ = load_tensors(self.folder.weights)
        if tensor_digest(params) != self.record.weights_sha256:
            raise CheckpointError(f"{self.folder.weights} does not hold the weights that were imported.")
        return params

    def original(self) -> nn.Module | None:
        """The architecture anew, with the weights; None where the file had the graph."""
        if self.record.model is None:
            return None
        table = dict(self.record.model)
        cls, options = model_class(table.pop("name"), table)
        values = {"mean": self.record.mean, "std": self.record.std}
        module: nn.Module = cls(self.network.input_shape, self.network.num_outputs, **values, **options)
        module.load_state_dict(self.params)
        return module


def load_imported(path: Path | str) -> Imported:
    """Read the folder of an imported network.

    Raises:
        MissingDataError: it is none.
        CorruptDataError: a file of it is damaged.
    """
    folder = RunFolder(Path(path))
    return Imported(folder, ImportedRecord.read(folder.imported))


def import_network(
    source: Path | str,
    out: Path | str | None = None,
    *,
    dataset: str,
    eps: float | str | Fraction,
    arch: str | None = None,
    normalize: str | None = None,
    prefix: str = "",
    published: Published | Mapping[str, Any] | str | None = None,
) -> Imported:
    """Read a network of another library into a folder, to be certified, audited and exported like a run.

    Files of PyTorch (state dicts, checkpoints around them, whole modules) are read without running anything in them.
    Their tensors are matched in order with the layers of ``arch``; its sizes, its batch normalisations and cnn7's last
    stride are those of the file. Images are flattened with the channels first. Batch normalisations divide by the root
    of the variance + 1e-5.

    Args:
        source: the file: ONNX by its ending ``.onnx`` or ``.onnx.gz``, else of ``torch.save``.
        out: a folder; by default ``runs/`` and the name of the file. If it holds the same network already, that is it.
        dataset: that the network is for, by name.
        eps: radius that it is for, in input units, before normalisation.
        arch: the architecture of a file of PyTorch, by name, such as ``cnn7``.
        normalize: what its inputs were normalised with, where the file does not say so: ``none``, the name of a dataset
            for its usual statistics, or ``mean,mean,mean/std,std,std``.
        prefix: dotted name below which the weights lie, where the file holds several networks.
        published: figures to compare with, in percent: a :class:`Published` or its fields, text such as
            ``"natural=77.86,certified=63.61"``, or a TOML or JSON file of them.

    Raises:
        MissingDataError, CorruptDataError: no such file, or none that can be read.
        CheckpointError: the file has no network of this architecture, or several.
        InputError: settings that are missing or contradict the file, or ``out`` holds something else.
        NumericalError: NaN or infinite weights.

    Example:
        >>> theirs = tr.import_network(  # doctest: +SKIP
        ...     "model.ckpt", dataset="cifar10", eps="2/255", arch="cnn7", published="natural=78.8,certified=64.4"
        ... )
        >>> tr.certify(theirs, complete=True)  # doctest: +SKIP
    """
    path, radius = Path(source), eps_text(eps)
    task = cast(Dataset, registry.create("datasets", dataset))
    figures = read_published(published)
    name = path.name.removesuffix(".gz").rpartition(".")[0] or path.name
    folder = RunFolder(Path(out) if out is not None else Path("runs") / name)
    if path.name.endswith(ONNX):
        made = _from_onnx(path, arch, normalize)
    else:
        made = _from_checkpoint(path, task, arch, normalize, prefix)
    _check_task(made, task, path)
    record = ImportedRecord(
        tightrope=__version__,
        name=name,
        file=path.name,
        file_sha256=hashlib.sha256(path.read_bytes()).hexdigest(),
        model=made.model,
        mean=made.mean,
        std=made.std,
        dataset=dataset,
        eps=radius,
        unused=made.unused,
        published=figures,
        weights_sha256=tensor_digest(made.params),
    )
    record = _continued(folder, record)
    write_json(folder.network, to_json(made.network), shared=True)
    save_tensors(folder.weights, made.params, {"imported": record.file_sha256}, shared=True)
    record.write(folder.imported)  # last: with it the folder is a network's
    return Imported(folder, record)


class _Made(NamedTuple):
    """A network from a file, and what its record says of it."""

    network: Network
    params: dict[str, Tensor]
    model: dict[str, Any] | None = None
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    unused: tuple[str, ...] = ()


def _from_onnx(path: Path, arch: str | None, normalize: str | None) -> _Made:
    if arch is not None:
        raise InputError("An ONNX file has the whole network: leave the architecture out.")
    if normalize not in (None, "none"):
        raise InputError(
            "An ONNX file is taken as it is, on inputs in [0, 1]. Export the network with its normalisation as its "
            "first layer."
        )
    return _Made(*from_onnx(path))


def _from_checkpoint(path: Path, task: Dataset, arch: str | None, normalize: str | None, prefix: str) -> _Made:
    if arch is None:
        known = ", ".join(registry.names("models"))
        raise InputError(f"{path} has weights only: say of which architecture ({known}), with --arch.")
    model_class(arch, {})
    stated = None if normalize is None else _statistics(normalize)
    found = find_network(path, partial(_architecture, arch, task, stated), prefix)
    mean, std = _normalisation(found.weights, stated)
    network, params = from_module(found.module.eval(), task.input_shape)
    model = {"name": arch, **_options(arch, found.weights, task)}
    return _Made(network, params, model, mean, std, found.unused)


def _check_task(made: _Made, task: Dataset, path: Path) -> None:
    if made.network.input_shape != tuple(task.input_shape) or made.network.num_outputs != task.num_classes:
        raise InputError(
            f"The network in {path} takes inputs {made.network.input_shape}, with {made.network.num_outputs} outputs; "
            f"{task.name} has images {tuple(task.input_shape)} and {task.num_classes} classes."
        )


_MAY_CHANGE = ("tightrope", "name", "file", "eps", "published")


def _continued(folder: RunFolder, record: ImportedRecord) -> ImportedRecord:
    """The record of what is in the folder already, if it is the same network; its radius and figures may change.

    Raises:
        InputError: the folder holds anything else.
    """
    if not folder.imported.is_file():
        begun = {folder.network.name, folder.weights.name}  # by a process that was killed, or is at it now
        others = [entry for entry in folder.path.glob("*") if entry.name not in begun and entry.suffix != ".tmp"]
        if others or (folder.path.exists() and not folder.path.is_dir()):
            raise InputError(f"{folder.path} exists and holds no imported network; choose another --out.")
        return record
    before = ImportedRecord.read(folder.imported)
    if changed := [key for key, value in before if key not in _MAY_CHANGE and value != getattr(record, key)]:
        raise InputError(f"{folder.path} holds another network ({', '.join(changed)} differ); choose another --out.")
    return record.model_copy(update={"published": record.published or before.published})


# ------------------------------------------------------------------------------------------------- architectures


def _architecture(arch: str, task: Dataset, stated: Statistics | None, weights: Weights) -> nn.Module:
    """The architecture in the sizes of the weights.

    Raises:
        CheckpointError: it has no such sizes.
    """
    mean, std = _of_file(weights) or stated or NEUTRAL
    try:
        cls, options = model_class(arch, _options(arch, weights, task))
        with torch.random.fork_rng(devices=[]):  # the constructors draw weights that are replaced
            return cls(task.input_shape, task.num_classes, mean=mean, std=std, **options)
    except TightropeError as error:
        raise CheckpointError(str(error)) from None


def _options(arch: str, weights: Weights, task: Dataset) -> dict[str, Any]:
    """What of an architecture's options the shapes of weights tell."""
    known = inspect.signature(registry.find("models", arch)).parameters
    convolutions = [layer for layer in weights.layers if layer.weight.ndim == 4]
    hidden = [layer for layer in weights.layers[:-1] if layer.weight.ndim == 2]
    facts: dict[str, Any] = {
        "width": convolutions[0].weight.shape[0] if convolutions else [layer.weight.shape[0] for layer in hidden],
        "hidden": hidden[0].weight.shape[0] if hidden else None,
        "batch_norm": _batch_norm(bool(convolutions and convolutions[0].norm), bool(hidden and hidden[0].norm), hidden),
        "last_stride": _last_stride(convolutions, hidden, task.input_shape),
    }
    return {key: value for key, value in facts.items() if key in known and value is not None}


def _batch_norm(convolutions: bool, dense: bool, hidden: list[Any]) -> str:
    if not convolutions:
        return "none"
    return "all" if dense or not hidden else "convolutions"


def _last_stride(convolutions: list[Any], hidden: list[Any], shape: Shape) -> int | None:
    """That of a cnn7: its first three convolutions halve the image once, and a stride of 2 halves it again."""
    if not convolutions or not hidden:
        return None
    height, width = ((size + 1) // 2 for size in shape[1:])
    halved = ((height + 1) // 2) * ((width + 1) // 2)
    channels = convolutions[-1].weight.shape[0]
    return 2 if hidden[0].weight.shape[1] == channels * halved else 1


# ------------------------------------------------------------------------------------------------- normalisation


class Statistics(NamedTuple):
    """Of the inputs, by channel."""

    mean: tuple[float, ...]
    std: tuple[float, ...]


NEUTRAL = Statistics((0.0,), (1.0,))


def _of_file(weights: Weights) -> Statistics | None:
    return None if weights.mean is None or weights.std is None else Statistics(weights.mean, weights.std)


def _normalisation(weights: Weights, stated: Statistics | None) -> Statistics:
    """Of the file, or what was stated.

    Raises:
        InputError: neither, or they differ.
    """
    found = _of_file(weights)
    if found is None:
        if stated is None:
            raise InputError(
                "The file does not say how inputs were normalised. Say it (--normalize): none, the name of a dataset "
                "for its usual statistics (mnist, cifar10, tinyimagenet), or mean,mean,mean/std,std,std. A wrong one "
                "shows in the natural accuracy."
            )
        return stated
    if stated is not None and not _same(found, stated):
        raise InputError(f"The file has the normalisation {_text(found)}, not {_text(stated)}; leave --normalize out.")
    return found


def _same(one: Statistics, other: Statistics) -> bool:
    """Up to the rounding to float32; a single value stands for all channels."""
    for pair in zip(one, other, strict=True):
        channels = max(map(len, pair))
        if not torch.equal(*(torch.tensor(values * (channels // len(values))) for values in pair)):
            return False
    return True


def _text(value: Statistics) -> str:
    return "/".join(",".join(f"{number:.4g}" for number in part) for part in value)


def _statistics(text: str) -> Statistics:
    """From what a user states.

    Raises:
        InputError: it cannot be read.
    """
    if text == "none":
        return NEUTRAL
    if text in registry.names("datasets"):
        named = cast(Dataset, registry.create("datasets", text))
        return Statistics(named.mean, named.std)
    try:
        mean, std = (tuple(float(number) for number in part.split(",")) for part in text.split("/"))
    except ValueError:
        raise InputError(
            f"--normalize {text!r} is neither none, nor a dataset ({', '.join(registry.names('datasets'))}), nor "
            "numbers like 0.49,0.48,0.45/0.20,0.20,0.20."
        ) from None
    return Statistics(mean, std)
