"""Writes a blueprint: a subgraph that ComfyUI offers in its node library as one node, from a description like that of a `Graph`.

    blueprint = Blueprint("Brighten", server.object_info(), "Makes an image brighter.", aliases=["light"])
    image = blueprint.take("image", "IMAGE")
    share = blueprint.take("how_much", "FLOAT", "how much", value=0.5)
    with blueprint.group("1 Work"):
        made = blueprint.add("SomeNode", image=image, share=share)
    blueprint.give("image", made["image"])
    blueprint.show(blueprint.add("PreviewImage", images=made["image"]))
    blueprint.save("subgraphs/Brighten.json")

An input with a value is a widget of the node, and may set several nodes inside; one without is a socket.
"""

import json
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from .graph import (
    GAP,
    OPTIONAL_SHAPE,
    OWN_REGISTRY_ID,
    SLOT_HEIGHT,
    Graph,
    Node,
    Output,
    group_json,
    node_json,
    number_links,
    place_columns,
)

INPUTS, OUTPUTS = -10, -20  # ids of the two ends of a subgraph
CATEGORY = "Controlled Diffusion"
PORT_WIDTH, WIDTH = 160, 440
PREVIEW = "$$canvas-image-preview"


@dataclass(frozen=True)
class Port:
    """An input or an output of the blueprint; an input with a value is a widget."""

    name: str
    type: str
    label: str
    value: object = None
    required: bool = True
    output: Output | None = None  # inside, where it is an output

    @property
    def is_widget(self) -> bool:
        return self.value is not None

    @property
    def shown(self) -> dict:
        """The socket of the node that stands for the blueprint."""
        made = {"name": self.name, "label": self.label, "type": self.type}
        if self.output:
            return {**made, "links": []}
        kind = {"widget": {"name": self.name}} if self.is_widget else {} if self.required else {"shape": OPTIONAL_SHAPE}
        return {**made, "link": None, **kind}


