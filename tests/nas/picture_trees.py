"""Small trees of pictures for tests."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image


def write_pictures(folder: Path, count: int, seed: int = 0, px: int = 10, ending: str = "png") -> None:
    """Write `count` pictures of noise to `folder`."""
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    for index in range(count):
        levels = rng.integers(0, 255, (px, px, 3), dtype=np.uint8)
        Image.fromarray(levels).save(folder / f"{index}.{ending}")


def write_tree(root: Path, parts: dict[str, dict[str, int]], px: int = 10, ending: str = "png") -> Path:
    """Write `count` pictures to `root/<part>/<class>` for each part and class; returns `root`."""
    for part, counts in parts.items():
        for number, (name, count) in enumerate(counts.items()):
            write_pictures(root / part / name, count, number, px, ending)
    return root
