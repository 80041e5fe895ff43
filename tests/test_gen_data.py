"""Images of every source are the same uint8 array; damaged ones are left out, counted and named."""

import io
import sys
import types
import warnings
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as parquet
import pytest
import torch
from gen_fixtures import png, write_parquet
from PIL import Image

from sdesolve_gen import data
from sdesolve_gen.data import DataWarning, read_data

ARRAYS = [np.random.default_rng(i).integers(0, 256, (6, 4, 3), dtype=np.uint8) for i in range(5)]
GREY = [array[..., 0] for array in ARRAYS]


def stacked(arrays):
    return torch.from_numpy(np.stack([np.atleast_3d(a) for a in arrays])).permute(0, 3, 1, 2)


def folder_of(path, arrays, names):
    for array, name in zip(arrays, names, strict=True):
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(png(array))
    return path


@pytest.mark.parametrize("arrays", [ARRAYS, GREY], ids=["colour", "grey"])
@pytest.mark.parametrize("kind", ["parquet", "folder", "npz channels last", "npz channels first", "parquet in a folder"])
def test_every_source_gives_the_same_array(tmp_path, kind, arrays):
    if kind.startswith("parquet"):
        source = write_parquet(tmp_path / "a.parquet", arrays)
        source = tmp_path if "folder" in kind else source
    elif kind == "folder":
        source = folder_of(tmp_path, arrays, [f"{i}.png" for i in range(5)])
    else:
        images = np.stack(arrays) if "last" in kind else stacked(arrays).numpy()
        source = tmp_path / "a.npz"
        np.savez(source, images=images, labels=np.arange(5))
    found = read_data(source)
    assert found.images.dtype == torch.uint8
    assert found.images.is_contiguous()
    assert torch.equal(found.images, stacked(arrays))
    assert found.skipped == []
    assert (found.labels is None) == (kind == "folder")
    assert found.labels is None or found.labels.tolist() == [0, 1, 2, 3, 4]


def test_folders_are_classes(tmp_path):
    source = folder_of(tmp_path, ARRAYS, ["dog/x/1.png", "dog/0.png", "ant/9.png", "cat/2.png", "cat/1.png"])
    found = read_data(source)
    assert found.labels.tolist() == [0, 1, 1, 2, 2]  # ant, cat, dog
    assert torch.equal(found.images, stacked([ARRAYS[i] for i in (2, 4, 3, 1, 0)]))
    folder_of(tmp_path, ARRAYS[:1], ["beside.png"])
    assert read_data(source).labels is None


def test_several_sources_and_patterns_follow_one_another(tmp_path):
    for i in (2, 0, 1):
        write_parquet(tmp_path / f"part-{i}.parquet", ARRAYS[i : i + 1])
    found = read_data(str(tmp_path / "part-*.parquet"))
    assert torch.equal(found.images, stacked(ARRAYS[:3]))
    np.savez(tmp_path / "more.npz", images=np.stack(ARRAYS[3:]), labels=np.array([3, 4]))
    both = read_data([str(tmp_path / "part-*.parquet"), tmp_path / "more.npz"])
    assert torch.equal(both.images, stacked(ARRAYS))
    folder_of(tmp_path / "pictures", ARRAYS[:1], ["0.png"])
    with pytest.raises(ValueError, match="some sources have labels and others none"):
        read_data([tmp_path / "more.npz", tmp_path / "pictures"])


@pytest.mark.parametrize("grey_first", [True, False])
def test_grey_pictures_among_coloured_ones_become_coloured(tmp_path, grey_first):
    arrays = [GREY[0], ARRAYS[1]] if grey_first else [ARRAYS[1], GREY[0]]
    images = read_data(folder_of(tmp_path, arrays, ["0.png", "1.png"])).images
    assert images.shape == (2, 3, 6, 4)
    assert torch.equal(images[0 if grey_first else 1], stacked(GREY[:1]).expand(1, 3, 6, 4)[0])
    assert torch.equal(images[1 if grey_first else 0], stacked(ARRAYS[1:2])[0])


