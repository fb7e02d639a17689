"""From a workflow as the frontend saves it (litegraph schema 0.4) to the prompt that the server runs.

What a node's inputs are is read from the server's ``/object_info``; the rules are those of the frontend's own
``app.graphToPrompt()``, with which a browser test compares this.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

AUTOGROW = "COMFY_AUTOGROW_V3"
DYNAMIC_COMBO = "COMFY_DYNAMICCOMBO_V3"
WIDGET_TYPES = {
    "INT",
    "FLOAT",
    "STRING",
    "BOOLEAN",
    "COMBO",
    DYNAMIC_COMBO,
    "COLOR",
    "COLORS",
    "CURVE",
    "BOUNDING_BOX",
    "BOUNDING_BOXES",
    "PAINTER",
    "IMAGECOMPARE",
}
DEFAULTS = {  # of a fresh node in the frontend
    "INT": 0,
    "FLOAT": 0.0,
    "STRING": "",
    "BOOLEAN": False,
    "IMAGECOMPARE": ["", ""],
    "CURVE": {"points": [[0, 0], [1, 1]], "interpolation": "monotone_cubic"},
}
UPLOADS = ("image_upload", "animated_image_upload", "video_upload", "audio_upload")
SEEDS = ("seed", "noise_seed")
NOTES = ("Note", "MarkdownNote")
REROUTE = "Reroute"
NEVER, BYPASS = 2, 4  # litegraph's node modes; 0 is the ordinary one


@dataclass(frozen=True)
class Input:
    """One input of a node: a socket, or a widget with its value on the node."""

    name: str
    type: str
    options: Mapping = field(default_factory=dict)
    required: bool = True

    @property
    def widget(self) -> str:
        """The type of its widget, if it has one."""
        return self.options.get("widgetType", self.type)

    @property
    def is_widget(self) -> bool:
        return self.widget in WIDGET_TYPES and not self.options.get("forceInput")

    @property
    def has_control(self) -> bool:
        """Whether the frontend keeps a second value behind it: 'fixed', 'randomize' and so on."""
        return self.type == "INT" and bool(self.options.get("control_after_generate", self.name in SEEDS))

    @property
    def choices(self) -> list:
        """What a combo offers; empty when anything goes."""
        if self.type == DYNAMIC_COMBO:
            return [option["key"] for option in self.options["options"]]
        return list(self.options.get("options") or []) if self.type == "COMBO" else []

    @property
    def default(self):
        if "default" in self.options:
            return self.options["default"]
        if self.choices:
            return self.choices[0]
        return DEFAULTS.get(self.type)


def inputs_of(info: Mapping, chosen: Mapping) -> Iterator[Input]:
    """The inputs of a node type in the frontend's order.

    Which inputs a dynamic combo has depends on its value: ``chosen[name]`` is looked up after the combo itself was
    yielded, so the caller can fill it in on the way.
    """
    for section in ("required", "optional"):
        specs = info["input"].get(section, {})
        for name, spec in specs.items():
            yield from expand(name, spec, section == "required", chosen)
        if any(is_upload(spec) for spec in specs.values()):
            yield Input("upload", "COMBO", {"default": "image"})
        if any(options_of(spec).get("video_upload") for spec in specs.values()):
            yield Input("video-preview", "STRING")


def expand(name: str, spec: list, required: bool, chosen: Mapping) -> Iterator[Input]:
    kind, options = spec[0], options_of(spec)
    if isinstance(kind, list):
        kind, options = "COMBO", {**options, "options": kind}
    if kind == AUTOGROW:
        yield from expand_autogrow(name, options["template"])
        return
    yield Input(name, kind, options, required)
    if kind == DYNAMIC_COMBO:
        for option in options["options"]:
            if option["key"] == chosen[name]:
                yield from expand_group(name, option["inputs"], chosen)


def expand_group(name: str, inputs: Mapping, chosen: Mapping) -> Iterator[Input]:
    for section in ("required", "optional"):
        for inner, spec in inputs.get(section, {}).items():
            yield from expand(f"{name}.{inner}", spec, section == "required", chosen)


def expand_autogrow(name: str, template: Mapping) -> Iterator[Input]:
    ((kind, *options),) = [spec for section in template["input"].values() for spec in section.values()]
    names = template.get("names") or [f"{template['prefix']}{index}" for index in range(template["max"])]
    for index, inner in enumerate(names):
        forced = {**(options[0] if options else {}), "forceInput": True}
        yield Input(f"{name}.{inner}", kind, forced, required=index < template["min"])


def is_upload(spec: list) -> bool:
    """Whether the frontend puts an upload button behind this input."""
    return (isinstance(spec[0], list) or spec[0] == "COMBO") and any(options_of(spec).get(upload) for upload in UPLOADS)


def options_of(spec: list) -> Mapping:
    return spec[1] if len(spec) > 1 else {}


def to_prompt(workflow: Mapping | Path, object_info: Mapping) -> dict:
    """The API prompt of a saved workflow. Raises ValueError for a node type that the server does not know."""
    if isinstance(workflow, (str, Path)):
        workflow = json.loads(Path(workflow).read_text(encoding="utf-8"))
    nodes, links = opened_subgraphs(workflow)
    return {str(node["id"]): prompt_node(node, nodes, links, object_info) for node in nodes.values() if runs(node)}


def opened_subgraphs(workflow: Mapping) -> tuple[dict, dict]:
    """(nodes by id, origin and slot of each link by its id) with the nodes of a subgraph instead of the one that stands for it.

    These have ids like "7:2", as the frontend gives them; a widget that is set from outside has its value in "set".
    """
    kinds = {each["id"]: each for each in workflow.get("definitions", {}).get("subgraphs", [])}
    nodes = {node["id"]: node for node in workflow["nodes"]}
    links = {link[0]: tuple(link[1:3]) for link in workflow["links"]}
    for outer in [node for node in nodes.values() if node["type"] in kinds]:
        del nodes[outer["id"]]
        inside, ends = opened(outer, kinds[outer["type"]], links)
        nodes |= inside
        links |= {link: ends.get(end, end) for link, end in links.items()}
    return nodes, links


def opened(outer: Mapping, kind: Mapping, links: dict) -> tuple[dict, dict]:
    """(the nodes inside by id, which of their outputs stands behind each output of the node); their links join `links`."""
    values = iter(outer.get("widgets_values") or [])
    given = [next(values, None) if "widget" in socket else None for socket in outer["inputs"]]
    ends = {}
    for link in kind["links"]:
        origin, slot = link["origin_id"], link["origin_slot"]
        if link["target_id"] == kind["outputNode"]["id"]:
            ends[outer["id"], link["target_slot"]] = f"{outer['id']}:{origin}", slot
        if origin != kind["inputNode"]["id"]:
            links[outer["id"], link["id"]] = f"{outer['id']}:{origin}", slot
        elif outer["inputs"][slot].get("link") is not None:
            links[outer["id"], link["id"]] = links[outer["inputs"][slot]["link"]]
    from_outside = {link["id"]: link["origin_slot"] for link in kind["links"] if link["origin_id"] == kind["inputNode"]["id"]}
    return {f"{outer['id']}:{node['id']}": opened_node(node, outer["id"], links, from_outside, given) for node in kind["nodes"]}, ends


def opened_node(node: Mapping, outer, links: Mapping, from_outside: Mapping, given: list) -> dict:
    """A node inside a subgraph with the links and the values that reach it."""
    sockets, values = [], {}
    for socket in node.get("inputs", []):
        link = (outer, socket.get("link"))
        sockets.append({**socket, "link": link if link in links else None})
        slot = from_outside.get(socket.get("link"))
        if slot is not None and link not in links and given[slot] is not None:
            values[socket["name"]] = given[slot]
    return {**node, "id": f"{outer}:{node['id']}", "inputs": sockets, "set": values}


def runs(node: Mapping) -> bool:
    return node["type"] not in (*NOTES, REROUTE) and node.get("mode", 0) not in (NEVER, BYPASS)


def prompt_node(node: Mapping, nodes: Mapping, links: Mapping, object_info: Mapping) -> dict:
    info = info_of(node["type"], object_info)
    inputs = read_widgets(node, info)
    inputs.pop("upload", None)
    inputs |= node.get("set", {})
    for socket in node.get("inputs", []):
        source = find_source(socket.get("link"), nodes, links)
        if source is not None:
            inputs[socket["name"]] = source
    return {"class_type": node["type"], "inputs": inputs, "_meta": {"title": node.get("title") or display_name(info)}}


def display_name(info: Mapping) -> str:
    return info.get("display_name") or info["name"]


def info_of(class_type: str, object_info: Mapping) -> Mapping:
    if class_type not in object_info:
        raise ValueError(f"The server does not know the node type {class_type!r}. Check its spelling, or install the pack that has it.")
    return object_info[class_type]


def read_widgets(node: Mapping, info: Mapping) -> dict:
    """The values of a node's widgets by name; the frontend saves them as a bare list, in the order of the inputs."""
    saved = iter(node.get("widgets_values") or [])
    values = {}
    for each in inputs_of(info, values):
        if each.is_widget:
            value = next(saved, each.default)
            values[each.name] = {"__value__": value} if isinstance(value, list) else value
            if each.has_control:
                next(saved, None)
    return values


def find_source(link: int | None, nodes: Mapping, links: Mapping) -> list | None:
    """The node and slot that a link really comes from: through reroutes and bypassed nodes; nothing from a muted one."""
    while link is not None:
        origin, slot = links[link]
        node = nodes[origin]
        if runs(node):
            return [str(origin), slot]
        link = passed_on(node, slot)
    return None


def passed_on(node: Mapping, slot: int) -> int | None:
    """The link that a node hands on at its output ``slot`` without running."""
    inputs = node.get("inputs", [])
    if node["type"] == REROUTE:
        return inputs[0].get("link")
    if node.get("mode") != BYPASS:
        return None
    kind = node["outputs"][slot]["type"]
    same_place = [inputs[slot]] if slot < len(inputs) else []
    return next((each.get("link") for each in (*same_place, *inputs) if each["type"] == kind), None)
