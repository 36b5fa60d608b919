import pytest
from tritonconv.nets._files import replacing


def test_replacing_makes_the_folder_and_the_file(tmp_path):
    path = tmp_path / "new" / "file.txt"
    with replacing(path) as temporary:
        assert temporary.suffix == ".txt"
        temporary.write_text("new")
        assert not path.exists()
    assert path.read_text() == "new"
    assert list(path.parent.iterdir()) == [path]


def write_half(path):
    with replacing(path) as temporary:
        temporary.write_text("half of the n")
        raise OSError("disk full")


def test_replacing_keeps_the_old_file_when_writing_fails(tmp_path):
    path = tmp_path / "file.txt"
    path.write_text("old")
    with pytest.raises(OSError, match="disk full"):
        write_half(path)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]
