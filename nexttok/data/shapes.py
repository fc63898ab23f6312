"""Scenes of coloured shapes, drawn on the fly at any resolution, as pictures or short videos.

Every scene comes with its class (the kind of its largest shape), a caption and an attribute list
that say the same thing, an edge map and a segmentation, so that what a model draws can be checked
by program.
"""

import re

import numpy as np
from jaxtyping import Float, Int

from nexttok.data.source import DataConfig, DataInfo
from nexttok.data.transforms import to_channels

KINDS = ("circle", "square", "triangle", "star", "cross", "ring")
COLORS = {
    "red": (0.90, 0.16, 0.16), "green": (0.18, 0.70, 0.25), "blue": (0.18, 0.35, 0.92),
    "yellow": (0.96, 0.83, 0.16), "magenta": (0.86, 0.24, 0.80), "cyan": (0.18, 0.80, 0.84),
    "orange": (0.97, 0.55, 0.12), "white": (0.96, 0.96, 0.96),
}  # fmt: skip
SIZES = ("small", "large")
CELLS = (("top", "middle", "bottom"), ("left", "center", "right"))
COLOR_NAMES = tuple(COLORS)
MAX_SHAPES = 4
TRAIN, TEST = 50_000, 1_000
RADII = (0.11, 0.19)  # of small and large shapes, in image sides

PHRASE = re.compile(
    rf"a ({'|'.join(SIZES)}) ({'|'.join(COLORS)}) ({'|'.join(KINDS)}) "
    rf"at the ({'|'.join(CELLS[0])}) ({'|'.join(CELLS[1])})"
)


def caption(attributes: Int[np.ndarray, "M 5"]) -> str:
    """Attributes (kind, color, size, row, column; -1 rows are padding) in words."""
    phrases = [
        f"a {SIZES[size]} {COLOR_NAMES[color]} {KINDS[kind]} at the {CELLS[0][row]} {CELLS[1][col]}"
        for kind, color, size, row, col in attributes.tolist()
        if kind >= 0
    ]
    return ", ".join(phrases)


def parse_caption(text: str) -> Int[np.ndarray, "M 5"]:
    """Inverse of `caption`: an attribute list, padded with -1 rows."""
    rows = [
        (KINDS.index(kind), COLOR_NAMES.index(color), SIZES.index(size),
         CELLS[0].index(row), CELLS[1].index(col))
        for size, color, kind, row, col in PHRASE.findall(text)
    ]  # fmt: skip
    out = np.full((max(MAX_SHAPES, len(rows)), 5), -1, np.int32)
    out[: len(rows)] = np.asarray(rows, np.int32).reshape(-1, 5)
    return out


