"""The configuration of a run: typed, validated, all problems reported together."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Annotated, Any, Literal

import torch
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    model_validator,
)

from tightrope.core.box import parse_eps, round_up
from tightrope.core.precision import Precision
from tightrope.errors import ConfigError, InputError
from tightrope.experiments.plugins import build_plugin, model_class
from tightrope.smoothers._population import Population
from tightrope.training.noise_policy import Unit


def _exact(value: Any) -> str:
    """A radius as exact text; numbers are taken as they are written."""
    try:
        fraction = parse_eps(value if isinstance(value, str) else repr(value))
    except InputError as error:
        raise ValueError(str(error)) from None
    if fraction > 1:
        raise ValueError(f'eps = {value} is larger than the data range [0, 1]; for 8-bit steps write "8/255"')
    return str(value)


_DEVICES = ("cpu", "cuda", "mps")


def find_device(name: str) -> torch.device:
    """The device of a name; ``auto`` takes a GPU if there is one.

    Raises:
        InputError: it cannot be used here.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        if device.type not in _DEVICES:
            raise RuntimeError(f"known are {', '.join(_DEVICES)}")
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"device {name!r} cannot be used here ({reason}); try 'auto' or 'cpu'") from None
    return device


def _usable(name: str) -> str:
    find_device(name)
    return name


def _threads(value: Any) -> Any:
    if value is not None and value != "auto" and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
        raise ValueError(f"must be an integer >= 1, or 'auto' (got {value!r})")
    return value


Device = Annotated[str, AfterValidator(_usable)]
Radius = Annotated[str, BeforeValidator(_exact)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=1)]
Threads = Annotated[Count | Literal["auto"] | None, BeforeValidator(_threads)]


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class _Plugin(BaseModel):
    """A plug-in by name; its options are the other keys."""

    model_config = ConfigDict(frozen=True, extra="allow")

    name: str

    @property
    def options(self) -> dict[str, Any]:
        """The plug-in's own options."""
        return dict(self.model_extra or {})


class Data(_Section):
    """What to train on.

    Attributes:
        name: of the dataset.
        train: images of the training split to use, the first ones before shuffling; None for all.
        validation: held out of them: a share below 1, or a number; 0 for none.
        flip: mirror at random.
        pad: shift at random by up to so many pixels.
        normalize: put the dataset's channel statistics at the start of the network.
    """

    name: str
    train: Count | None = None
    validation: NonNegative = 0.1
    flip: bool = False
    pad: Annotated[int, Field(ge=0)] = 0
    normalize: bool = True

    @model_validator(mode="after")
    def _exists(self) -> Data:
        build_plugin("datasets", self.name, {})
        return self


class Model(_Plugin):
    """The architecture.

    Attributes:
        init: ``default`` (PyTorch's) or ``shi``.
    """

    init: Literal["default", "shi"] = "default"

    @model_validator(mode="after")
    def _exists(self) -> Model:
        model_class(self.name, self.options)
        return self


class Method(_Plugin):
    """The training method."""

    @model_validator(mode="after")
    def _exists(self) -> Method:
        build_plugin("methods", self.name, self.options)
        return self


class Smoother(_Plugin):
    """The loss smoother, and its noise.

    Attributes:
        std: of the weight noise, in units of ``std_mode``.
        std_mode: ``absolute``; ``weight``, a share of the root mean square of the layer's weights; ``fan_in``, divided
            by the root of the number of inputs of a neuron.
        std_schedule: ``constant``; ``lr`` and ``eps`` follow the learning rate and the radius; ``cosine`` falls over
            the run, or over ``epochs``.
        epochs: the run is smoothed so long, and then goes on with plain gradients; None for all of it.
        std_floor: share of the std below which no schedule goes.
        biases, normalisation: whether biases, and scale and shift of normalisations, get noise.
        parts: disjoint parts of a mini-batch over which the members are spread; 1 lets all see the whole.
        max_dropped: share of a step's pairs that may have a loss that is not finite; more stop the run.
    """

    name: str = "none"
    std: NonNegative = 0.0
    std_mode: Unit = "absolute"
    std_schedule: Literal["constant", "lr", "eps", "cosine"] = "constant"
    epochs: Positive | None = None
    std_floor: Annotated[float, Field(gt=0, le=1)] = 0.1
    biases: bool = True
    normalisation: bool = True
    parts: Count = 1
    max_dropped: Annotated[float, Field(ge=0, lt=1)] = 0.25

    @model_validator(mode="after")
    def _fits(self) -> Smoother:
        built = build_plugin("smoothers", self.name, self.options)
        if built.needs_noise and self.std == 0:
            raise ValueError(f"{self.name!r} needs a std > 0")
        if self.name == "none" and self.std > 0:
            raise ValueError("the smoother 'none' adds no noise; choose another, or leave std out")
        if self.name == "none" and self.epochs is not None:
            raise ValueError("the smoother 'none' smooths no epochs; choose another, or leave epochs out")
        if isinstance(built, Population) and built.pairs % self.parts:
            raise ValueError(f"pairs = {built.pairs} cannot be spread evenly over parts = {self.parts}")
        return self


