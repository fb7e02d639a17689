"""The demo model's ControlNet is an ordinary file of the host."""

import comfy.controlnet
import folder_paths
import nodes
import pytest
from controlled_diffusion.nodes.host import demo
from controlled_diffusion.training.demo.files import FILES

FILE = FILES["shapes"].controlnet
pytestmark = pytest.mark.usefixtures("inference_mode")


def test_the_stock_loader_lists_and_reads_it():
    demo.offer_controlnet()
    assert FILE.name in folder_paths.get_filename_list("controlnet")
    assert isinstance(nodes.ControlNetLoader().load_controlnet(FILE.name)[0], comfy.controlnet.ControlLora)


def test_it_is_small():
    assert FILE.stat().st_size <= 4e6