def test_palettes_and_transparency_are_not_taken_for_levels(tmp_path):
    array = np.zeros((4, 4, 3), np.uint8)
    array[:2] = (255, 0, 51)  # in the palette
    for mode in ("P", "RGBA", "CMYK"):
        picture = Image.fromarray(array).convert(mode)
        picture.save(tmp_path / f"{mode}.tif")
    images = read_data(tmp_path).images
    assert images.shape == (3, 3, 4, 4)
    assert (images.int() - stacked([array]).int()).abs().max() <= 3


def test_sizes_are_one_or_made_one(tmp_path):
    source = folder_of(tmp_path, [ARRAYS[0], np.full((8, 8, 3), 9, np.uint8)], ["0.png", "1.png"])
    with pytest.raises(ValueError, match=r"images of several sizes \(6 x 4, but 1.png 8 x 8\); expected one shape: size=4"):
        read_data(source)
    images = read_data(source, size=4).images
    assert images.shape == (2, 3, 4, 4)
    assert (images[1] == 9).all()
    assert torch.equal(images[0], stacked([ARRAYS[0][1:5]])[0])  # the middle: nothing to scale


JPEG = io.BytesIO()
Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 32), dtype=np.uint8)).save(JPEG, format="JPEG")
DAMAGED = {"cut jpeg": JPEG.getvalue()[:400], "cut png": png(GREY[0])[:45], "text": b"hello", "empty": b"", "none": None, "a png's head": png(GREY[0])[:10]}


@pytest.mark.parametrize("damage", DAMAGED)
def test_a_damaged_picture_is_left_out_counted_and_named(tmp_path, damage, monkeypatch):
    monkeypatch.setattr(data, "_ROWS", 3)  # read in pieces
    rows = [{"bytes": png(a), "path": ""} for a in GREY]
    rows[2]["bytes"] = rows[4]["bytes"] = DAMAGED[damage]
    source = tmp_path / "a.parquet"
    parquet.write_table(pa.table({"image": rows, "label": list(range(5))}), source)
    with pytest.warns(DataWarning, match=r"2 of 5 pictures cannot be read and are left out: a.parquet\[2\], a.parquet\[4\] \([^<>]{6,150}\)$"):
        found = read_data(source)
    assert found.skipped == ["a.parquet[2]", "a.parquet[4]"]
    assert found.labels.tolist() == [0, 1, 3]
    assert torch.equal(found.images, stacked([GREY[i] for i in (0, 1, 3)]))
    assert (found.names, found.ids) == (["a.parquet[0]", "a.parquet[1]", "a.parquet[3]"], [0, 1, 3])


def test_two_hundred_flipped_bits_never_raise(tmp_path):
    """Each picture is read, or left out and named; nothing else happens."""
    draws = np.random.default_rng(0)
    encoded = [bytearray(png(GREY[0])) for _ in range(100)] + [bytearray(JPEG.getvalue()) for _ in range(100)]
    for picture in encoded:
        picture[draws.integers(len(picture))] ^= 1 << int(draws.integers(8))
    for first in (0, 100):
        rows = [{"bytes": bytes(p), "path": ""} for p in encoded[first : first + 100]]
        parquet.write_table(pa.table({"image": rows}), tmp_path / "a.parquet")
        with pytest.warns(DataWarning):
            found = read_data(tmp_path / "a.parquet", size=8)
        assert len(found.images) + len(found.skipped) == 100
        assert len(found.images) > 0


