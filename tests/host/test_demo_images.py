"""What Load Demo Images gives fits ComfyUI's sockets and the trainers."""

import torch

from harness.good_inputs import Sockets, good, run


def test_a_trainer_takes_images_captions_and_masks():
    images, captions, masks = run("DemoImages", show="a whale", count=3, seed=1)
    assert images.shape == (3, 192, 192, 3) and images.dtype == torch.float32 and 0 <= images.min() < images.max() <= 1
    assert masks.shape == (3, 192, 192) and {*masks.unique().tolist()} == {0.0, 1.0} and len(captions.split("\n")) == 3
    sockets = Sockets()
    given = good("DatasetOptions", sockets) | {"captions": [captions.replace("whale", "<whale>")], "masks": [masks]}
    options = run("DatasetOptions", **given)[0]
    given = good("TIEmbeddingTrainer", sockets) | {"placeholder": ["<whale>"], "images": [images], "dataset_options": [options], "name": ["whale"]}
    assert run("TIEmbeddingTrainer", **given)
