"""The demo model itself."""

from .parts import ksampler, latent_size, prompt_nodes, saved


def demo_model(graph):
    graph.note(
        "# The demo model\n\nA tiny text-to-image model that ships with the pack. Its words:\n\n"
        "- cat, dog, cow, pig, elephant, penguin, owl · *car*, airplane · house, castle · tree, palm tree, cactus, sunflower, *flower*, "
        "mushroom · apple, strawberry, cake · guitar, *umbrella*, *balloon*, *book*, *shirt*\n- red, orange, yellow, green, blue, purple "
        "or pink: those in italics\n- small, large · on the left, in the middle, on the right\n- on the beach, on grass, in the snow, at "
        "night, on a wooden table, in front of a brick wall, on the water, in the desert, in the sky, on a white background\n- a cartoon "
        "of, a 3d render of, a watercolor of, a pencil drawing of\n\nTry: *a watercolor of a castle in the snow*."
    )
    with graph.group("1 Model"):
        model = graph.add("DemoModelLoader")
    with graph.group("2 Prompt"):
        text = "a red car on the left and a palm tree on the right on the beach"
        positive, negative = prompt_nodes(graph, model, positive=text, negative="")
        size = latent_size(graph, 4)
    with graph.group("3 Sample"):
        latent = ksampler(graph, model["model"], positive, negative, size)
    with graph.group("4 Image"):
        saved(graph, model["vae"], latent, "demo_model")


WORKFLOWS = [demo_model]
