"""The shared types, as far as they compute something."""

from hypothesis import given
from hypothesis import strategies as st

from hidream.types import ROUND_PX, Size

sides = st.integers(1, 2**16)


@given(sides, sides)
def test_a_size_near_an_image_is_in_range_and_of_its_aspect(width, height):
    size = Size.near(width, height)
    own, chosen = width / height, size.width / size.height
    assert all(256 <= side <= 2048 for side in (size.width, size.height))
    if min(width, height) >= 256 and max(width, height) <= 2048:
        assert size == Size(width, height)
    elif 1 / 8 <= own <= 8:
        assert abs(chosen / own - 1) < ROUND_PX / 256
        assert size.width % ROUND_PX == size.height % ROUND_PX == 0
        assert 2048 in (size.width, size.height) if max(width, height) > 2048 else 256 in (size.width, size.height)
    else:
        assert max(chosen, 1 / chosen) >= 7.5  # the rest is cut
    assert Size.near(height, width) == Size(size.height, size.width)


def test_the_limits_are_those_of_the_route():
    assert Size.near(4000, 3000, 512, 1536) == Size(1536, 1152)
    assert Size.near(400, 300, 512, 1536) == Size(688, 512)
