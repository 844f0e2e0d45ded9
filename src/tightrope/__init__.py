"""Tightrope: train neural networks that are provably robust, and prove it.

Everything a user needs is here, imported on first use::

    import tightrope as tr

    net, params = tr.from_module(module, input_shape=(1, 28, 28))
    box, spec = tr.linf_box(x, eps="8/255"), tr.margin_spec(labels, num_classes=10)
    bounds = tr.relaxation("deeppoly").bounds(net, params, box, spec)
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from tightrope._version import __version__

if TYPE_CHECKING:
    from tightrope.core.bounds import Bounds as Bounds
    from tightrope.core.bounds import Interval as Interval
    from tightrope.core.box import Box as Box
    from tightrope.core.box import linf_box as linf_box
    from tightrope.core.network import Network as Network
    from tightrope.core.outcome import Outcome as Outcome
    from tightrope.core.outcome import Verdict as Verdict
    from tightrope.core.spec import Spec as Spec
    from tightrope.core.spec import margin_spec as margin_spec
    from tightrope.errors import TightropeError as TightropeError
    from tightrope.experiments.api import attack as attack
    from tightrope.experiments.api import certified_radii as certified_radii
    from tightrope.experiments.api import certify as certify
    from tightrope.experiments.api import fit as fit
    from tightrope.experiments.api import load as load
    from tightrope.experiments.api import method as method
    from tightrope.experiments.api import plan as plan
    from tightrope.experiments.api import relaxation as relaxation
    from tightrope.experiments.api import smoother as smoother
    from tightrope.experiments.audit import audit as audit
    from tightrope.experiments.export import export as export
    from tightrope.experiments.imported import Imported as Imported
    from tightrope.experiments.imported import import_network as import_network
    from tightrope.experiments.imported import load_imported as load_imported
    from tightrope.experiments.properties import properties as properties
    from tightrope.experiments.run import Run as Run
    from tightrope.experiments.stages import cascade as cascade
    from tightrope.experiments.surface import surface as surface
    from tightrope.experiments.verify import Verification as Verification
    from tightrope.experiments.verify import verify as verify
    from tightrope.frontend.fx import from_module as from_module
    from tightrope.frontend.onnx import from_onnx as from_onnx
    from tightrope.methods.certified import certified_loss as certified_loss

_HOME = {
    "core.bounds": ("Bounds", "Interval"),
    "core.box": ("Box", "linf_box"),
    "core.network": ("Network",),
    "core.outcome": ("Outcome", "Verdict"),
    "core.spec": ("Spec", "margin_spec"),
    "errors": ("TightropeError",),
    "experiments.api": (
        "attack",
        "certified_radii",
        "certify",
        "fit",
        "load",
        "method",
        "plan",
        "relaxation",
        "smoother",
    ),
    "experiments.audit": ("audit",),
    "experiments.export": ("export",),
    "experiments.imported": ("Imported", "import_network", "load_imported"),
    "experiments.properties": ("properties",),
    "experiments.run": ("Run",),
    "experiments.stages": ("cascade",),
    "experiments.surface": ("surface",),
    "experiments.verify": ("Verification", "verify"),
    "frontend.fx": ("from_module",),
    "frontend.onnx": ("from_onnx",),
    "methods.certified": ("certified_loss",),
}
_MODULE_OF = {name: module for module, names in _HOME.items() for name in names}

__all__ = ["__version__", *_MODULE_OF]


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'tightrope' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"tightrope.{_MODULE_OF[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
