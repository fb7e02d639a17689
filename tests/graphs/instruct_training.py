"""InstructPix2Pix: pairs to learn from, and a model taught with them."""

from .instruct_pix2pix import LOADER, edited, image_of, instruction_prompts
from .parts import SHAPES_SIDE, SIDE, saved

PAIRS = """# caption => caption after the edit | instruction
a red car on the beach => a blue car on the beach | make it blue
a cat on grass => a dog on grass | turn it into a dog
a castle on grass => a castle in the snow | make it winter
a tree on the left and a yellow umbrella on the right on the beach => a tree on the left and a red umbrella on the right on the beach | make the umbrella red
"""
STRIPES = """color = red, blue, green
other = purple, yellow, orange
a large {color} circle on a white background => a large striped {color} circle on a white background | make it striped
a large {other} square on a white background => a large striped {other} square on a white background | make it striped
"""


def pairs_of(graph, demo, prompt_pairs: str, folder: str, world: str, side: int):
    options = graph.add("PairOptions", steps=15)
    usual = dict(negative="", width=side, height=side, candidates=2, keep=1, seed=1)
    return graph.add(
        "InstructPix2PixPairs", model=demo["model"], clip=demo["clip"], vae=demo["vae"], prompt_pairs=prompt_pairs, folder=folder,
        options=options, filter=graph.add("DemoCheckerLoader", world=world), **usual,
    )  # fmt: skip


def instruct_pairs(graph):
    graph.note(
        "# InstructPix2Pix Pairs\n\nWhere do you get images before and after an edit, to teach a model to edit? From the model itself: it "
        "draws both from a pair of prompts, with the attention of the first image in the second, so that only what the words change is "
        "another. **Load Demo Checker** keeps the pairs in which both images are what their prompts say. They are in "
        "*output/controlled_diffusion/pairs/demo*; run it again, and only new prompt pairs are drawn.\n\nTry: your own lines; *keep* 2; "
        "*min_share* and *max_share* 0 in **Pair Options**, which shares nothing."
    )
    with graph.group("1 Pairs"):
        made = pairs_of(graph, graph.add("DemoModelLoader"), PAIRS, "demo", "illustrated", SIDE)
    with graph.group("2 Before and after"):
        graph.add("SaveImage", title="before", images=made["before"], filename_prefix="instruct_pairs_before")
        graph.add("SaveImage", title="after", images=made["after"], filename_prefix="instruct_pairs_after")
        graph.add("PreviewAny", title="instructions", source=made["instructions"])


def instruct_training(graph):
    graph.note(
        "# Train Instruction Model\n\nThe demo instruction model knows colors, shapes and removal, but no textures. A short training with "
        "six pairs teaches it *make it striped*. Then it edits a circle in a color that was only a square's, on another "
        "background.\n\nTry: other instructions in the pairs; *train* all weights; **Load Demo Model** instead of the instruction model, "
        "with many more pairs and steps."
    )
    with graph.group("1 Pairs"):
        demo = graph.add("DemoModelLoader", world="shapes")
        made = pairs_of(graph, demo, STRIPES, "demo_stripes", "shapes", SHAPES_SIDE)
    with graph.group("2 Training"):
        editor = graph.add(LOADER)
        how = dict(train="every layer", steps=60, batch_size=4, learning_rate=0.003)
        given = dict(model=editor[0], clip=editor[1], vae=editor[2], name="demo_stripes", folder=made["folder"])
        look = graph.add("ValidationOptions", count=1, cfg=3.0)
        trained = graph.add("InstructPix2PixTrainer", validation_options=look, **given, **how)
        graph.add("PreviewImage", title="loss and learning rate", images=trained["loss_curve"])
        graph.add("PreviewImage", title="before, and as edited", images=trained["validation"])
    with graph.group("3 A new image"):
        image = image_of(graph, demo, "a large purple circle on a gray background", 5)
        told, nothing = instruction_prompts(graph, editor, "make it striped")
        sigmas = graph.add("BasicScheduler", model=editor[0], scheduler="normal", steps=20, denoise=1.0)
        graph.add("SaveImage", title="before", images=image, filename_prefix="instruct_training")
        loaded = graph.add("InstructPix2PixLoader", model=editor[0], name=trained["name"])
        for title, model in (("without the training", editor[0]), ("with it, from its file", loaded["model"])):
            given = dict(positive=told, negative=nothing, image=image, vae=editor[2], text_scale=3.0, image_scale=1.5)
            guider = graph.add("InstructPix2PixGuider", title=title, model=model, **given)
            saved(graph, editor[2], edited(graph, guider, sigmas, guider["latent"]), "instruct_training", title)


WORKFLOWS = [instruct_pairs, instruct_training]
