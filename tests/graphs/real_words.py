"""Templates for published models: edit an image by changing words."""

from . import models
from .real import DRAWN, before_and_after, checkpoint, image_at, note, sentence, template
from .thumbnails import Shown


def edit_by_words(graph, model, megapixels: float, needs: str):
    """Inversion, Prompt-to-Prompt and a local blend."""
    note(
        graph,
        "Edit an image by changing words",
        "Finds the noise of your image under its description, and draws it again with the words changed. The rest stays.",
        "**First:** load your image, describe it, and reword one thing in the second text. Keep all other words.",
        "**Too little changes:** *self_end* 0.2, then *cross_end* 0.5. **Too much changes:** raise *threshold*.",
        f"**Needs:** {needs} (an estimate).",
    )
    with graph.group("1 Model"):
        loaded = checkpoint(graph, model)
    with graph.group("2 Your image"):
        image = image_at(graph, megapixels)
    with graph.group("3 Your words"):
        shown = sentence(graph, "what the image shows", DRAWN)
        wanted = sentence(graph, "what it should show", DRAWN.replace("pink dress", "red dress"))
    with graph.group("4 Remember the image"):
        given = dict(model=loaded["MODEL"], clip=loaded["CLIP"], vae=loaded["VAE"], source=shown, image=image)
        inversion = graph.add("DDIMInverter", steps=50, **given)["inversion"]
    with graph.group("5 Change the words"):
        texts = dict(source="", targets=wanted, negative="")
        patch = graph.add("P2PAttentionPatch", model=loaded["MODEL"], clip=loaded["CLIP"], latent=inversion, **texts)
    with graph.group("6 Edit"):
        blend = graph.add("P2PLocalBlend", title="only where the changed words look", model=patch["model"], words="*")
        given = dict(model=blend, positive=patch["positive"], negative=patch["negative"], vae=loaded["VAE"])
        both = graph.add("InversionSampler", inversion=inversion, cfg=7.5, branches="direct", **given)["image"]
        edit = graph.add("ImageFromBatch", title="the second is the edit", image=both, batch_index=1, length=1)
    with graph.group("7 Result"):
        before_and_after(graph, image, edit, "edit_by_words")


@template("01 Start here - edit an image by changing words (SDXL)", Shown.of("Start here:\nchange the words", "prompt_to_prompt_real", a_yellow_umbrella=0, a_red_one=1))
def edit_by_words_sdxl(graph):
    edit_by_words(graph, models.SDXL, 1.0, "about 12 GB of GPU memory, and a minute on an RTX 4070")


@template("02 Edit an image by changing words (SD1.5)", Shown.of("Edit an image by\nchanging words", "prompt_to_prompt_real", on_the_beach=0, in_the_snow=3))
def edit_by_words_sd15(graph):
    edit_by_words(graph, models.SD15, 0.25, "about 4 GB of GPU memory, and 20 seconds on an RTX 4070")


WORKFLOWS = [edit_by_words_sdxl, edit_by_words_sd15]
