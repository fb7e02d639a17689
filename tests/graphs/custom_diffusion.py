"""Two concepts trained separately and merged."""

from .dreambooth import lesson, with_word
from .parts import compared

START = {"whale": "elephant", "rocket": "airplane"}  # what the demo model knows of the kind
THINGS = ("cat", "dog", "pig", "elephant", "owl", "car", "airplane", "house", "tree", "apple")
GROUNDS = ("on the beach", "on grass", "in the snow", "at night", "on a white background")


def concept(graph, model, name: str):
    images, captions = lesson(graph, name)
    options = dict(
        dataset_options=graph.add("DatasetOptions", captions=captions),
        new_word=graph.add("NewWord", placeholder=f"<{name}>", initial_words=START[name], word_rate=0.02),
        validation_options=graph.add("ValidationOptions", count=1, steps=10, cfg=4.0),
    )
    trained = graph.add(
        "CustomDiffusionTrainer", title=f"train <{name}>", **{k: model[k] for k in ("model", "clip", "vae")}, images=images, name=name,
        instance_prompt=f"a <{name}>", steps=70, batch_size=3, learning_rate=0.001,
        validation_prompt=f"a <{name}> in the desert", **options,
    )  # fmt: skip
    graph.add("PreviewImage", title=f"<{name}>", images=trained["validation"])
    return trained


def custom_diffusion(graph):
    graph.note(
        "# Custom Diffusion\n\nA whale and a rocket, both new to the model, are trained separately, each as a word with its keys and "
        "values. Then both are merged in closed form, and one prompt uses both words, each for its own thing: no image ever showed them "
        "together. The images of **without** have the same seeds.\n\nBoth are short trainings without class images. For your own concepts "
        "connect **Class Images**, with the same prompt without the new word."
    )
    with graph.group("1 Model"):
        model = graph.add("DemoModelLoader")
    with graph.group("2 A whale"):
        whale = concept(graph, model, "whale")
    with graph.group("3 A rocket"):
        rocket = concept(graph, model, "rocket")
    with graph.group("4 Merge"):
        lines = graph.add("StringConcatenate", title="concepts", string_a=whale["concept"], string_b=rocket["concept"], delimiter="\n")
        known = "\n".join(f"{'an' if thing[0] in 'aeo' else 'a'} {thing} {ground}" for thing in THINGS for ground in GROUNDS)
        given = dict(model=model["model"], clip=model["clip"], concepts=lines, regular_prompts=known)
        both = graph.add("CustomDiffusionMerge", name="both", **given)
    with graph.group("5 Use them"):
        one = with_word(graph, "a <whale> on the left and a <rocket> on the right on the beach", "whale", whale["word"])
        named = with_word(graph, one, "rocket", rocket["word"])
        ways = (("without", model["model"], named), ("both concepts", both["model"], named))
        compared(graph, model, ways, 2, "custom_diffusion")


WORKFLOWS = [custom_diffusion]