class Blueprint(Graph):
    """A subgraph in the making, with inputs, outputs and previews of its own."""

    first_id = 101  # the frontend renumbers nodes that have the id of one outside

    def __init__(self, title: str, object_info: Mapping, description: str, aliases: Sequence[str] = ()):
        super().__init__(title, object_info)
        self.description, self.aliases = description, list(aliases)
        self.taken: list[Port] = []
        self.given: list[Port] = []
        self.previews: list[Node] = []
        self._ends = Node(INPUTS, "inputs of the blueprint", None, MappingProxyType({"output_name": [], "output": []}))

    def take(self, name: str, kind: str, label: str = "", value=None, required: bool = True) -> Output:
        """An input of the blueprint, as nodes inside take it."""
        self.taken.append(Port(name, kind, label or name, value, required))
        return Output(self._ends, len(self.taken) - 1, kind)

    def give(self, name: str, output: Output, label: str = "") -> None:
        """An output of the blueprint."""
        self.given.append(Port(name, output.type, label or name, output=output))

    def show(self, node: Node) -> None:
        """Show the image of a node inside on the blueprint's own node."""
        self.previews.append(node)

    def build(self) -> dict:
        """The blueprint as the frontend would save it."""
        number = str(uuid.uuid5(uuid.NAMESPACE_URL, f"{OWN_REGISTRY_ID}/{self.title}"))
        return {
            "id": str(uuid.uuid5(uuid.NAMESPACE_URL, number)),
            "revision": 0,
            "last_node_id": 1,
            "last_link_id": 0,
            "nodes": [self._outside(number)],
            "links": [],
            "groups": [],
            "definitions": {"subgraphs": [self._inside(number)]},
            "config": {},
            "extra": {"BlueprintDescription": self.description, "BlueprintSearchAliases": self.aliases},
            "version": 0.4,
        }

    def _outside(self, number: str) -> dict:
        """The one node that a user sees."""
        widgets = [port for port in self.taken if port.is_widget]
        return {
            "id": 1,
            "type": number,
            "pos": [0, 0],
            "size": [WIDTH, self._height(widgets)],
            "flags": {},
            "order": 0,
            "mode": 0,
            "inputs": [port.shown for port in self.taken],
            "outputs": [port.shown for port in self.given],
            "title": self.title,
            "properties": {
                "proxyWidgets": [self._source(port) for port in widgets] + [[str(node.id), PREVIEW] for node in self.previews],
                "cnr_id": OWN_REGISTRY_ID,
            },
            "widgets_values": [port.value for port in widgets],
        }

    def _height(self, widgets: list[Port]) -> float:
        sockets = max(len(self.taken) - len(widgets), len(self.given)) * SLOT_HEIGHT
        return 60 + sockets + sum(110 if isinstance(port.value, str) else 30 for port in widgets)

    def _source(self, port: Port) -> list[str]:
        """The node and the widget inside that a widget outside stands for."""
        slot = self.taken.index(port)
        return next([str(node.id), name] for node in self.nodes for name, end in node.sockets.items() if (end.node.id, end.slot) == (INPUTS, slot))

    def _inside(self, number: str) -> dict:
        place_columns(self.columns)
        links = number_links(self.nodes)
        links |= {(port.output.node.id, port.output.slot, OUTPUTS, slot, port.type): len(links) + 1 + slot for slot, port in enumerate(self.given)}
        right = max(column.box[0] + column.box[2] for column in self.columns)
        names = ("origin_id", "origin_slot", "target_id", "target_slot", "type")
        return {
            "id": number,
            "version": 1,
            "state": {"lastGroupId": len(self.columns), "lastNodeId": self.nodes[-1].id, "lastLinkId": len(links), "lastRerouteId": 0},
            "revision": 0,
            "config": {},
            "name": self.title,
            "category": CATEGORY,
            "description": self.description,
            "inputNode": {"id": INPUTS, "bounding": self._box(-PORT_WIDTH - 2 * GAP, self.taken)},
            "outputNode": {"id": OUTPUTS, "bounding": self._box(right + GAP, self.given)},
            "inputs": [self._port(slot, port, links, INPUTS) for slot, port in enumerate(self.taken)],
            "outputs": [self._port(slot, port, links, OUTPUTS) for slot, port in enumerate(self.given)],
            "widgets": [],
            "nodes": [node_json(node, links) for node in self.nodes],
            "groups": [group_json(index, column) for index, column in enumerate(self.columns, 1) if column.title],
            "links": [{"id": link, **dict(zip(names, ends))} for ends, link in links.items()],
            "extra": {},
        }

    def _box(self, x: float, ports: list[Port]) -> list[float]:
        return [x, 0, PORT_WIDTH, 40 + SLOT_HEIGHT * len(ports)]

    def _port(self, slot: int, port: Port, links: Mapping[tuple, int], end: int) -> dict:
        place = slice(0, 2) if end == INPUTS else slice(2, 4)
        return {
            "id": str(uuid.uuid5(uuid.NAMESPACE_URL, f"{self.title}/{end}/{port.name}")),
            "name": port.name,
            "label": port.label,
            "type": port.type,
            "linkIds": [link for ends, link in links.items() if ends[place] == (end, slot)],
        }


def in_workflow(path: Path, graph: Graph, sources: Mapping[str, Output], texts: Sequence[str]) -> dict:
    """A workflow in which a blueprint's node stands beside those of `graph`; `sources` feeds its sockets by their types.

    Its empty texts become `texts`, in order.
    """
    saved = json.loads(path.read_text(encoding="utf-8"))
    workflow = graph.build()
    (node,) = saved["nodes"]
    node["id"] = workflow["last_node_id"] = workflow["last_node_id"] + 1
    node["pos"] = [max(column.box[0] + column.box[2] for column in graph.columns) + GAP, 0]
    left = iter(texts)
    node["widgets_values"] = [next(left) if value == "" else value for value in node["widgets_values"]]
    nodes = {each["id"]: each for each in workflow["nodes"]}
    for slot, socket in enumerate(node["inputs"]):
        if "widget" not in socket and (socket["type"] in sources or "shape" not in socket):  # one with a shape may stay open
            origin = sources[socket["type"]]
            socket["link"] = workflow["last_link_id"] = workflow["last_link_id"] + 1
            workflow["links"].append([socket["link"], origin.node.id, origin.slot, node["id"], slot, socket["type"]])
            leaving = nodes[origin.node.id]["outputs"][origin.slot]
            leaving["links"] = [*(leaving["links"] or []), socket["link"]]
    return {**workflow, "nodes": [*workflow["nodes"], node], "definitions": saved["definitions"]}