def test_data_that_is_none_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="is not a file or folder; expected a parquet file"):
        read_data(tmp_path / "none.parquet")
    with pytest.raises(FileNotFoundError, match="fits no file"):
        read_data(str(tmp_path / "*.parquet"))
    (tmp_path / "text.parquet").write_text("hello")
    with pytest.raises(ValueError, match=r"text\.parquet is not a parquet file"):
        read_data(tmp_path / "text.parquet")
    parquet.write_table(pa.table({"picture": [1]}), tmp_path / "columns.parquet")
    with pytest.raises(ValueError, match=r"has the columns \['picture'\]; expected a column 'image'"):
        read_data(tmp_path / "columns.parquet")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="holds no pictures"):
        read_data(tmp_path / "empty")
    (tmp_path / "bad.npz").write_bytes(b"PK\3\4 no")
    np.savez(tmp_path / "floats.npz", images=np.zeros((2, 1, 4, 4)))
    np.savez(tmp_path / "labels.npz", images=np.zeros((2, 1, 4, 4), np.uint8), labels=np.zeros(3, int))
    np.savez(tmp_path / "objects.npz", images=np.array([{}], object))
    for name, message in {"bad": "no npz file", "floats": "float64; expected.*, uint8", "labels": "expected 2 integers", "objects": "no npz file"}.items():
        with pytest.raises(ValueError, match=message):
            read_data(tmp_path / f"{name}.npz")
    folder_of(tmp_path / "broken", [], [])
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "a.png").write_bytes(b"no")
    with pytest.raises(ValueError, match=r"holds no image that can be read \(1 cannot: a.png \(no picture of a known kind"):
        read_data(tmp_path / "broken")


class Table:
    """What of ``datasets.Dataset`` is used."""

    def __init__(self, decode=True):
        self.decode = decode
        self.features = {"img": type("Image", (), {})(), "fine_label": type("ClassLabel", (), {})()}

    def cast_column(self, column, feature):
        assert (column, feature) == ("img", ("Image", False))
        return Table(False)

    def __len__(self):
        return 3

    def __iter__(self):
        assert not self.decode
        yield from ({"img": {"bytes": png(a), "path": None}, "fine_label": i + 5} for i, a in enumerate(GREY[:2]))
        yield {"img": {"bytes": b"no", "path": None}, "fine_label": 7}


def test_hugging_face_data_sets(tmp_path, monkeypatch):
    asked = []
    stub = types.ModuleType("datasets")
    stub.load_dataset = lambda name, split, revision: asked.append((name, split, revision)) or Table()
    stub.load_from_disk = lambda path: asked.append(path) or Table()
    stub.Image = lambda decode: ("Image", decode)
    monkeypatch.setitem(sys.modules, "datasets", stub)
    (tmp_path / "dataset_info.json").write_text("{}")
    for source in ("hf:ylecun/mnist@abc:train", "hf:cifar10:test", str(tmp_path)):
        with pytest.warns(DataWarning, match="1 of 3"):
            found = read_data(source)
        assert torch.equal(found.images, stacked(GREY[:2]))
        assert found.labels.tolist() == [5, 6]
    assert asked == [("ylecun/mnist", "train", "abc"), ("cifar10", "test", None), str(tmp_path)]
    with pytest.raises(ValueError, match="expected hf:NAME:SPLIT"):
        read_data("hf:ylecun/mnist")
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ImportError, match="pip install datasets"):
        read_data("hf:cifar10:test")


def test_a_parquet_file_is_read_in_pieces(tmp_path, monkeypatch):
    monkeypatch.setattr(data, "_ROWS", 2)
    found = read_data(write_parquet(Path(tmp_path) / "a.parquet", ARRAYS))
    assert torch.equal(found.images, stacked(ARRAYS))
    assert found.labels.tolist() == [0, 1, 2, 3, 4]


# -- classes -------------------------------------------------------------------------------------------------------------------


