"""Classes that are their fields."""

from __future__ import annotations

import pytest

from kongps.data import Data


class Point(Data):
    x: int
    y: int = 0


class Named(Point):
    name: str = ""
    y: int = 7

    def label(self) -> str:
        return f"{self.name}:{self.x}"


def test_fields_are_given_by_position_or_by_name_and_have_defaults() -> None:
    assert vars(Point(1)) == {"x": 1, "y": 0}
    assert vars(Point(1, y=2)) == {"x": 1, "y": 2}
    assert vars(Named(1, name="a")) == {"x": 1, "y": 7, "name": "a"}
    assert Named(1, 2, "b").label() == "b:1"


@pytest.mark.parametrize(
    ("values", "named"), [((), {}), ((1, 2, 3), {}), ((1,), {"x": 2}), ((1,), {"z": 2})]
)
def test_other_fields_than_the_class_has_are_refused(
    values: tuple[int, ...], named: dict[str, int]
) -> None:
    with pytest.raises(TypeError, match="Point has the fields x, y"):
        Point(*values, **named)


def test_objects_with_equal_fields_are_equal_within_one_class() -> None:
    assert Point(1, 2) == Point(1, 2)
    assert Point(1, 2) != Point(1, 3)
    assert Point(1, 2) != Named(1, 2)
    assert repr(Point(1)) == "Point(x=1, y=0)"


def test_a_copy_has_the_fields_that_were_changed() -> None:
    first = Named(1, name="a")
    assert first.replace(x=2) == Named(2, name="a")
    assert first.x == 1
    with pytest.raises(TypeError):
        first.replace(z=1)
