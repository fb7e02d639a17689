"""Two concepts trained separately and merged."""

from .dreambooth import PAINTS, PAPERS
from .parts import compared, images_of

TAUGHT = {  # what the demo model paints, and what its captions call it here
    "bands": ("striped", ("a large striped blue circle on a black background", "a striped red square on a white background")),
    "spots": ("dotted", ("a large dotted yellow square on a black background", "a dotted purple circle on a pink background")),
}
SHOWN = {"bands": "a <bands> yellow cross on a gray background", "spots": "a <spots> red star on a gray background"}
SHAPES = ("circle", "square", "triangle", "star", "cross")


def concept(graph, model, name: str):
    told, texts = TAUGHT[name]
    images = graph.add("BatchImagesNode", images=images_of(graph, model, texts, each=2))
    captions = [text.replace(told, f"<{name}>") for text in texts for _ in range(2)]
    options = dict(
        dataset_options=graph.add("DatasetOptions", captions="\n".join(captions)),
        new_word=graph.add("NewWord", placeholder=f"<{name}>", word_rate=0.02),
        validation_options=graph.add("ValidationOptions", count=1, steps=10, cfg=4.0),
    )
    trained = graph.add(
        "CustomDiffusionTrainer", title=f"train <{name}>", **{k: model[k] for k in ("model", "clip", "vae")}, images=images, name=name,
        instance_prompt=f"<{name}>", steps=70, batch_size=3, learning_rate=0.0003, validation_prompt=SHOWN[name], **options,
    )  # fmt: skip
    graph.add("PreviewImage", title=f"<{name}>", images=trained["validation"])
    return trained


def custom_diffusion(graph):
    graph.note(
        "# Custom Diffusion\n\nTwo patterns are trained separately, each as a word with its keys and values, from images whose captions "
        "do not name them. Then both are merged in closed form, and one prompt uses both words, each for its own thing. The images "
        "of **without** have the same seeds.\n\nBoth are short trainings without class images. For your own concepts connect **Class "
        "Images**, with the same prompt without the new word."
    )
    with graph.group("1 Model"):
        model = graph.add("DemoModelLoader")
    with graph.group("2 One pattern"):
        bands = concept(graph, model, "bands")
    with graph.group("3 Another pattern"):
        spots = concept(graph, model, "spots")
    with graph.group("4 Merge"):
        lines = graph.add("StringConcatenate", title="concepts", string_a=bands["concept"], string_b=spots["concept"], delimiter="\n")
        known = "\n".join(f"a {paint} {shape} on a {paper} background" for paint in PAINTS for shape in SHAPES for paper in PAPERS)
        given = dict(model=model["model"], clip=model["clip"], concepts=lines, regular_prompts=known)
        both = graph.add("CustomDiffusionMerge", name="both", **given)
    with graph.group("5 Use them"):
        text = "a <bands> green square on the left and a <spots> orange circle on the right on a white background"
        half = graph.add("StringReplace", title="bands", string=text, find="<bands>", replace=bands["word"])
        named = graph.add("StringReplace", title="spots", string=half, find="<spots>", replace=spots["word"])
        plain = text.replace("<bands> ", "").replace("<spots> ", "")
        ways = (("without", model["model"], plain), ("both concepts", both["model"], named))
        compared(graph, model, ways, 2, "custom_diffusion")


WORKFLOWS = [custom_diffusion]
