"""Values in files: what is loaded is what was saved, and nothing else is read."""

import struct

import pytest
import torch
from controlled_diffusion.inversion import files
from safetensors.torch import save_file

from checks import draw, refused


def kept(tmp_path, **values):
    files.save(values, tmp_path / "kept.safetensors")
    return files.load(tmp_path / "kept.safetensors")


def bits(tensor):
    return tensor.contiguous().reshape(-1).view(torch.uint8)


@pytest.mark.parametrize("tensor", [
    *(draw(2, 3).to(dtype) for dtype in (torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn)),
    *(draw(2, 3).to(dtype) for dtype in (torch.int64, torch.uint8, torch.bool)),
    *(torch.tensor(3.5), torch.zeros(0, 4), torch.tensor([1.0, -0.0]), torch.nn.Parameter(draw(2))),
    *(draw(4, 6).T, draw(4, 6)[1:3, ::2], draw(1, 3).expand(5, 3), draw(1, 4, 3, 3).to(memory_format=torch.channels_last)),
], ids=lambda t: f"{t.dtype} {tuple(t.shape)}")  # fmt: skip
def test_every_kind_of_tensor_is_kept_bit_for_bit(tmp_path, tensor):
    back = kept(tmp_path, it=tensor)["it"]
    assert back.dtype == tensor.dtype and back.shape == tensor.shape and not back.requires_grad
    assert torch.equal(bits(back), bits(tensor.detach()))


@pytest.mark.parametrize("value", [
    *(None, True, 7, 0.1 + 0.2, float("inf"), "grün\n'x'", (1.5, (2, "a")), [1, [2.0], ()]),
    {"a": 1, 3: {"b": None}, "dict": {}, "tensor": "x"},
], ids=repr)  # fmt: skip
def test_every_plain_value_comes_back_as_it_was(tmp_path, value):
    back = kept(tmp_path, it=value)["it"]
    assert back == value and repr(back) == repr(value)


def test_nested_tensors_are_kept_each_at_its_place(tmp_path):
    back = kept(tmp_path, it=[[draw(2), {"mask": draw(3), "area": (1, [draw(4)])}]])["it"][0]
    assert torch.equal(back[0], draw(2)) and torch.equal(back[1]["mask"], draw(3)) and torch.equal(back[1]["area"][1][0], draw(4))
    (tmp_path / "kept.safetensors").unlink()
    back = kept(tmp_path, it={"a": [draw(2)], "a.0": draw(3), 1: draw(4), "1": draw(5)})["it"]
    assert [len(t) for t in (back["a"][0], back["a.0"], back[1], back["1"])] == [2, 3, 4, 5]


def test_loaded_tensors_are_ordinary_and_free_of_the_file(tmp_path):
    with torch.inference_mode():
        back = kept(tmp_path, it=draw(3))["it"]
    (tmp_path / "kept.safetensors").write_bytes(b"\0" * (tmp_path / "kept.safetensors").stat().st_size)
    assert torch.equal(back, draw(3)) and not back.is_inference()


@pytest.mark.parametrize("value, kind", [(object(), "object"), (torch.float32, "dtype"), ({1, 2}, "set"), ({(1, 2): 3}, "dict")])
def test_objects_are_refused_by_name_and_leave_no_file(tmp_path, value, kind):
    told = rf"'source\.0\.1\.control' is a {kind}, which a file cannot keep.* Invert without it"
    refused(told, kept, tmp_path, source=[[draw(2), {"control": value}]])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("tensor", [draw(2).to(torch.complex64), draw(2, 2).to_sparse()], ids=["complex", "sparse"])
def test_a_tensor_that_safetensors_cannot_keep_is_refused(tmp_path, tensor):
    refused(r"'it' is a tensor of .* that safetensors cannot keep", kept, tmp_path, it=tensor)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_nan_is_not_written(tmp_path, value):
    refused(r"'states\.1' holds NaN or infinity, .* Invert again", kept, tmp_path, states=[draw(2), torch.tensor([1.0, value])])
    assert not list(tmp_path.iterdir())


def test_an_existing_file_stays(tmp_path):
    (tmp_path / "kept.safetensors").write_text("mine")
    with pytest.raises(FileExistsError):
        kept(tmp_path, it=1)
    assert (tmp_path / "kept.safetensors").read_text() == "mine" and len(list(tmp_path.iterdir())) == 1


def test_files_have_the_permissions_of_new_files(tmp_path):
    (tmp_path / "other").touch()
    kept(tmp_path, it=draw(2))
    kinds = [path.stat().st_mode for path in tmp_path.iterdir()]
    assert len(kinds) == 2 and kinds[0] == kinds[1]


def test_a_failed_write_leaves_nothing_behind(tmp_path, monkeypatch):
    def full(source, target):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files.os, "replace", full)
    with pytest.raises(OSError, match="No space left"):
        files.save({"it": draw(2)}, tmp_path / "kept.safetensors")
    assert not list(tmp_path.iterdir())


def written(tmp_path, **metadata):
    """A whole file whose metadata say something else."""
    files.save({"it": draw(64)}, tmp_path / "first.safetensors")
    about, tensors = files._read(tmp_path / "first.safetensors")
    save_file(tensors, tmp_path / "a.safetensors", about | metadata)
    return tmp_path / "a.safetensors"


def test_a_file_of_something_else_is_refused(tmp_path):
    save_file({"weight": draw(2)}, tmp_path / "lora.safetensors")
    refused(r"lora\.safetensors is no inversion: its metadata lacks the format", files.load, tmp_path / "lora.safetensors")


def test_another_version_is_refused_and_a_whole_copy_read(tmp_path):
    assert torch.equal(files.load(written(tmp_path))["it"], draw(64))
    (tmp_path / "first.safetensors").unlink()
    refused(r"has format version 2; this pack reads 1\. Update", files.load, written(tmp_path, version="2"))


@pytest.mark.parametrize("entry", ["{", "{}", '{"tensor": "nowhere"}', '{"tuple": 5}', '{"dict": [1]}'])
def test_metadata_that_do_not_fit_the_tensors_are_refused(tmp_path, entry):
    refused(r"a\.safetensors is damaged: its metadata do not fit its tensors\. Take another copy", files.load, written(tmp_path, it=entry))


@pytest.mark.parametrize("damage", [lambda d: d[:-40], lambda d: d[:30], lambda d: b"", lambda d: struct.pack("<Q", 1 << 60) + d[8:]])
def test_a_file_that_is_cut_or_no_safetensors_is_refused(tmp_path, damage):
    path = written(tmp_path)
    path.write_bytes(damage(path.read_bytes()))
    refused(r"a\.safetensors cannot be read: it is damaged or no safetensors file .* Choose another", files.load, path)
