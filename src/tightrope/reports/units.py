"""Numbers as people read them."""

from __future__ import annotations

import math
from fractions import Fraction

UNKNOWN = "not known"

_PRINTED = {
    "ibp": "IBP",
    "hbox": "hBox",
    "crown_ibp": "CROWN-IBP",
    "deepz": "DeepZ",
    "deeppoly": "DeepPoly",
    "alpha_crown": "alpha-CROWN",
    "none": "none",
    "rgs": "RGS",
    "pgpe": "PGPE",
    "hybrid": "hybrid",
    "pgd": "PGD",
    "bab": "branch and bound",
    "milp": "MILP",
    "edac": "EDAC",
    "trades": "TRADES",
    "sabr": "SABR",
    "taps": "TAPS",
    "staps": "STAPS",
    "mtl_ibp": "MTL-IBP",
    "cc_ibp": "CC-IBP",
    "exp_ibp": "EXP-IBP",
}
"""As papers write them, and in the order of their tables: from loose to tight, from plain to smoothed."""


def printed(name: str) -> str:
    """The name of a plug-in as papers write it, whatever follows its stem included.

    Example:
        >>> printed("crown_ibp"), printed("deeppoly-zero"), printed("mine")
        ('CROWN-IBP', 'DeepPoly-zero', 'mine')
    """
    stem, dash, rest = name.partition("-")
    return f"{_PRINTED.get(stem, stem)}{dash}{rest}"


def rank(name: str) -> int:
    """Where it comes in a table; names that papers do not have come last.

    Example:
        >>> sorted(["mine", "rgs", "deeppoly", "ibp", "none"], key=rank)
        ['ibp', 'deeppoly', 'none', 'rgs', 'mine']
    """
    stem = name.replace(",", "-").replace(" ", "-").partition("-")[0]
    return list(_PRINTED).index(stem) if stem in _PRINTED else len(_PRINTED)


def radius(text: str) -> str:
    """A radius as a decimal number where that is exact and short, else as it is.

    Example:
        >>> radius("1/10"), radius("8/255"), radius("0.30")
        ('0.1', '8/255', '0.3')
    """
    value = Fraction(text)
    decimal = f"{float(value):.4g}"
    return decimal if Fraction(decimal) == value else text


def percent(share: float, digits: int = 1) -> str:
    """A share as a percentage, without the sign.

    Example:
        >>> percent(0.9471), percent(1.0)
        ('94.7', '100.0')
    """
    return f"{100 * share:.{digits}f}"


def span(low: float, high: float) -> str:
    """An interval of shares, in percent.

    Example:
        >>> span(0.941, 0.9503)
        '94.1 to 95.0'
    """
    return f"{percent(low)} to {percent(high)}"


def probability(p: float) -> str:
    """A p-value; what is as good as 0 is not written out.

    Example:
        >>> probability(0.0421), probability(1e-171)
        ('0.042', '< 0.0001')
    """
    return "< 0.0001" if p < 1e-4 else f"{p:.2g}"


def duration(seconds: float | None) -> str:
    """In the largest unit that leaves a number of at least 1.

    Example:
        >>> duration(0.0123), duration(75), duration(7200)
        ('12.3 ms', '1.25 min', '2 h')
    """
    if seconds is None:
        return UNKNOWN
    for unit, length in (("d", 86400.0), ("h", 3600.0), ("min", 60.0), ("s", 1.0)):
        if seconds >= length:
            return f"{seconds / length:.3g} {unit}"
    return f"{1000 * seconds:.3g} ms"


def roughly(count: int) -> str:
    """A count in two digits or three.

    Example:
        >>> roughly(640), roughly(2130), roughly(3774360)
        ('640', '2.1k', '3.8M')
    """
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if count >= size:
            return f"{count / size:.0f}{unit}" if count >= 99.5 * size else f"{count / size:.2g}{unit}"
    return str(count)


def number(value: float) -> str:
    """A measured value in few digits.

    Example:
        >>> number(0.00012345), number(1112.93), number(float("nan"))
        ('0.000123', '1,113', 'not a number')
    """
    if not math.isfinite(value):
        return "not a number" if math.isnan(value) else "infinite"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
