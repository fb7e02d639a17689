"""Negative-prompt inversion, and next to it null-text inversion in standard samplers."""

from .parts import latent_size, saved, scene, scene_prompts

SEED, UMBRELLA = 3422, "a large orange umbrella on grass, on the right"
STEPS, CFG = dict(steps=20, scheduler="normal"), 7.5


def null_text(graph):
    graph.note(
        "# Get the image back under guidance\n\nAn edit needs guidance, and under "
        "guidance plain DDIM inversion loses the drawn image: see **empty negative**. Both nodes bring their own *negative*, with which "
        "the image comes back at cfg 7.5; then another prompt makes the umbrella a mushroom.\n\nBegin with *Negative-Prompt Inverter*: it "
        "optimizes nothing. Here 3 fixed-point iterations make it almost exact; with 0 an edit keeps more. *Null-Text Inverter* gives a "
        "negative that differs for each step, for a standard KSampler.\n\nTry: *a large sunflower*; *fixed_point_iterations* 0; null-text "
        "with *start* `empty` and an empty prompt as its negative."
    )
    with graph.group("1 Model and prompts"):
        model = graph.add("DemoModelLoader")
        source, target, empty = scene_prompts(graph, model, UMBRELLA.replace("orange umbrella", "mushroom"), UMBRELLA)
    with graph.group("2 Image"):
        image = scene(graph, SEED)
    shared = dict(model=model["model"], source=source, image=image, vae=model["vae"], **STEPS)
    with graph.group("3 Inversion"):
        quick = graph.add("NegativePromptInverter", fixed_point_iterations=3, **shared)
        found = graph.add("NullTextInverter", cfg=CFG, **shared)
    with graph.group("4 Negative-prompt"):
        way = dict(model=model["model"], inversion=quick["inversion"], cfg=CFG, branches="edit")
        quick_back = graph.add("InversionSampler", title="source", **way)["latent"]
        quick_edit = graph.add("InversionSampler", title="target", positive=target, **way)["latent"]
    with graph.group("5 Null-text in standard samplers"):
        knobs = dict(model=model["model"], latent_image=found["noisy_latent"], cfg=CFG, sampler_name="euler", **STEPS)
        knobs |= dict(add_noise="disable", noise_seed=0, start_at_step=0, end_at_step=10000, return_with_leftover_noise="disable")
        plain = graph.add("KSamplerAdvanced", title="empty negative", positive=source, negative=empty, **knobs)
        back = graph.add("KSamplerAdvanced", title="null-text negative", positive=source, negative=found["negative"], **knobs)
        guider = graph.add("CFGGuider", model=model["model"], positive=target, negative=found["negative"], cfg=CFG)
        euler, size = graph.add("KSamplerSelect", sampler_name="euler"), latent_size(graph, 1)
        given = dict(noise=found["noise"], guider=guider, sampler=euler, sigmas=found["sigmas"], latent_image=size)
        edit = graph.add("SamplerCustomAdvanced", title="edit", **given)["output"]
    with graph.group("6 Images"):
        graph.add("PreviewImage", title="image", images=image)
        graph.add("PreviewImage", title="loss curve", images=found["loss_curve"])
        made = {"negative-prompt back": quick_back, "negative-prompt edit": quick_edit}
        made |= {"empty negative": plain, "null-text back": back, "null-text edit": edit}
        for title, latent in made.items():
            saved(graph, model["vae"], latent, f"null_text_{title.replace(' ', '_')}", title)


WORKFLOWS = [null_text]
