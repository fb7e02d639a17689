"""Regions by words."""

from .parts import ksampler, latent_size, prompt_nodes


def word_regions(graph):
    graph.note(
        "# A prompt for each thing, without a mask\n\nThe prompt names two things. **Word Regions** finds where the model draws them, and from then on each has a "
        "prompt of its own there: the same image, with its own thing changed. **Word Regions View** shows the regions. A LoRA of its own: *Create Hook LoRA* into *region_0*."
        "\n\nTry: other colors; *start_percent* 0.45; *find_percent* 0.2; no regions connected."
    )
    text = "a blue circle on the left and a red star on the right on a white background"
    with graph.group("1 Model and prompts"):
        model = graph.add("DemoModelLoader")
        first, second, negative = prompt_nodes(
            graph, model,
            **{"the circle": text.replace("blue", "green"), "the star": text.replace("a red", "an orange")},
            negative="",
        )  # fmt: skip
        size = latent_size(graph, 2)
    with graph.group("2 Regions"):
        given = dict(clip=model["clip"], prompt=text, phrases="blue circle\nred star", regions=[first, second])
        found = graph.add("WordRegions", model=model["model"], **given)
    with graph.group("3 Sample"):
        latent = ksampler(graph, found["model"], found["positive"], negative, size, seed=6)
        images = graph.add("VAEDecode", samples=latent, vae=model["vae"])
        graph.add("SaveImage", title="images", images=images, filename_prefix="word_regions")
    with graph.group("4 Regions that were found"):
        view = graph.add("WordRegionsView", source=found["model"], latent=latent, image=images)
        graph.add("SaveImage", title="regions", images=view["table"], filename_prefix="word_regions_found")


WORKFLOWS = [word_regions]
