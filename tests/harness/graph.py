"""Writes a workflow that opens in the frontend, laid out for reading, from a short description in Python.

    graph = Graph("A red circle", server.object_info())
    with graph.group("1 Model"):
        model = graph.add("DemoModelLoader")
    with graph.group("2 Prompt"):
        positive = graph.add("CLIPTextEncode", title="positive", clip=model["clip"], text="a red circle")
    graph.note("What this shows, in Markdown.")
    graph.save("example_workflows/red_circle.json")

Every name and value is checked when it is given.
"""

import contextlib
import json
import math
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from .texts import CHARACTER_WIDTH, FOOTER_HEIGHT, GAP, GROUP_PADDING, NOTE_WIDTH, TALLEST_TEXT, TITLE_HEIGHT, note_nodes, text_height
from .workflow import AUTOGROW, NEVER, REROUTE, Input, display_name, expand_autogrow, info_of, inputs_of

# Measured in the frontend, in its own units.
SLOT_HEIGHT, WIDGET_HEIGHT, TEXT_FIELD_HEIGHT, IMAGE_HEIGHT = 20, 24, 36, 280
SAID_HEIGHT, SPARE_TEXT_HEIGHT = 80, 294  # the text of a running node; what a box of text gives up
NODE_WIDTH, TEXT_NODE_WIDTH = 300, 400
GROUP_TITLE_HEIGHT, TALLEST_COLUMN = 50, 1100
LARGE_WIDGETS = {"CURVE": (300, 300), "BOUNDING_BOX": (0, 96), "PAINTER": (600, 860), "IMAGECOMPARE": (400, 0)}  # width of the node, height
ROUTED = ("DemoModelLoader", "DemoInstructModelLoader")  # loaders that a user replaces: each of their outputs leaves by one link
REROUTE_SIZE = (75, 26)
OPTIONAL_SHAPE = 7  # litegraph draws such a socket hollow
OWN_REGISTRY_ID, HOST_REGISTRY_ID = "controlled-diffusion", "comfy-core"


@dataclass(frozen=True)
class Output:
    """One output of a node of the graph."""

    node: "Node"
    slot: int
    type: str


@dataclass(eq=False)
class Node:
    """A node of the graph; ``node["CLIP"]`` or ``node[1]`` is one of its outputs.

    ``models`` are the files that it loads, each with name, url and directory: ComfyUI offers to download what is missing.
    """

    id: int
    class_type: str
    title: str | None
    info: Mapping
    widgets: dict[str, object] = field(default_factory=dict)
    sockets: dict[str, Output] = field(default_factory=dict)
    inputs: list[Input] = field(default_factory=list)
    models: list[dict] = field(default_factory=list)
    size: tuple[float, float] = (NODE_WIDTH, 0)
    position: tuple[float, float] = (0, 0)
    mode: int = 0

    def __getitem__(self, output: str | int) -> Output:
        names = list(self.info["output_name"])
        if output not in names and output not in range(len(names)):
            raise ValueError(f"{self} has no output {output!r}; its outputs are {', '.join(names) or 'none'}.")
        slot = output if isinstance(output, int) else names.index(output)
        return Output(self, slot, self.info["output"][slot])

    def __str__(self) -> str:
        return f"node {self.id} ({self.class_type})"


@dataclass
class Column:
    """Nodes that stand below each other, with a titled box around them if there is a title."""

    title: str | None
    nodes: list[Node] = field(default_factory=list)
    box: tuple[float, float, float, float] = (0, 0, 0, 0)


