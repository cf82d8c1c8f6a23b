"""Which arrays are images, for the library and for the client: `image_of` makes a PIL image of one.

An array is whatever has `__array__`, such as those of NumPy, torch and JAX. NumPy is not imported, because the client
does not need it: whoever has an array has NumPy too. H height, W width.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from hidream.errors import InvalidInput

if TYPE_CHECKING:
    from PIL import Image

ACCEPTED = "an array [height, width, 3 or 4] of uint8 or of floats from 0 to 1"


def is_array(value: object) -> bool:
    """Whether a value is an array."""
    return hasattr(value, "__array__")


def image_of(field: str, value: Any, accepted: str) -> Image.Image:  # noqa: ANN401 - whatever has __array__
    """Make an image of an array [H, W], [H, W, 1], [H, W, 3] or [H, W, 4] of uint8, bool, or floats from 0 to 1.

    Raises InvalidInput, which names the field and what is `accepted`.
    """
    from PIL import Image

    try:
        array = value.__array__()
    except (TypeError, RuntimeError) as error:  # such as a tensor of torch on another device
        raise InvalidInput(
            f"{field} is an array that cannot be read ({error}); accepted: {accepted}", field=field
        ) from error
    if array.ndim == len("HWC") and array.shape[2] == 1:
        array = array[:, :, 0]
    shape_fits = array.ndim == len("HW") or (array.ndim == len("HWC") and array.shape[2] in (3, 4))
    if not shape_fits or not array.size or not (array.dtype.kind in "bf" or array.dtype == "uint8"):
        raise InvalidInput(
            f"{field} is an array {list(array.shape)} of {array.dtype}; accepted: {accepted}", field=field
        )
    if array.dtype.kind == "b":
        array = array.astype("uint8") * 255
    elif array.dtype.kind == "f":
        array = _of_floats(field, array)
    return Image.fromarray(array)


def _of_floats(field: str, array: Any) -> Any:  # noqa: ANN401
    smallest, largest = array.min(), array.max()
    if not 0 <= smallest <= largest <= 1:  # nor NaN
        raise InvalidInput(
            f"{field} has values from {smallest:g} to {largest:g}; accepted: floats from 0 to 1, or uint8", field=field
        )
    return (array.astype("float64") * 255).round().astype("uint8")
