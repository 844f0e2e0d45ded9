"""Weight noise as a pure function of (seed, pair index, tensor name): regenerated instead of stored.

The draws of a member do not depend on how members are split into chunks or over processes. Populations are drawn in
blocks of pairs, whose bounds depend on the number of weights alone.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import torch
from torch import Tensor

from tightrope.core.bounds import Params

_DRAWN_AT_ONCE = 2**18  # numbers, about a megabyte


def derive_seed(*parts: int | str) -> int:
    """A 63-bit seed from any number of names and counters.

    Example:
        >>> derive_seed(0, "noise", 3) == derive_seed(0, "noise", 3) != derive_seed(0, "noise", 4)
        True
    """
    digest = hashlib.blake2b("\0".join(f"{type(p).__name__}:{p}" for p in parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def derived_generator(device: torch.device | str, *parts: int | str) -> torch.Generator:
    """A fresh generator, determined by the parts alone."""
    return torch.Generator(device).manual_seed(derive_seed(*parts))


def draw_seed(generator: torch.Generator) -> int:
    """A seed for a family of counter-based draws; advances the generator by one draw."""
    return int(torch.randint(2**62, (), generator=generator, device=generator.device))


def drawn_together(index: int, weights: int) -> range:
    """The pairs whose noise is drawn together with that of pair ``index``: 0, 1, 2-3, 4-7, ...

    Blocks grow up to a number of draws (2^18) beside which starting a generator costs nothing, so that a population of
    thousands is not drawn member by member, and one of two is not drawn for thousands.

    Args:
        index: of a pair.
        weights: that have noise.

    Example:
        >>> [drawn_together(index, weights=100) for index in (0, 1, 3)]
        [range(0, 1), range(1, 2), range(2, 4)]
        >>> drawn_together(5000, weights=100)
        range(4096, 6144)
    """
    most = max(1, _DRAWN_AT_ONCE // max(1, weights))
    size = 1 << (min(max(1, index), most).bit_length() - 1)
    start = index // size * size
    return range(start, start + size)


def weight_noise(
    params: Params, std: Mapping[str, float], seed: int, index: int, members: int | None = None
) -> dict[str, Tensor]:
    """Noise ``std * z``, z standard normal, for every tensor whose std is not 0.

    Args:
        params: weights by name, for shapes, dtypes and devices.
        std: standard deviation by name.
        seed: of the step.
        index: of the draw; of a block of pairs the first pair's, counted over all processes.
        members: draw for so many at once, each tensor (members, *shape). By default for one, each tensor (*shape).
    """
    noise = {}
    for name, scale in std.items():
        if scale > 0:
            like = params[name]
            shape = like.shape if members is None else (members, *like.shape)
            generator = derived_generator(like.device, seed, index, name)
            z = torch.randn(shape, generator=generator, dtype=like.dtype, device=like.device)
            noise[name] = z.mul_(scale)
    return noise
