"""Picture files, opened so that whatever else lies there does no harm."""

import contextlib
import pathlib
from collections.abc import Iterator

from PIL import Image

# The kinds that are read. Others are not tried: Pillow would hand some (PostScript) to a program.
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF")
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")
MOST_PIXELS = 2**26  # 8,192 x 8,192: what a few bytes may claim is not unpacked beyond this


class Unreadable(ValueError):
    """A file that is no picture, is damaged, or claims too many pixels."""


def check_size(image: Image.Image) -> None:
    """Raises Unreadable where the picture, of which no pixel is read yet, is too large."""
    width, height = image.size
    if width * height > MOST_PIXELS:
        raise Unreadable(f"{width:,} x {height:,} pixels, more than {MOST_PIXELS:,}")


@contextlib.contextmanager
def picture(path: pathlib.Path) -> Iterator[Image.Image]:
    """An open picture file; what goes wrong inside is Unreadable.

    Raises:
      Unreadable: no regular file, another kind, a damaged one, or more than MOST_PIXELS.
    """
    try:
        if not path.is_file():  # a pipe would never end
            raise Unreadable("no regular file")
        with Image.open(path, formats=FORMATS) as image:
            check_size(image)
            yield image
    except Unreadable:
        raise
    except Exception as error:  # a damaged file may fail anywhere in its reader
        raise Unreadable(str(error) or type(error).__name__) from error
