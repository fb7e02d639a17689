"""The demo model itself."""

from .parts import ksampler, latent_size, prompt_nodes, saved


def demo_model(graph):
    graph.note(
        "# The demo model\n\nA tiny text-to-image model that ships with the pack: drawn things on ten grounds, 192 x 192, seconds on a laptop.\n\n"
        "Colors: red, orange, yellow, green, blue, purple. Shapes: circle, square, triangle, star, cross. Backgrounds: white, gray, "
        "black, pink. Also: striped, dotted, small, large; on the left, on the right, at the top, at the bottom."
    )
    with graph.group("1 Model"):
        model = graph.add("DemoModelLoader")
    with graph.group("2 Prompt"):
        text = "a large striped blue star and a small red circle on a gray background"
        positive, negative = prompt_nodes(graph, model, positive=text, negative="")
        size = latent_size(graph, 4)
    with graph.group("3 Sample"):
        latent = ksampler(graph, model["model"], positive, negative, size)
    with graph.group("4 Image"):
        saved(graph, model["vae"], latent, "demo_model")


WORKFLOWS = [demo_model]