def distance(kind: int, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Signed distance (about, in radii) to a unit shape at the origin; negative inside."""
    radius = np.hypot(x, y)
    if kind == 0:
        return radius - 1.0
    if kind == 1:
        return np.maximum(np.abs(x), np.abs(y)) - 0.85
    if kind == 2:
        return np.maximum(0.87 * np.abs(x) - 0.5 * y, y) - 0.5
    if kind == 3:
        angle = np.arctan2(x, -y)
        wedge = np.abs((angle / (2 * np.pi) * 5) % 1.0 - 0.5) * 2
        return radius - (0.45 + 0.6 * wedge**1.5)
    if kind == 4:
        ax, ay = np.abs(x), np.abs(y)
        bars = np.minimum(np.maximum(ax - 1.0, ay - 0.34), np.maximum(ay - 1.0, ax - 0.34))
        return bars
    return np.abs(radius - 0.75) - 0.27


def layout(rng: np.random.Generator) -> tuple[Int[np.ndarray, "M 5"], Float[np.ndarray, "n 3"]]:
    """A random scene: attributes, and (x, y, rotation) of each shape, in distinct cells."""
    count = rng.integers(1, MAX_SHAPES + 1)
    cells = rng.permutation(9)[:count]
    attributes = np.full((MAX_SHAPES, 5), -1, np.int32)
    attributes[:count, 0] = rng.integers(0, len(KINDS), count)
    attributes[:count, 1] = rng.permutation(len(COLORS))[:count]
    attributes[:count, 2] = 0
    attributes[0, 2] = 1  # the one large shape names the class
    attributes[:count, 3], attributes[:count, 4] = cells // 3, cells % 3
    jitter = rng.uniform(-0.05, 0.05, (count, 2))
    centre = (np.stack([cells % 3, cells // 3], 1) + 0.5) / 3 + jitter
    return attributes, np.concatenate([centre, rng.uniform(-0.3, 0.3, (count, 1))], 1)


def draw(
    attributes: Int[np.ndarray, "M 5"],
    poses: Float[np.ndarray, "*T n 3"],
    background: Float[np.ndarray, "3"],
    side: int,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rasterizes a scene, anti-aliased over one pixel, at one pose of its shapes or at several.

    Returns:
      image float32 [*T, S, S, 3] in [-1, 1], segmentation int32 [*T, S, S] (0, or 1 + the shape's
      row), edges float32 [*T, S, S] (1 where the segmentation changes).
    """
    axis, times = ((np.arange(side) + 0.5) / side).astype(np.float32), poses.shape[:-2]
    image = np.empty((*times, side, side, 3), np.float32)
    image[...] = background
    labels = np.zeros((*times, side, side), np.int32)
    for i, pose in enumerate(np.moveaxis(poses.astype(np.float32), -2, 0)):
        kind, color, size = attributes[i, :3].tolist()
        radius = RADII[size]
        cx, cy, turn = np.moveaxis(pose[..., None, None], -3, 0)
        dx, dy = (axis - cx) / radius, (axis[:, None] - cy) / radius
        cos, sin = np.cos(turn), np.sin(turn)
        gap = distance(kind, cos * dx + sin * dy, cos * dy - sin * dx)
        cover = np.clip(0.5 - gap * radius * side, 0.0, 1.0)[..., None]
        tone = np.asarray(COLORS[COLOR_NAMES[color]], np.float32)
        image = image * (1 - cover) + tone * cover
        labels[cover[..., 0] >= 0.5] = i + 1
    edges = np.zeros((*times, side, side), np.float32)
    edges[..., 1:] = labels[..., 1:] != labels[..., :-1]
    edges[..., 1:, :] = np.maximum(edges[..., 1:, :], labels[..., 1:, :] != labels[..., :-1, :])
    return (image * 2 - 1).astype(np.float32), labels, edges


def bounce(start: np.ndarray, velocity: np.ndarray, time: np.ndarray | int) -> np.ndarray:
    """Position after `time` frames of straight motion reflected inside [0.15, 0.85]."""
    low, span = 0.15, 0.7
    phase = (start - low + velocity * time) % (2 * span)
    return low + np.where(phase > span, 2 * span - phase, phase)


class Shapes:
    """50,000 training and 1,000 test scenes, each a pure function of (seed, split, index)."""

    info = DataInfo(KINDS)

    def __init__(self, cfg: DataConfig, split: str, seed: int):
        """Draws nothing yet."""
        self.cfg, self.split, self.seed = cfg, split, seed

    def __len__(self) -> int:
        return TRAIN if self.split == "train" else TEST

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        """image [H, W, C] or [T, H, W, C], label, caption, attributes, segmentation, edges.

        Caption and attributes of a video describe its first frame.
        """
        rng = np.random.default_rng((self.seed, self.split == "test", index))
        attributes, poses = layout(rng)
        background = rng.uniform(0.02, 0.2, 3)
        side, frames = self.cfg.resolution, self.cfg.frames
        if frames:
            velocity = rng.uniform(-0.08, 0.08, (len(poses), 2))
            centres = bounce(poses[:, :2], velocity, np.arange(frames)[:, None, None])
            turns = np.broadcast_to(poses[:, 2:], (frames, len(poses), 1))
            poses = np.concatenate([centres, turns], -1)
        image, labels, edges = draw(attributes, poses, background, side)
        return {
            "image": to_channels(image, self.cfg.channels),
            "label": attributes[0, 0],
            "caption": np.asarray(caption(attributes)),
            "attributes": attributes,
            "segmentation": labels,
            "edges": edges,
        }


def make(cfg: DataConfig, argument: str, split: str, seed: int) -> Shapes:
    """The scenes of a seed; they take no argument."""
    del argument
    return Shapes(cfg, split, seed)
