"""From what a user names to what a certification needs."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from tightrope.core import registry
from tightrope.core.bounds import Params
from tightrope.core.digest import tensor_digest
from tightrope.core.network import Network
from tightrope.core.protocols import Attack, Relaxation, Verifier
from tightrope.data._loader import Samples, from_tensors, subset, to_unit
from tightrope.errors import InputError
from tightrope.evaluation._rounds import Effort
from tightrope.evaluation.certificates import CertificateFolder, folder_of
from tightrope.evaluation.shards import Shard
from tightrope.experiments.audit import source_of
from tightrope.experiments.build import MakeSpec, check_labels, classification
from tightrope.experiments.config import find_device
from tightrope.experiments.model_zoo import results_folder
from tightrope.experiments.plugins import build_named
from tightrope.experiments.source import Source, find_source
from tightrope.experiments.stages import PROVING
from tightrope.frontend.fx import from_module
from tightrope.frontend.graph import canonical
from tightrope.records.folder import RunFolder
from tightrope.verifiers.attack import AttackVerifier
from tightrope.verifiers.bab import Bab
from tightrope.verifiers.cascade import Cascade
from tightrope.verifiers.one_shot import OneShot

Dataset = str | Samples | tuple[Tensor, Tensor]
Eps = float | str | Fraction


@dataclass(frozen=True)
class Subject:
    """What is to be certified.

    Attributes:
        source: whose network it is, None for a module's.
        data: the name of the dataset, ``"data"`` for tensors.
        eps: the radius, the run's own if none was given.
        make_spec: from labels to properties.
        facts: what records depend on, as far as it is not in the tensors.
    """

    source: Source | None
    network: Network
    params: Params
    x: Tensor
    labels: Tensor
    data: str
    eps: Eps
    make_spec: MakeSpec
    facts: Mapping[str, Any]

    def records_path(self, out: Path | str | None, parts: Sequence[str]) -> Path:
        """``out``, or by default a file of the run's folder, see :func:`results_folder`.

        Raises:
            InputError: a module has no folder.
        """
        if out is not None:
            return Path(out)
        if self.source is None:
            raise InputError("Say where to write the records of a module: out=....jsonl.")
        dtype = str(self.x.dtype).removeprefix("torch.")
        named = [self.data, str(self.facts["split"]), str(self.eps).replace("/", "_"), dtype, *parts]
        return RunFolder(results_folder(self.source.path)).certification("-".join(named))


def find_subject(
    source: nn.Module | Source | Path | str,
    dataset: Dataset | None,
    eps: Eps | None,
    *,
    split: str,
    count: int | None,
    data_dir: Path | str | None,
    float32: bool,
    device: str,
    spec: MakeSpec | None,
) -> Subject:
    """Read the network and the data.

    Raises:
        InputError: what cannot be certified.
    """
    found = None if isinstance(source, nn.Module) else find_source(source)
    if found is not None and dataset is None and found.dataset is None:
        raise InputError(f"The run in {found.path} was trained on data handed in: say on what to certify it (dataset).")
    dataset = dataset if dataset is not None else (found.dataset if found else None)
    eps = eps if eps is not None else (found.eps if found else None)
    if dataset is None or eps is None:
        raise InputError("To certify a module, give the dataset and eps.")
    samples = find_samples(dataset, data_dir, split)
    samples = samples if count is None else subset(samples, count)
    network, params = _network(source, found, samples)
    check_labels(samples, network, spec)
    dtype, where = torch.float32 if float32 else torch.float64, find_device(device)
    data = dataset if isinstance(dataset, str) else "data"
    own = {"spec": _digest(spec, samples.labels)} if spec else {}
    return Subject(
        source=found,
        network=network,
        params={name: value.to(where) for name, value in params.items()},
        x=to_unit(samples, dtype).to(where),
        labels=samples.labels.to(where),
        data=data,
        eps=eps,
        make_spec=spec or classification(network, dtype),
        facts={"dataset": data, "split": split, **own},
    )


class Stages(NamedTuple):
    """Verifiers for every image, and for those that these leave open.

    Attributes:
        facts: what they are.
    """

    first: Verifier
    rest: Verifier | None
    facts: Mapping[str, Any]


def find_stages(
    relaxations: Iterable[str],
    attack: Attack | Mapping[str, Any] | str,
    last_attack: Attack | Mapping[str, Any] | str | None,
    *,
    complete: bool,
    timeout: float,
    memory_gib: float | None,
    evidence: bool = False,
) -> Stages:
    """The stages by name.

    Args:
        relaxations: from cheap to tight.
        attack: tried before them.
        last_attack: tried on what they leave undecided, which is little and hard to break; None for none.
        complete: add optimised bounds and branch and bound.
        timeout: of the latter, in seconds an image.
        memory_gib: of a process, half of it for open subproblems; None for the default.
        evidence: keep what proofs rest on.
    """
    names, chosen = list(relaxations), find_attack(attack)
    last = None if last_attack is None else find_attack(last_attack)
    breaking = () if last is None else (AttackVerifier(last, _name(last)),)
    built = [registry.create("relaxations", name, **PROVING.get(name, {})) for name in names]
    one_shot = [OneShot(cast(Relaxation, each), name, evidence) for name, each in zip(names, built, strict=True)]
    bab = Bab(timeout=timeout, evidence=evidence)
    bab = bab if memory_gib is None else replace(bab, memory_gib=memory_gib / 2)
    return Stages(
        first=Cascade((AttackVerifier(chosen), *one_shot, *breaking)),
        rest=bab if complete else None,  # it begins with optimised bounds, on the time of each image
        facts={
            "attack": repr(chosen),
            "relaxations": names,
            **({"last_attack": repr(last)} if last else {}),
            **({"complete": {"timeout": timeout}} if complete else {}),
            **({"evidence": True} if evidence else {}),
        },
    )


def _name(attack: Attack) -> str:
    return type(attack).__module__.rpartition(".")[2]


def find_certificates(subject: Subject, records: Path, *, by_label: bool) -> CertificateFolder:
    """Where certificates go, beside the records.

    Args:
        records: file of the records.
        by_label: whether the property is that the label's output is the largest.
    """
    model = canonical(subject.network, subject.params, source_of(subject.source) if subject.source else None)
    return CertificateFolder(folder_of(records), model, by_label)


def find_effort(subject: Subject, workers: int, memory_gib: float | None, shard: str | None, merge: bool) -> Effort:
    """How to spread the work.

    Raises:
        InputError: no workers, no memory, no such shard, or several workers for one GPU.
    """
    if workers < 1:
        raise InputError(f"workers must be at least 1, got {workers}.")
    if memory_gib is not None and not 0 < memory_gib < math.inf:
        raise InputError(f"The memory must be positive and finite, got {memory_gib} GiB.")
    if workers > 1 and subject.x.device.type != "cpu":
        raise InputError("Workers share the CPU. Use one shard a GPU instead: torchrun, or shard i/n.")
    return Effort(workers, memory_gib, None if shard is None else Shard.parse(shard), merge)


def find_attack(value: Attack | Mapping[str, Any] | str) -> Attack:
    """An attack, or one by its name or table."""
    return cast(Attack, build_named("attacks", value)) if isinstance(value, str | Mapping) else value


def find_samples(dataset: Dataset, data_dir: Path | str | None, split: str = "train") -> Samples:
    """Samples, of a split if they are named."""
    if isinstance(dataset, Samples):
        return dataset
    if isinstance(dataset, str):
        return cast(Samples, registry.create("datasets", dataset).load(data_dir, split))
    return from_tensors(*dataset)


def _network(source: Any, found: Source | None, samples: Samples) -> tuple[Network, Params]:
    shape = tuple(samples.images.shape[1:])
    if found is None:
        return from_module(source, shape)
    if found.network.input_shape != shape:
        raise InputError(f"The network takes inputs of shape {found.network.input_shape}, the images are {shape}.")
    return found.network, found.params


def _digest(make_spec: MakeSpec, labels: Tensor) -> str:
    """A fingerprint of the properties of all images, few at once, as each may be large."""
    total = hashlib.sha256()
    for part in labels.split(100):
        spec = make_spec(part)
        clause = torch.tensor(spec.clause)
        total.update(tensor_digest({"matrix": spec.matrix, "offset": spec.offset, "clause": clause}).encode())
    return total.hexdigest()