def test_classes_of_several_folders_have_one_numbering(tmp_path):
    """By the names in all of them; a folder without pictures is a class too."""
    for name in ("dog/0.png", "cat/0.png", "cat/1.png"):
        folder_of(tmp_path / "A", ARRAYS[:1], [name])
    folder_of(tmp_path / "B", ARRAYS[:2], ["dog/0.png", "frog/0.png"])
    both = read_data([tmp_path / "A", tmp_path / "B"])
    assert both.classes == ("cat", "dog", "frog")
    assert both.labels.tolist() == [0, 0, 1, 1, 2]
    assert read_data([tmp_path / "B", tmp_path / "A"]).labels.tolist() == [1, 2, 0, 0, 1]
    (tmp_path / "B" / "cat").mkdir()
    (tmp_path / "B" / ".hidden").mkdir()
    test = read_data(tmp_path / "B")
    assert (test.classes, test.labels.tolist(), test.rows([1]).classes) == (("cat", "dog", "frog"), [1, 2], ("cat", "dog", "frog"))
    np.savez(tmp_path / "numbers.npz", images=np.stack(ARRAYS), labels=np.arange(5))
    assert read_data(tmp_path / "numbers.npz").classes is None
    with pytest.raises(ValueError, match=r"some sources have classes with names \(cat, dog, frog\) and others numbers; expected folders of classes in all"):
        read_data([tmp_path / "B", tmp_path / "numbers.npz"])


def test_names_of_a_hugging_face_data_set_keep_its_order(tmp_path, monkeypatch):
    """Unless other sources say others: then those of each go by name, and -1, no label, stays."""

    class Named(Table):
        def __init__(self, decode=True):
            super().__init__(decode)
            self.features["fine_label"].names = ["frog", "cat", "emu"]

        def cast_column(self, column, feature):
            return Named(False)

        def __iter__(self):
            yield from ({"img": {"bytes": png(a), "path": None}, "fine_label": i} for i, a in zip((0, 1, -1), ARRAYS, strict=False))

    stub = types.ModuleType("datasets")
    stub.load_dataset = lambda name, split, revision: Named()
    stub.Image = lambda decode: ("Image", decode)
    monkeypatch.setitem(sys.modules, "datasets", stub)
    alone = read_data(["hf:a:train", "hf:b:train"])
    assert (alone.classes, alone.labels.tolist()) == (("frog", "cat", "emu"), [0, 1, -1, 0, 1, -1])
    both = read_data([folder_of(tmp_path, ARRAYS[:2], ["dog/0.png", "frog/0.png"]), "hf:a:train"])
    assert (both.classes, both.labels.tolist()) == (("cat", "dog", "emu", "frog"), [1, 3, 3, 0, -1])


@pytest.mark.parametrize("labels", [[0.0, 0.5], [0, None], np.array([0, 2**63], np.uint64), ["0", "cat"], [0.0, np.inf]], ids=str)
def test_a_label_that_is_no_whole_number_is_refused(tmp_path, labels):
    rows = [{"bytes": png(a), "path": ""} for a in GREY[:2]]
    parquet.write_table(pa.table({"image": rows, "label": labels}), tmp_path / "a.parquet")
    with pytest.raises(ValueError, match=r"a.parquet\[[01]\] has the label .*; expected a whole number of 64 bits"):
        read_data(tmp_path / "a.parquet")
    parquet.write_table(pa.table({"image": rows, "label": [0.0, 3.0]}), tmp_path / "a.parquet")
    assert read_data(tmp_path / "a.parquet").labels.tolist() == [0, 3]
    np.savez(tmp_path / "a.npz", images=np.stack(GREY[:1]), labels=np.array([2**63], np.uint64))
    with pytest.raises(ValueError, match=r"a.npz\[0\] has the label 9223372036854775808"):
        read_data(tmp_path / "a.npz")


# -- bad data ------------------------------------------------------------------------------------------------------------------


