from pathlib import Path

import pytest

from softlabel.pipeline.classes import class_map, read_class_names
from softlabel.schemas.errors import DataError, ParameterError

NAMES = ("teacher t.onnx", "source data")


def test_the_same_order_needs_no_map() -> None:
    assert class_map(("a", "b"), ["a", "b"], NAMES) is None


def test_another_order_is_mapped_from_source_to_teacher() -> None:
    teacher, source = ("ant", "bee", "cat"), ("cat", "ant", "bee")
    positions = class_map(teacher, source, NAMES)
    assert positions == (2, 0, 1)
    assert tuple(teacher[index] for index in positions) == source


def test_another_number_is_refused_with_both() -> None:
    with pytest.raises(DataError, match=r"teacher t\.onnx has 3 classes, source data has 2; take"):
        class_map(("a", "b", "c"), ("a", "b"), NAMES)


def test_unknown_names_are_named() -> None:
    with pytest.raises(DataError, match=r"teacher t\.onnx lacks classes of source data: 'x', 'y';"):
        class_map(("a", "b", "c"), ("x", "b", "y"), NAMES)
    with pytest.raises(DataError, match="'0', '1', '2' and 7 more;"):
        class_map(tuple("abcdefghij"), tuple("0123456789"), NAMES)


def test_a_name_that_stands_twice_is_refused() -> None:
    with pytest.raises(DataError, match="'a'"):
        class_map(("a", "b"), ("a", "a"), NAMES)


def test_names_as_given() -> None:
    assert read_class_names(()) == ()
    assert read_class_names(("a", "@b")) == ("a", "@b")
    assert read_class_names(("a",)) == ("a",)


def test_names_from_a_file(tmp_path: Path) -> None:
    (tmp_path / "names.txt").write_text("zero point\nöne\n", encoding="utf-8")
    assert read_class_names((f"@{tmp_path}/names.txt",)) == ("zero point", "öne")


def test_an_unreadable_file_of_names_is_named(tmp_path: Path) -> None:
    with pytest.raises(ParameterError, match=r"absent\.txt: class names cannot be read"):
        read_class_names((f"@{tmp_path}/absent.txt",))
    (tmp_path / "names.bin").write_bytes(b"\xff\xfe\xff")
    with pytest.raises(ParameterError, match=r"names\.bin: class names cannot be read"):
        read_class_names((f"@{tmp_path}/names.bin",))
