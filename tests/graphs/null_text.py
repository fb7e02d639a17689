"""Null-text inversion in standard samplers, next to negative-prompt inversion."""

from .parts import TWO_SQUARES, saved, square_prompts, two_squares

STEPS, CFG = dict(steps=20, scheduler="normal"), 7.5


def null_text(graph):
    graph.note(
        "# Null-Text Inverter\n\nInverts a painted image to noise and a *negative* that differs for each step. With both, a standard "
        "KSampler reconstructs the image at cfg 7.5, where plain DDIM inversion and an empty negative fail; another prompt edits it. "
        "SamplerCustomAdvanced takes the noise and the sigmas, which is right for flow models too. Below: negative-prompt inversion, "
        "which optimizes nothing.\n\nTry *a yellow square* in the target: null-text changes the right square alone, negative-prompt inversion both, "
        "where nothing holds *red*. Also *inner_steps* 0 and 10."
    )
    with graph.group("1 Model and prompts"):
        model = graph.add("DemoModelLoader")
        source, target, empty = square_prompts(graph, model, TWO_SQUARES.replace("blue square", "green star"))
    with graph.group("2 Image"):
        image = two_squares(graph)
    shared = dict(model=model["model"], source=source, image=image, vae=model["vae"], **STEPS)
    with graph.group("3 Inversion"):
        found = graph.add("NullTextInverter", cfg=CFG, **shared)
        quick = graph.add("NegativePromptInverter", fixed_point_iterations=3, **shared)
    with graph.group("4 Null-text in standard samplers"):
        knobs = dict(model=model["model"], latent_image=found["noisy_latent"], cfg=CFG, sampler_name="euler", **STEPS)
        knobs |= dict(add_noise="disable", noise_seed=0, start_at_step=0, end_at_step=10000, return_with_leftover_noise="disable")
        plain = graph.add("KSamplerAdvanced", title="empty negative", positive=source, negative=empty, **knobs)
        back = graph.add("KSamplerAdvanced", title="null-text negative", positive=source, negative=found["negative"], **knobs)
        guider = graph.add("CFGGuider", model=model["model"], positive=target, negative=found["negative"], cfg=CFG)
        euler, size = graph.add("KSamplerSelect", sampler_name="euler"), graph.add("EmptyLatentImage", width=128, height=128, batch_size=1)
        given = dict(noise=found["noise"], guider=guider, sampler=euler, sigmas=found["sigmas"], latent_image=size)
        edit = graph.add("SamplerCustomAdvanced", title="edit", **given)["output"]
    with graph.group("5 Negative-prompt"):
        way = dict(model=model["model"], inversion=quick["inversion"], cfg=CFG, branches="edit")
        quick_back = graph.add("InversionSampler", title="source", **way)["latent"]
        quick_edit = graph.add("InversionSampler", title="target", positive=target, **way)["latent"]
    with graph.group("6 Images"):
        graph.add("PreviewImage", title="image", images=image)
        graph.add("PreviewImage", title="loss curve", images=found["loss_curve"])
        made = {"empty negative": plain, "null-text back": back, "null-text edit": edit}
        made |= {"negative-prompt back": quick_back, "negative-prompt edit": quick_edit}
        for title, latent in made.items():
            saved(graph, model["vae"], latent, f"null_text_{title.replace(' ', '_')}", title)


WORKFLOWS = [null_text]
