"""Prompt-to-Prompt."""

from .parts import SWAP, ksampler, saved


def prompt_to_prompt(graph):
    graph.note(
        "# Prompt-to-Prompt\n\nOne source prompt and three edits of it, side by side: the first picture is the source, then another colour, another "
        "texture, and another background. All take over the source's attention maps, so that what is not named stays.\n\nTry: another target a "
        "line; *word_weights* `striped: 2`; *self_end* 0, which lets shapes go; *blend_words* `*`." + SWAP
    )
    with graph.group("1 Model"):
        model = graph.add("DemoModelLoader")
    with graph.group("2 Prompts"):
        patch = graph.add(
            "P2PAttentionPatch",
            model=model["model"],
            clip=model["clip"],
            source="a red star on the left and a blue circle on the right on a white background",
            targets="a red star on the left and a yellow circle on the right on a white background\n"
            "a red star on the left and a striped blue circle on the right on a white background\n"
            "a red star on the left and a blue circle on the right on a pink background",
            negative="",
            width=128,
            height=128,
            self_end=0.6,
        )
        graph.add("PreviewAny", title="alignment", source=patch["alignment"])
    with graph.group("3 Sample"):
        latent = ksampler(graph, patch["model"], patch["positive"], patch["negative"], patch["latent"], seed=5)
    with graph.group("4 Pictures"):
        saved(graph, model["vae"], latent, "prompt_to_prompt", "source, then the edits")


WORKFLOWS = [prompt_to_prompt]