class Eps(_Section):
    """The radius, in input units.

    Attributes:
        train: at the end of the ramp; training continues with it.
        test: that the network is meant for; None for the same.
        ramp: how it grows from 0.
        begin, finish: of the ramp, in epochs.
    """

    train: Radius
    test: Radius | None = None
    ramp: Literal["smooth", "linear", "none"] = "smooth"
    begin: NonNegative = 0.0
    finish: NonNegative = 0.0

    @model_validator(mode="after")
    def _ordered(self) -> Eps:
        if self.finish < self.begin:
            raise ValueError(f"finish = {self.finish} lies before begin = {self.begin}")
        return self

    @property
    def target(self) -> str:
        """The radius at test time, exactly."""
        return self.train if self.test is None else self.test

    def value(self, text: str) -> float:
        """A radius as a float, never rounded down."""
        return round_up(parse_eps(text))


class Optimizer(_Section):
    """Adam, SGD or ClipUp.

    Attributes:
        lr: learning rate; of ClipUp the length of a step.
        momentum: of SGD, by default 0, and of ClipUp, by default 0.9.
        milestones: epochs at which the learning rate is multiplied by ``factor``.
        clip_norm: largest gradient norm; 0 for no clipping.
    """

    name: Literal["adam", "sgd", "clipup"] = "adam"
    lr: Positive = 5e-4
    momentum: Annotated[float, Field(ge=0, lt=1)] | None = None
    weight_decay: NonNegative = 0.0
    milestones: tuple[NonNegative, ...] = ()
    factor: Positive = 0.2
    clip_norm: NonNegative = 10.0

    @model_validator(mode="after")
    def _fits(self) -> Optimizer:
        if self.name == "clipup" and self.weight_decay > 0:
            raise ValueError("clipup has no weight_decay; leave it out, or use adam or sgd")
        return self


class Average(_Section):
    """An average of the weights on the way, that the run then ends with; its batch statistics are computed anew.

    Attributes:
        kind: ``swa``, the mean of all that are taken, or ``ema``, an exponential average.
        begin: epoch from which on they are taken.
        every: steps from one to the next.
        decay: share of the exponential average that stays.
    """

    kind: Literal["none", "swa", "ema"] = "none"
    begin: NonNegative = 0.0
    every: Count = 1
    decay: Annotated[float, Field(gt=0, lt=1)] = 0.999


