"""Regions by words."""

from .parts import ksampler, latent_size, prompt_nodes, saved


def word_regions(graph):
    graph.note(
        "# A prompt for each thing, without a mask\n\nModels mix up which color belongs to which thing: see **without**. Here **Word "
        "Regions** finds where the model draws the balloon and the umbrella, and from then on each has a prompt of its own there. The "
        "seeds are the same; **Word Regions View** shows the regions. A LoRA for each thing: *Create Hook LoRA* into *region_0*.\n\n"
        "Try: other things and colors; *start_percent* 0.45; *find_percent* 0.2; no regions connected."
    )
    text = "a red balloon on the left and a blue umbrella on the right on grass"
    with graph.group("1 Model and prompts"):
        model = graph.add("DemoModelLoader")
        own = {"the balloon": "a red balloon on the left on grass", "the umbrella": "a blue umbrella on the right on grass"}
        plain, first, second, negative = prompt_nodes(graph, model, prompt=text, **own, negative="")
        size = latent_size(graph, 2)
    with graph.group("2 Regions"):
        given = dict(clip=model["clip"], prompt=text, phrases="red balloon\nblue umbrella", regions=[first, second])
        found = graph.add("WordRegions", model=model["model"], **given)
    with graph.group("3 Sample"):
        without = ksampler(graph, model["model"], plain, negative, size, seed=10)
        latent = ksampler(graph, found["model"], found["positive"], negative, size, seed=10)
    with graph.group("4 Images"):
        saved(graph, model["vae"], without, "word_regions", "without")
        images = graph.add("VAEDecode", samples=latent, vae=model["vae"])
        graph.add("SaveImage", title="with a prompt each", images=images, filename_prefix="word_regions")
    with graph.group("5 Regions that were found"):
        view = graph.add("WordRegionsView", source=found["model"], latent=latent, image=images)
        graph.add("SaveImage", title="regions", images=view["table"], filename_prefix="word_regions_found")


WORKFLOWS = [word_regions]
