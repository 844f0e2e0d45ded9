"""Weight noise as a pure function of (seed, pair index, tensor name): regenerated instead of stored.

The draws of a member do not depend on how members are split into chunks or over processes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import torch
from torch import Tensor

from tightrope.core.bounds import Params


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


def weight_noise(params: Params, std: Mapping[str, float], seed: int, index: int) -> dict[str, Tensor]:
    """Noise ``std * z`` of one pair of members, z standard normal, for every tensor whose std is not 0.

    Args:
        params: weights by name, for shapes, dtypes and devices.
        std: standard deviation by name.
        seed: of the step.
        index: of the pair, counted over all processes.
    """
    noise = {}
    for name, scale in std.items():
        if scale > 0:
            like = params[name]
            generator = derived_generator(like.device, seed, index, name)
            z = torch.randn(like.shape, generator=generator, dtype=like.dtype, device=like.device)
            noise[name] = z.mul_(scale)
    return noise
