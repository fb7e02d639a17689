"""DDIM inversion, reconstruction and edit."""

from .parts import half, saved, square_prompts, two_squares


def ddim_inversion(graph):
    graph.note(
        "# DDIM inversion\n\nA painted image is inverted to noise and reconstructed: without guidance almost, with fixed-point iterations "
        "exactly, with guidance hardly. With another prompt and a mask it is edited.\n\nTry: more *steps*; *branches* `direct`; another "
        "color or shape in the target."
    )
    with graph.group("1 Model and prompts"):
        model = graph.add("DemoModelLoader")
        source, target, negative = square_prompts(
            graph, model, "a red square on the left and a yellow circle on the right on a white background"
        )
    with graph.group("2 Image and mask"):
        image = two_squares(graph)
        mask = half(graph, False)
    with graph.group("3 Inversion"):
        shared = dict(model=model["model"], source=source, image=image, vae=model["vae"], steps=20, scheduler="normal")
        plain = graph.add("DDIMInverter", title="DDIM", **shared)["inversion"]
        exact = graph.add("DDIMInverter", title="with fixed point", fixed_point_iterations=5, **shared)["inversion"]
    with graph.group("4 Reconstruct and edit"):
        ways = {
            "back": graph.add("InversionSampler", title="back", model=model["model"], inversion=plain, cfg=1.0),
            "back, fixed point": graph.add("InversionSampler", title="back, fixed point", model=model["model"], inversion=exact, cfg=1.0),
            "back with guidance": graph.add(
                "InversionSampler", title="back with guidance", model=model["model"], inversion=plain, cfg=7.5, negative=negative
            ),
            "edit in the mask": graph.add(
                "InversionSampler",
                title="edit in the mask",
                model=model["model"],
                inversion=plain,
                cfg=7.5,
                positive=target,
                negative=negative,
                mask=mask,
            ),
        }
    with graph.group("5 Images"):
        graph.add("PreviewImage", title="image", images=image)
        for title, latent in ways.items():
            saved(graph, model["vae"], latent, "ddim_inversion", title)


WORKFLOWS = [ddim_inversion]
