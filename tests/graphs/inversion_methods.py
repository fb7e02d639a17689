"""All inversions side by side, three in a workflow."""

from .inversion_report import report, stitched
from .parts import SCENE, SCENE_SEED, scene, scene_prompts

STEPS = 16
EXACT = {"cfg": 2.0, "scheduler": "karras"}
# title: inverter, its settings, cfg and branches of Inversion Sampler
PLAIN = {
    "DDIM": ("DDIMInverter", {}, 7.5, "source and edit"),
    "fixed point": ("DDIMInverter", {"fixed_point_iterations": 5}, 1.0, "source and edit"),
    "direct": ("DDIMInverter", {}, 7.5, "direct"),
}
GUIDED = {
    "negative-prompt": ("NegativePromptInverter", {}, 7.5, "source and edit"),
    "null-text": ("NullTextInverter", {"cfg": 7.5}, 7.5, "source and edit"),
    "edit-friendly": ("EditFriendlyInverter", {"cfg": 3.5, "skip": 0.2}, 3.5, "source and edit"),
}
EXACTLY = {
    "EDICT": ("EDICTInverter", EXACT, 2.0, "source and edit"),
    "BDIA": ("BDIAInverter", EXACT, 2.0, "source and edit"),
    "O-BELM": ("BELMInverter", EXACT, 2.0, "source and edit"),
}
TREE = SCENE_SEED, SCENE, "a tree", "a cactus"
PIG = 787, "a little pig on the left and an orange flower on the right in a desert", "a little pig", "a little cow"
BRING_THEIR_OWN = ("NegativePromptInverter", "NullTextInverter")  # negative


def compared(graph, methods: dict, edit: tuple[int, str, str, str], question: str, about: str, name: str):
    """A report of each method's reconstruction and edit, one below the other; the edit is a scene's seed and caption, old and new words."""
    seed, caption, old, new = edit
    graph.note(
        f"# {question}\n\nOne drawn image, three inversions, one edit: *{old}* becomes *{new}*. Each row shows the image, the "
        "reconstruction under its own prompt, and the edit under the new one, both from one run of *Inversion Sampler*. A higher PSNR is "
        f"closer to the image.\n\n{about} The help page of Inversion Sampler says which to use.\n\nTry another color or thing in the "
        "target; more steps; your own image."
    )
    with graph.group("1 Model and prompts"):
        model = graph.add("DemoModelLoader")
        source, target, negative = scene_prompts(graph, model, caption.replace(old, new), caption)
    with graph.group("2 Image"):
        image = scene(graph, seed)
    with graph.group("3 Inversions"):
        found = {title: inverted(graph, model, source, negative, image, title, methods) for title in methods}
    with graph.group("4 Reconstruct and edit"):
        images = {}
        for title, (node, _, cfg, branches) in methods.items():
            given = {} if node in BRING_THEIR_OWN else {"negative": negative}
            way = dict(inversion=found[title], cfg=cfg, branches=branches, positive=target)
            parts = dict(model=model["model"], vae=model["vae"])
            images[title] = graph.add("InversionSampler", title=title, **parts, **way, **given)["image"]
    with graph.group("5 Reports"):
        reports = [report(graph, image, found[title], both, title) for title, both in images.items()]
    with graph.group("6 The sheet"):
        graph.add("SaveImage", title="the methods", images=stitched(graph, reports), filename_prefix=name)


def inversion_methods(graph):
    about = "DDIM with guidance loses the image. A *fixed point* makes it exact without guidance; *direct* keeps it on its trajectory with "
    about += "any."
    compared(graph, PLAIN, TREE, "Which inversion when: DDIM and what mends it", about, "inversion_methods")


def inversion_methods_guided(graph):
    about = "All three reconstruct the image under guidance: *null-text* optimizes a negative for each step, *negative-prompt* sets it to "
    about += "the source prompt, *edit-friendly* keeps a noise for each step."
    compared(graph, GUIDED, PIG, "Which inversion when: made for guidance", about, "inversion_methods_guided")


def inversion_methods_exact(graph):
    about = "These reconstruct the image to the last digit with any guidance, and need the same guidance on the way back."
    compared(graph, EXACTLY, TREE, "Which inversion when: exact ones", about, "inversion_methods_exact")


def inverted(graph, model, source, negative, image, title: str, methods: dict):
    node, knobs, *_ = methods[title]
    given = {} if node in ("DDIMInverter", *BRING_THEIR_OWN) else {"negative": negative}
    shared = dict(model=model["model"], source=source, image=image, vae=model["vae"], steps=STEPS)
    return graph.add(node, title=title, **shared, **given, **{"scheduler": "normal"} | knobs)["inversion"]


WORKFLOWS = [inversion_methods, inversion_methods_guided, inversion_methods_exact]
