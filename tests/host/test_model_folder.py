"""Names and files of ComfyUI's model folders: what is found, what is taken, and where a new file goes."""

import folder_paths
import pytest
import torch
from controlled_diffusion.nodes.host import model_folder
from controlled_diffusion.nodes.host.model_folder import ModelFolder
from controlled_diffusion.nodes.host.training.embeddings import EmbeddingFolder
from safetensors.torch import save_file

KIND = "things"


@pytest.fixture
def places(tmp_path, monkeypatch):
    """(models/things, an extra folder, what the pack brings, outputs), each with one file of its own name."""
    found = [tmp_path / "models" / KIND, tmp_path / "extra", tmp_path / "shipped" / KIND, tmp_path / "output"]
    monkeypatch.setattr(folder_paths, "models_dir", str(tmp_path / "models"))
    monkeypatch.setattr(model_folder, "SHIPPED", tmp_path / "shipped")
    monkeypatch.setitem(folder_paths.folder_names_and_paths, KIND, ([str(p) for p in found[:2]], set()))
    before = folder_paths.get_output_directory()
    folder_paths.set_output_directory(str(found[3]))
    for place, name in zip(found, ("own", "deep/extra", "shipped")):
        (place / name).parent.mkdir(parents=True)
        (place / f"{name}.safetensors").touch()
    yield found
    folder_paths.set_output_directory(before)


@pytest.mark.parametrize("wrapper", ["module.", "_orig_mod.", "module._orig_mod."])
def test_names_are_read_without_wrappers_of_a_training(wrapper, tmp_path):
    """Those of networks that were trained on several GPUs, or compiled."""
    tensors = {"unet.a.weight": torch.ones(1), "submodule.b": torch.zeros(1)}
    save_file({f"{wrapper}{k.replace('unet.', f'unet.{wrapper}')}": t for k, t in tensors.items()}, tmp_path / "wrapped.safetensors")
    assert model_folder.load_tensors(tmp_path / "wrapped.safetensors")[0] == tensors


OWN, SHARED = ModelFolder(KIND, "thing", own=True, advice=" Make one."), ModelFolder(KIND, "thing")


def test_files_of_all_folders_are_listed_by_name(places):
    (places[1] / "own.safetensors").touch()
    (places[0] / "old.bin").touch()
    assert SHARED.names() == ["own.safetensors", "deep/extra.safetensors"]
    assert OWN.names() == ["own.safetensors", "deep/extra.safetensors", "shipped.safetensors"]
    assert OWN.find("own") == OWN.find("own.safetensors") == places[0] / "own.safetensors"


def test_links_are_followed_as_comfyui_does(places, tmp_path):
    """To files and to folders; one that leads nowhere is no file."""
    (tmp_path / "disk").mkdir()
    (tmp_path / "disk" / "far.safetensors").touch()
    (places[0] / "linked").symlink_to(tmp_path / "disk")
    (places[0] / "near.safetensors").symlink_to(tmp_path / "disk" / "far.safetensors")
    (places[0] / "lost.safetensors").symlink_to(tmp_path / "nowhere")
    assert SHARED.names() == ["linked/far.safetensors", "near.safetensors", "own.safetensors", "deep/extra.safetensors"]


@pytest.mark.parametrize("name", ["../own", "/etc/passwd", "old.bin", "nothing", ""])
def test_a_name_that_is_not_listed_is_refused_with_the_list(name, places):
    with pytest.raises(
        ValueError, match=rf"no thing '{name}'\. Found in models/things: own.safetensors, .*shipped.safetensors\. Make one\."
    ):
        OWN.find(name)


def test_many_names_are_cut_short(places):
    for i in range(30):
        (places[0] / f"{i:02d}.safetensors").touch()
    with pytest.raises(ValueError, match=r"18\.safetensors, 19\.safetensors and 12 more\."):
        SHARED.find("x")


@pytest.mark.parametrize("name, place", [("new", 0), ("own", 0), ("deep/extra", 1), ("a/b", 0), ("shipped", 0)])
def test_a_file_goes_where_comfyui_finds_it_not_into_the_pack(name, place, places):
    shipped = (places[2] / "shipped.safetensors").read_bytes()
    path = OWN.save(name, {"x": torch.ones(1)}, {"made": "here"})
    assert path == places[place] / f"{name}.safetensors" and (places[2] / "shipped.safetensors").read_bytes() == shipped
    assert not list(places[place].rglob("*.partial"))


def test_an_older_file_of_another_ending_keeps_its_name(places):
    (places[1] / "mine.pt").write_bytes(b"x")
    assert SHARED.choose("mine", "number it") == "mine_2" and SHARED.choose("mine", "replace") == "mine"
    assert SHARED.place("mine") == places[1] / "mine.safetensors"


@pytest.mark.parametrize("name", ["own", "deep/extra", "shipped", "trained"])
def test_a_name_that_is_taken_is_never_given_unasked(name, places):
    OWN.state("trained").parent.mkdir(parents=True)
    OWN.state("trained").touch()
    assert OWN.choose(name, "number it") == f"{name}_2" and OWN.choose(name, "replace") == name
    with pytest.raises(ValueError, match=rf"'{name}' exists: .*set if_exists to 'number it' or 'replace'"):
        OWN.choose(name, "refuse")
    if name == "trained":
        assert OWN.choose(name, "continue") == name
    else:
        with pytest.raises(ValueError, match="There is no state of its training at"):
            OWN.choose(name, "continue")


def test_the_old_folder_of_diffusion_models_gets_no_new_files(places, monkeypatch):
    monkeypatch.setitem(folder_paths.folder_names_and_paths, KIND, ([str(places[1] / "unet"), str(places[1])], set()))
    assert SHARED.place("new") == places[1] / "new.safetensors"


def test_an_embedding_is_found_in_any_subfolder(places):
    folder = EmbeddingFolder(KIND, "embedding")
    assert folder.existing("extra") == places[1] / "deep" / "extra.safetensors" == folder.place("extra")
    assert folder.choose("other/extra", "number it") == "other/extra_2"
