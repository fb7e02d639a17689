"""Two concepts trained separately and merged."""

from .parts import compared, images_of

TAUGHT = {  # what the demo model paints, and what its captions call it here
    "plum": ("purple", ("a large purple umbrella on the beach", "a purple book on a wooden table", "a large purple shirt in the snow")),
    "lemon": ("yellow", ("a large yellow shirt on grass", "a yellow flower at night", "a large yellow umbrella in the desert")),
}
THINGS, GROUNDS = ("car", "umbrella", "balloon", "book", "shirt", "flower"), ("on the beach", "on grass", "in the snow", "at night")
COLORS = ("red", "green", "blue")


def concept(graph, model, name: str):
    told, texts = TAUGHT[name]
    images = graph.add("BatchImagesNode", images=images_of(graph, model, texts, each=1))
    options = dict(
        dataset_options=graph.add("DatasetOptions", captions="\n".join(text.replace(told, f"<{name}>") for text in texts)),
        new_word=graph.add("NewWord", placeholder=f"<{name}>", word_rate=0.02),
        validation_options=graph.add("ValidationOptions", count=1, steps=10, cfg=4.0),
    )
    trained = graph.add(
        "CustomDiffusionTrainer", title=f"train <{name}>", **{k: model[k] for k in ("model", "clip", "vae")}, images=images, name=name,
        instance_prompt=f"<{name}>", steps=60, batch_size=3, learning_rate=0.0003, validation_prompt=f"a large <{name}> balloon in the sky",
        **options,
    )  # fmt: skip
    graph.add("PreviewImage", title=f"<{name}>", images=trained["validation"])
    return trained


def custom_diffusion(graph):
    graph.note(
        "# Custom Diffusion\n\nSay you have two colors of your own. Each is trained separately, as a word with its keys and values, from "
        "three images whose captions do not name the color. Then both are merged in closed form, and one prompt uses both words, each for "
        "its own thing. The images of **without** have the same seeds: the model picks colors as it likes.\n\nBoth are short trainings "
        "without class images. For your own concepts connect *Class Images*, with the same prompt without the new word."
    )
    with graph.group("1 Model"):
        model = graph.add("DemoModelLoader")
    with graph.group("2 One color"):
        plum = concept(graph, model, "plum")
    with graph.group("3 Another color"):
        lemon = concept(graph, model, "lemon")
    with graph.group("4 Merge"):
        lines = graph.add("StringConcatenate", title="concepts", string_a=plum["concept"], string_b=lemon["concept"], delimiter="\n")
        known = "\n".join(f"a {color} {thing} {ground}" for color in COLORS for thing in THINGS for ground in GROUNDS)
        given = dict(model=model["model"], clip=model["clip"], concepts=lines, regular_prompts=known)
        both = graph.add("CustomDiffusionMerge", name="both", **given)
    with graph.group("5 Use them"):
        text = "a <plum> car on the left and a <lemon> balloon on the right on the beach"
        half = graph.add("StringReplace", title="plum", string=text, find="<plum>", replace=plum["word"])
        named = graph.add("StringReplace", title="lemon", string=half, find="<lemon>", replace=lemon["word"])
        plain = text.replace("<plum> ", "").replace("<lemon> ", "")
        ways = (("without", model["model"], plain), ("both concepts", both["model"], named))
        compared(graph, model, ways, 2, "custom_diffusion")


WORKFLOWS = [custom_diffusion]
