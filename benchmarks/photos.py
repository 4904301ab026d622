"""JPEG photographs for the thumbnails: those that come inside scikit-image's wheel, enlarged to a camera's size."""

from __future__ import annotations

from pathlib import Path

_NAMES = ("astronaut.png", "chelsea.png", "coffee.png", "hubble_deep_field.jpg", "retina.jpg", "rocket.jpg", "ihc.png")
_LONG_SIDE = 1600


def prepare(folder: Path) -> list[Path]:
    """Write them there. Raises ImportError without Pillow or scikit-image."""
    import skimage
    from PIL import Image

    source = Path(skimage.__file__).parent / "data"
    made = []
    for name in _NAMES:
        if not (source / name).exists():
            continue
        with Image.open(source / name) as file:
            photo = file.convert("RGB")
            scale = _LONG_SIDE / max(photo.size)
            photo = photo.resize((round(photo.width * scale), round(photo.height * scale)), Image.Resampling.BICUBIC)
            made.append(folder / f"{Path(name).stem}.jpg")
            photo.save(made[-1], "JPEG", quality=90)
    return made