def test_sixteen_bits_a_pixel_become_eight(tmp_path):
    """v -> 255 v/65535, rounded; what has no known white, as 32 bits, is left out."""
    levels = np.array([[0, 128, 129], [257 * 7, 32767, 65535]], np.uint16)
    folder_of(tmp_path, [levels, np.zeros((2, 3), np.uint8)], ["0.png", "1.png"])
    Image.fromarray(levels.astype(np.float32)).save(tmp_path / "2.tif")
    Image.fromarray(levels.astype(np.int32)).save(tmp_path / "3.tif")
    with pytest.warns(DataWarning, match=r"2 of 4 pictures cannot be read and are left out: 2.tif \(32 bits a pixel, mode F.*, 3.tif \(.*mode I,"):
        found = read_data(tmp_path)
    with pytest.raises(ValueError, match=r"no image that can be read \(1 cannot: 2.tif \(32 bits a pixel, mode F, of which it is not known what is white; 8 and 16 bits are read"):
        read_data(tmp_path / "2.tif")
    assert found.images[0, 0].tolist() == [[0, 0, 1], [7, 127, 255]]
    assert read_data(tmp_path / "0.png", size=2).images.shape == (1, 1, 2, 2)


def test_a_column_of_bytes_is_read(tmp_path):
    for kind in (pa.binary(), pa.large_binary()):
        parquet.write_table(pa.table({"image": pa.array([png(a) for a in ARRAYS], kind)}), tmp_path / "a.parquet")
        assert torch.equal(read_data(tmp_path / "a.parquet").images, stacked(ARRAYS))
    for column, kind in ((["0.png", "1.png"], "string"), ([{"path": "0.png"}], "struct<path: string>"), ([[0, 1]], "list<.*>")):
        parquet.write_table(pa.table({"image": column}), tmp_path / "a.parquet")
        with pytest.raises(ValueError, match=rf"a.parquet has a column 'image' of {kind}; expected \{{bytes, path\}} or bytes"):
            read_data(tmp_path / "a.parquet")


@pytest.mark.parametrize("kind", ["parquet", "npz", "compressed npz"])
def test_a_flipped_bit_is_one_error_that_names_the_file(tmp_path, kind):
    """Or goes unnoticed, as a bit of a picture's own, which is then left out or another picture."""
    path = tmp_path / f"data.{kind.split()[-1]}"
    if kind == "parquet":
        write_parquet(path, ARRAYS)
    else:
        (np.savez if kind == "npz" else np.savez_compressed)(path, images=np.stack(ARRAYS), labels=np.arange(5))
    whole, draws, refused, said = path.read_bytes(), np.random.default_rng(0), 0, set()
    for _ in range(200):
        damaged = bytearray(whole)
        damaged[draws.integers(len(whole))] ^= 1 << int(draws.integers(8))
        path.write_bytes(damaged)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", DataWarning)
                read_data(path)
        except ValueError as error:
            assert path.name in str(error) and "expected" in str(error)
            refused += 1
            said.add(type(error.__cause__))
    assert refused > 20 and len(said) > 1


def test_an_npz_file_that_is_none_or_holds_no_images_says_so(tmp_path):
    path = tmp_path / "a.npz"
    np.save(tmp_path / "a.npy", np.stack(ARRAYS))
    (tmp_path / "a.npy").rename(path)
    with pytest.raises(ValueError, match=r"a.npz is no npz file with an array 'images' \(File is not a zip file\)"):
        read_data(path)
    np.savez(path, images=np.zeros((2, 5, 8, 8), np.uint8))
    assert read_data(path).images.shape == (2, 5, 8, 8)
    with pytest.raises(ValueError, match=r"a.npz\[0\] has the shape \(8, 8, 5\), \(H, W, C\), which size=4 does not scale; expected 1 or 3 channels"):
        read_data(path, size=4)
    np.savez(path, images=np.zeros((2, 0, 8), np.uint8))
    with pytest.raises(ValueError, match=r"a.npz: images are \(2, 0, 8\), without a pixel"):
        read_data(path)
