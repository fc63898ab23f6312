"""What one device of each kind can do, from its maker's data sheets."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Chip:
    """Peaks of one device as JAX lists it (half a chip where a chip has two).

    Attributes:
      flops: bfloat16 products per second, dense.
      memory: bytes of high-bandwidth memory; bandwidth: of it, bytes/s.
      link: bytes/s that it sends along one axis of the slice's torus, both ways together; 0 where
        devices are not joined in a torus.
      network: bytes/s that it sends to other slices, its share of its host's.
    """

    flops: float
    memory: float
    bandwidth: float
    link: float = 0.0
    network: float = 0.0


# Cloud TPU's system architecture pages; links as in "How to Scale Your Model" (Austin et al., 2025)
TPUS = {
    "TPU v4": Chip(137.5e12, 16 * 2**30, 0.61e12, 0.9e11, 3.125e9),
    "TPU v5 lite": Chip(197e12, 16 * 2**30, 0.81e12, 0.9e11, 3.125e9),
    "TPU v5": Chip(459e12, 95 * 2**30, 2.76e12, 1.8e11, 6.25e9),
    "TPU v6 lite": Chip(918e12, 32 * 2**30, 1.64e12, 1.8e11, 12.5e9),
    "TPU7x": Chip(1153.5e12, 96 * 2**30, 3.69e12, 1.8e11, 6.25e9),
}
GPUS = {
    "A100": Chip(312e12, 80e9, 2.04e12),
    "H100": Chip(989e12, 80e9, 3.35e12),
    "H200": Chip(989e12, 141e9, 4.8e12),
    "B200": Chip(2250e12, 180e9, 7.7e12),
}


def find(kind: str) -> Chip | None:
    """The chip of a `device_kind`; None for one that is not known, such as a CPU."""
    if kind in TPUS:
        return TPUS[kind]
    return next((chip for name, chip in GPUS.items() if name in kind), None)