class Graph:
    """A workflow in the making; every name and value is checked against ``object_info`` when it is given."""

    first_id = 1

    def __init__(self, title: str, object_info: Mapping):
        self.title = title
        self.object_info = object_info
        self.nodes: list[Node] = []
        self.columns: list[Column] = []
        self.notes: list[tuple[str, str]] = []
        self._inside_group = False

    def add(self, class_type: str, /, title: str | None = None, **inputs) -> Node:
        """Add a node. Each input is a widget's value or another node's output (or that node, if it has just one).

        An autogrowing input takes a list; an input of a dynamic combo is named with a dot: ``**{"mode.gain": 2}``.
        """
        node = Node(self.first_id + len(self.nodes), class_type, title, info_of(class_type, self.object_info))
        fill_inputs(node, spread_lists(node.info, inputs))
        node.size = node_size(node)
        self.nodes.append(node)
        self._column().nodes.append(node)
        return node

    @contextlib.contextmanager
    def group(self, title: str):
        """The nodes added inside stand in one titled column."""
        self.columns.append(Column(title))
        self._inside_group = True
        try:
            yield
        finally:
            self._inside_group = False

    def mute(self, *nodes: Node) -> None:
        """Nodes that do not run until a user switches them on; what hangs on them uses its widgets."""
        for node in nodes:
            node.mode = NEVER

    def note(self, text: str, title: str = "Note") -> None:
        """A Markdown note at the left edge. Values in backticks get quotes: Nodes 2.0 draws code in notes unreadably."""
        self.notes.append((title, text.replace("`", "'")))

    def add_to_note(self, text: str) -> None:
        """More for the end of the first note."""
        title, before = self.notes[0]
        self.notes[0] = title, before + text

    @property
    def models(self) -> list[dict]:
        """The files that its loaders need."""
        return [model for node in self.nodes for model in node.models]

    def _column(self) -> Column:
        """The open group; outside of groups, a column without a box."""
        if not self.columns or (self.columns[-1].title is not None and not self._inside_group):
            self.columns.append(Column(None))
        return self.columns[-1]

    def reroute(self, output: Output) -> None:
        """All links of an output leave from a reroute, which stands in the output's column."""
        followers = [(node, name) for node in self.nodes for name, end in node.sockets.items() if end == output]
        info = {"name": REROUTE, "output_name": [""], "output": [output.type]}
        passing = Node(len(self.nodes) + 1, REROUTE, None, info, sockets={"": output}, inputs=[Input("", "*")], size=REROUTE_SIZE)
        for node, name in followers:
            node.sockets[name] = passing[0]
        self.nodes.append(passing)
        column = next(column for column in self.columns if output.node in column.nodes)
        column.nodes.insert(column.nodes.index(output.node) + 1 + output.slot, passing)

    def _route_loaders(self) -> None:
        """To replace a loader, no more links than it has outputs must be moved."""
        for loader in [node for node in self.nodes if node.class_type in ROUTED]:
            used = [end for node in self.nodes for end in node.sockets.values() if end.node is loader]
            for output in (loader[slot] for slot in range(len(loader.info["output"]))):
                if used.count(output) > 1:
                    self.reroute(output)

    def build(self) -> dict:
        """The workflow as the frontend would save it."""
        self._route_loaders()
        place_columns(self.columns)
        links = number_links(self.nodes)
        notes = note_nodes(self.notes, first_id=len(self.nodes) + 1)
        return {
            "id": str(uuid.uuid5(uuid.NAMESPACE_URL, self.title)),
            "revision": 0,
            "last_node_id": len(self.nodes) + len(notes),
            "last_link_id": len(links),
            "nodes": [node_json(node, links) for node in self.nodes] + notes,
            "links": [[number, *ends] for ends, number in links.items()],
            "groups": [group_json(index, column) for index, column in enumerate(self.columns, 1) if column.title],
            "config": {},
            "extra": {"ds": {"scale": 0.7, "offset": [NOTE_WIDTH + 3 * GAP, 3 * GAP]}},
            "version": 0.4,
        }

    def save(self, path: Path | str) -> Path:
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(self.build(), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        return path


def spread_lists(info: Mapping, given: Mapping) -> dict:
    """A list given to an autogrowing input becomes one dotted entry for each item."""
    specs = {name: spec for section in ("required", "optional") for name, spec in info["input"].get(section, {}).items()}
    spread = {}
    for name, value in given.items():
        if isinstance(value, (list, tuple)) and specs.get(name, [None])[0] == AUTOGROW:
            names = [each.name for each in expand_autogrow(name, specs[name][1]["template"])]
            if len(value) > len(names):
                raise ValueError(f"{name} takes at most {len(names)} items, got {len(value)}.")
            spread.update(zip(names, value, strict=False))
        else:
            spread[name] = value
    return spread


def fill_inputs(node: Node, given: Mapping) -> None:
    """Put each given value on its widget or socket, and defaults on the other widgets."""
    left = dict(given)
    for each in inputs_of(node.info, node.widgets):
        node.inputs.append(each)
        value = left.pop(each.name, None)
        if isinstance(value, (Node, Output)):
            node.sockets[each.name] = checked_output(node, each, value)
            value = None
        elif not each.is_widget and (value is not None or each.required):
            raise ValueError(f"{node}: {each.name} needs the output of a node ({each.type}), got {value!r}.")
        if each.is_widget:
            node.widgets[each.name] = each.default if value is None else checked_value(node, each, value)
    if left:
        raise ValueError(f"{node} has no input {', '.join(left)}; its inputs are {', '.join(each.name for each in node.inputs)}.")


def checked_output(node: Node, target: Input, value: Node | Output) -> Output:
    if isinstance(value, Node):
        if len(value.info["output"]) != 1:
            raise ValueError(f"{node}: {target.name} needs one output of {value}; choose from {', '.join(value.info['output_name'])}.")
        value = value[0]
    if not fits(value.type, target.type):
        raise ValueError(f"{node}: {target.name} takes {target.type}, but output {value.slot} of {value.node} is {value.type}.")
    return value


def fits(source: str, target: str) -> bool:
    open_ended = "*" in (source, target) or "MATCHTYPE" in source + target
    return open_ended or bool(set(str(source).split(",")) & set(target.split(",")))


def checked_value(node: Node, target: Input, value):
    if target.choices and value not in target.choices:
        raise ValueError(f"{node}: {target.name} is {value!r}; choose one of {', '.join(map(str, target.choices))}.")
    if target.type in ("INT", "FLOAT"):
        low, high = target.options.get("min", -math.inf), target.options.get("max", math.inf)
        if not low <= value <= high:
            raise ValueError(f"{node}: {target.name} is {value!r}; give a value from {low} to {high}.")
    return value


def shown_inputs(node: Node) -> list[Input]:
    """The inputs that the frontend shows: of an autogrowing input, the sockets in use and one to spare."""
    shown, spare = [], set()
    for each in node.inputs:
        group = each.name.rpartition(".")[0] if not each.is_widget else ""
        free = group and each.name not in node.sockets and not each.required
        if free and group in spare:
            continue
        if free:
            spare.add(group)
        shown.append(each)
    return shown


def node_size(node: Node) -> tuple[float, float]:
    """Enough for both canvases: Nodes 2.0 has taller text fields and a footer with the pack's name; and for what a running node shows."""
    widgets = [each for each in node.inputs if each.is_widget]
    texts = [each for each in widgets if each.options.get("multiline")]
    sockets = len(shown_inputs(node)) - len(widgets)
    width = max([TEXT_NODE_WIDTH if texts else NODE_WIDTH, *(LARGE_WIDGETS.get(each.widget, (0, 0))[0] for each in widgets)])
    height = 16 + max(sockets, len(node.info["output"])) * SLOT_HEIGHT + (FOOTER_HEIGHT if is_own(node.info) else 0)
    height += sum(widget_height(each, node.widgets[each.name], width) for each in widgets)
    height += room_to_report(node, max((widget_height(each, node.widgets[each.name], width) for each in texts), default=0))
    width = max(width, CHARACTER_WIDTH * len(node.title or display_name(node.info)) + 60)
    return width, height


def widget_height(widget: Input, value, width: float) -> float:
    """Its row, and what it draws or holds below."""
    if widget.options.get("multiline"):
        return WIDGET_HEIGHT + min(text_height(str(value), width, least=70), 0.8 * TALLEST_TEXT)  # the rest of a node's room is its own too
    row = TEXT_FIELD_HEIGHT if widget.type == "STRING" else WIDGET_HEIGHT
    return row * (1 + widget.has_control) + LARGE_WIDGETS.get(widget.widget, (0, 0))[1]


def room_to_report(node: Node, text: float) -> float:
    """For an image, and for the text below its widgets: how far it is, or what "auto" means for the model.

    A box of text, `text` high, gives its own room to them.
    """
    speaks = is_own(node.info) and "GUIDER" not in node.info["output"] and any(each.type == "MODEL" for each in node.inputs)
    wanted = SAID_HEIGHT * speaks + IMAGE_HEIGHT * shows_image(node)
    return min(wanted, max(0, SPARE_TEXT_HEIGHT - text)) if text else wanted


def shows_image(node: Node) -> bool:
    images = {"IMAGE", "VIDEO"} & {*(each.type for each in node.inputs), *node.info["output"]}
    return bool((node.info.get("output_node") and images) or any(each.name == "upload" for each in node.inputs))


def place_columns(columns: list[Column]) -> None:
    """Columns from left to right, the nodes of each from top to bottom; a tall column goes on beside itself."""
    x = 0.0
    for column in columns:
        left, bottom = x, 0.0
        y, width = 0.0, 0.0
        for node in column.nodes:
            if y and y + node.size[1] > TALLEST_COLUMN:
                x, y, width = x + width + GAP, 0.0, 0.0
            node.position = (x, y)
            y += node.size[1] + TITLE_HEIGHT + GAP
            width, bottom = max(width, node.size[0]), max(bottom, y - GAP - TITLE_HEIGHT)
        top = -TITLE_HEIGHT - GROUP_TITLE_HEIGHT
        column.box = (left - GROUP_PADDING, top, x + width - left + 2 * GROUP_PADDING, bottom - top + GROUP_PADDING)
        x += width + 2 * GROUP_PADDING + GAP


def number_links(nodes: list[Node]) -> dict[tuple, int]:
    """Every link as (origin, slot, target, slot, type), with its number."""
    ends = []
    for node in nodes:
        slots = {each.name: index for index, each in enumerate(shown_inputs(node))}
        ends += [(output.node.id, output.slot, node.id, slots[name], output.type) for name, output in node.sockets.items()]
    return {each: number for number, each in enumerate(ends, 1)}


def node_json(node: Node, links: Mapping[tuple, int]) -> dict:
    incoming = {ends[3]: number for ends, number in links.items() if ends[2] == node.id}
    made = {
        "id": node.id,
        "type": node.class_type,
        "pos": list(node.position),
        "size": list(node.size),
        "flags": {},
        "order": node.id - 1,
        "mode": node.mode,
        "inputs": [input_json(each, incoming.get(slot)) for slot, each in enumerate(shown_inputs(node))],
        "outputs": [output_json(node, slot, links) for slot in range(len(node.info["output"]))],
        "properties": {
            "cnr_id": registry_id(node.info),
            "Node name for S&R": node.class_type,
            **({"models": node.models} if node.models else {}),
        },
        "widgets_values": widget_values(node),
    }
    return {**made, "title": node.title} if node.title else made


def input_json(each: Input, link: int | None) -> dict:
    made = {"name": each.name, "type": each.type, "link": link}
    if each.is_widget:
        made["widget"] = {"name": each.name}
    elif not each.required:
        made["shape"] = OPTIONAL_SHAPE
    return made


def output_json(node: Node, slot: int, links: Mapping[tuple, int]) -> dict:
    leaving = [number for ends, number in links.items() if ends[:2] == (node.id, slot)]
    return {"name": node.info["output_name"][slot], "type": node.info["output"][slot], "links": leaving or None}


def widget_values(node: Node) -> list:
    values = []
    for each in node.inputs:
        if each.is_widget:
            values += [node.widgets[each.name], *(["fixed"] if each.has_control else [])]
    return values


def registry_id(info: Mapping) -> str:
    """Where ComfyUI-Manager finds the node when it is missing."""
    return OWN_REGISTRY_ID if is_own(info) else HOST_REGISTRY_ID


def is_own(info: Mapping) -> bool:
    """Whether the pack has the node."""
    return info.get("python_module", "").startswith("custom_nodes.")


def group_json(number: int, column: Column) -> dict:
    return {"id": number, "title": column.title, "bounding": list(column.box), "color": "#3f789e", "font_size": 24, "flags": {}}