class Train(_Section):
    """Length, penalties and how it is computed.

    Attributes:
        accumulate: pieces that the loss of a batch is computed in, one after the other, in the memory of one; batch
            statistics are those of the whole batch.
        precise_bn: recompute the statistics of batch normalisation over the training split after every epoch.
        select: end with the weights of the ``last`` epoch, or of the ``best``: of smallest loss on the validation
            split, at the test radius, of the epochs after the ramp.
        label_smoothing: of the losses at points, natural and adversarial; those of bounds have none.
        l1: weight of the L1 norm of the kernels.
        shi: weight of the regularisers of Shi et al. during the ramp.
        shi_tolerance: their threshold.
        compile: compile the losses of a step with torch.compile, which takes up to a minute at the start.
        matmul_precision: of float32 products: ``highest`` is float32, ``high`` allows TF32, ``medium`` bfloat16, where
            the device has them. Certificates never use less than float32.
        diagnose_every: steps between two looks at what a step does (the estimate's cosine with the plain gradient, the
            share of jumps in the loss's change, noise against weights), which cost about 10 gradients; 0 for none.
        keep_every: epochs between weights that are kept as ``weights-EPOCH.safetensors``, those before the first epoch
            included, for pictures of the way that training took; None for none. It changes nothing else.
    """

    epochs: Count
    batch_size: Count = 128
    accumulate: Count = 1
    precise_bn: bool = False
    select: Literal["last", "best"] = "last"
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0
    l1: NonNegative = 0.0
    shi: NonNegative = 0.0
    shi_tolerance: Positive = 0.5
    compile: bool = False
    matmul_precision: Precision = "highest"
    diagnose_every: Annotated[int, Field(ge=0)] = 0
    keep_every: Count | None = None


class RunConfig(_Section):
    """A whole run.

    Attributes:
        seed: of everything random.
        device: ``auto`` takes a GPU if there is one.
        threads: of torch on the CPU; None for torch's choice, ``auto`` for the number that makes a step of this run
            fastest here (often fewer than there are: small steps spend their time waking threads). Recorded, and kept
            when resumed.
        memory_gib: that a training step may need, in GiB, when its chunks are planned; None for 80 % of what is free.
    """

    seed: Annotated[int, Field(ge=0)] = 0
    device: Device = "auto"
    threads: Threads = None
    memory_gib: Positive | None = None
    data: Data
    model: Model
    method: Method
    smoother: Smoother = Smoother()
    eps: Eps
    optimizer: Optimizer = Optimizer()
    average: Average = Average()
    train: Train

    @property
    def smoothed_epochs(self) -> float:
        """How many, from the first, the smoother estimates the gradients of."""
        return float(self.train.epochs) if self.smoother.epochs is None else self.smoother.epochs

    @model_validator(mode="after")
    def _fits(self) -> RunConfig:
        if self.train.select == "best" and self.data.validation == 0:
            raise ValueError("train.select = 'best' selects on the validation split; set data.validation > 0")
        if self.average.kind != "none" and self.average.begin >= self.train.epochs:
            raise ValueError(
                f"average.begin = {self.average.begin:g} lies after the last of {self.train.epochs} epochs; no weights "
                "would be averaged"
            )
        if self.smoother.epochs is not None and self.smoother.epochs > self.train.epochs:
            raise ValueError(
                f"smoother.epochs = {self.smoother.epochs:g} is more than train.epochs = {self.train.epochs}; leave it "
                "out to smooth the whole run"
            )
        return self


def parse_config(values: Mapping[str, Any], source: str) -> RunConfig:
    """Validate nested values.

    Raises:
        ConfigError: naming every problem at once, with its dotted key and what is expected.
    """
    try:
        return RunConfig.model_validate(values)
    except ValidationError as error:
        raise ConfigError([text for problem in error.errors() for text in _sentences(problem)], source) from None


def _sentences(problem: Any) -> list[str]:
    path = [str(part) for part in problem["loc"]]
    key, cause = ".".join(path), problem.get("ctx", {}).get("error")
    if isinstance(cause, ConfigError):  # of a plug-in: several at once
        return [f"{key}: {text}" for text in cause.problems]
    if problem["type"] == "extra_forbidden":
        close = difflib.get_close_matches(path[-1], _keys(path[:-1]), n=1)
        return [f"{key}: there is no such setting." + (f" Did you mean {close[0]!r}?" if close else "")]
    if problem["type"] == "missing":
        return [f"{key}: is required."]
    if not key:  # of several sections together
        return [f"{problem['msg'].removeprefix('Value error, ')}."]
    given = problem["input"]
    shown = "" if isinstance(given, Mapping | BaseModel) or cause is not None else f" (got {given!r})"
    return [f"{key}: {problem['msg'].removeprefix('Value error, ').removesuffix('.')}{shown}."]


def _keys(path: list[str]) -> list[str]:
    section: Any = RunConfig
    for part in path:
        section = section.model_fields[part].annotation
    return list(section.model_fields)
