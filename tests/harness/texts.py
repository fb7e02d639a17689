"""Boxes of text in a workflow: how high they are, and its notes."""

# Measured in the frontend, in its own units.
TITLE_HEIGHT, LINE_HEIGHT, FOOTER_HEIGHT, CHARACTER_WIDTH, TALLEST_TEXT = 30, 18, 24, 9, 400
GAP, GROUP_PADDING, NOTE_WIDTH = 40, 30, 420
WIDER_NOTES = (560, 720)


def text_height(text: str, width: float, least: float) -> float:
    per_line = (width - 40) / CHARACTER_WIDTH
    lines = sum(1 + int(len(line) / per_line) for line in text.split("\n"))
    return min(max(least, (lines + 1) * LINE_HEIGHT), TALLEST_TEXT)


def note_nodes(notes: list[tuple[str, str]], first_id: int) -> list[dict]:
    made, y = [], 0.0
    for number, (title, text) in enumerate(notes):
        size = note_size(text)
        position = [-size[0] - GROUP_PADDING - GAP, y]
        made.append(note_json(first_id + number, title, text, position, size))
        y += size[1] + TITLE_HEIGHT + GAP
    return made


def note_size(text: str) -> list[float]:
    """Wider where the text needs it."""
    heights = {width: text_height(text, width, least=120) for width in (NOTE_WIDTH, *WIDER_NOTES)}
    fitting = [width for width, height in heights.items() if height + FOOTER_HEIGHT < TALLEST_TEXT]
    width = fitting[0] if fitting else WIDER_NOTES[-1]
    return [width, heights[width] + FOOTER_HEIGHT]


def note_json(number: int, title: str, text: str, position: list, size: list) -> dict:
    return {
        "id": number,
        "type": "MarkdownNote",
        "pos": position,
        "size": size,
        "flags": {},
        "order": number - 1,
        "mode": 0,
        "inputs": [],
        "outputs": [],
        "title": title,
        "properties": {},
        "widgets_values": [text],
        "color": "#432",
        "bgcolor": "#653",
    }
