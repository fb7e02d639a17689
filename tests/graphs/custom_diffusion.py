"""Two concepts learnt apart and merged."""

from .dreambooth import PAINTS, PAPERS
from .parts import SWAP, color, ksampler, pictures_of, saved, stroke

STRIPED = ("a large striped blue circle on a black background", "a striped red square on a white background")
PLACES = {"white": (42, 42), "black": (20, 60), "pink": (64, 30)}
SHAPES = ("circle", "square", "triangle", "star", "cross")
TEAL = (0, 150, 150)


def squares(graph):
    """Painted squares in a colour that the demo model has no word for."""
    papers = {p: graph.add("EmptyImage", title=p, width=128, height=128, batch_size=1, color=color(*PAPERS[p])) for p in PLACES}
    return graph.add("BatchImagesNode", images=[stroke(graph, papers[p], TEAL, x, y, 46, 46) for p, (x, y) in PLACES.items()])


def concept(graph, model, pictures, name: str, captions, validation: str):
    learnt = graph.add(
        "CustomDiffusionTrainer", title=f"learn <{name}>", **{k: model[k] for k in ("model", "clip", "vae")}, images=pictures, name=name,
        instance_prompt=f"<{name}>", placeholder=f"<{name}>", captions="\n".join(captions), prior_weight=0.0, steps=70, batch_size=3,
        learning_rate=0.0015, word_rate=0.02, validation_prompt=validation, validation_count=1, validation_steps=10, validation_cfg=4.0,
    )  # fmt: skip
    graph.add("PreviewImage", title=f"<{name}>", images=learnt["validation"])
    return learnt


def custom_diffusion(graph):
    graph.note(
        "# Custom Diffusion\n\nTwo concepts are learnt apart, each as a word with its keys and values: a colour that the demo model has no word "
        "for, and a pattern. Then both are merged in closed form, and one prompt uses both words; the upper pictures are the same seeds "
        "without them.\n\nBoth are short runs without class pictures. For your own concepts set *prior_weight* to 1." + SWAP
    )
    with graph.group("1 Model"):
        model = graph.add("DemoModelLoader")
    with graph.group("2 A colour"):
        captions = [f"a <shade> square on a {paper} background" for paper in PLACES]
        shade = concept(graph, model, squares(graph), "shade", captions, "a <shade> circle on a gray background")
    with graph.group("3 A pattern"):
        pictures = graph.add("BatchImagesNode", images=pictures_of(graph, model, STRIPED, each=2))
        captions = [text.replace("striped", "<pattern>") for text in STRIPED for _ in range(2)]
        pattern = concept(graph, model, pictures, "pattern", captions, "a <pattern> yellow cross on a gray background")
    with graph.group("4 Merge"):
        lines = graph.add("StringConcatenate", title="concepts", string_a=shade["concept"], string_b=pattern["concept"], delimiter="\n")
        known = "\n".join(f"a {paint} {shape} on a {paper} background" for paint in PAINTS for shape in SHAPES for paper in PAPERS)
        both = graph.add(
            "CustomDiffusionMerge", model=model["model"], clip=model["clip"], concepts=lines, name="both", regular_prompts=known
        )
    with graph.group("5 Use them"):
        text = "a <pattern> <shade> star on a white background"
        half = graph.add("StringReplace", title="pattern", string=text, find="<pattern>", replace=pattern["word"])
        named = graph.add("StringReplace", title="shade", string=half, find="<shade>", replace=shade["word"])
        negative = graph.add("CLIPTextEncode", title="negative", clip=model["clip"], text="")
        size = graph.add("EmptyLatentImage", width=128, height=128, batch_size=2)
        for title, used, given in (("without", model["model"], "a star on a white background"), ("both concepts", both["model"], named)):
            positive = graph.add("CLIPTextEncode", title=title, clip=model["clip"], text=given)
            saved(graph, model["vae"], ksampler(graph, used, positive, negative, size, seed=3), "custom_diffusion", title)


WORKFLOWS = [custom_diffusion]
