"""One image that shows many: a titled row for each workflow, labeled thumbnails in it."""

from PIL import Image, ImageDraw, ImageFont

THUMBNAIL, PER_LINE, MARGIN = 192, 6, 16
LABEL_HEIGHT, TITLE_HEIGHT, HEAD_HEIGHT = 24, 40, 60
WIDTH = PER_LINE * (THUMBNAIL + MARGIN) + MARGIN
PAPER, INK, FAINT, ALARM = "#ffffff", "#202020", "#606060", "#b00020"

Row = tuple[str, "str | list[tuple[str, Image.Image]]"]


def draw_contact_sheet(title: str, rows: list[Row]) -> Image.Image:
    """``rows`` holds (title, labeled images) or (title, error message)."""
    sheet = Image.new("RGB", (WIDTH, HEAD_HEIGHT + sum(row_height(content) for _, content in rows) + MARGIN), PAPER)
    draw = ImageDraw.Draw(sheet)
    draw.text((MARGIN, MARGIN), title, INK, font(26))
    top = HEAD_HEIGHT
    for row_title, content in rows:
        draw_row(sheet, draw, top, row_title, content)
        top += row_height(content)
    return sheet


def row_height(content) -> int:
    lines = 0 if isinstance(content, str) else -(-len(content) // PER_LINE)
    return TITLE_HEIGHT + (lines * (THUMBNAIL + LABEL_HEIGHT + MARGIN) or LABEL_HEIGHT)


def draw_row(sheet: Image.Image, draw: ImageDraw.ImageDraw, top: int, title: str, content) -> None:
    draw.line((MARGIN, top, WIDTH - MARGIN, top), FAINT)
    draw.text((MARGIN, top + 10), title, INK, font(20))
    if isinstance(content, str):
        message = shorten(draw, "failed: " + " ".join(content.split()), 14, WIDTH - 2 * MARGIN)
        draw.text((MARGIN, top + TITLE_HEIGHT), message, ALARM, font(14))
        return
    for index, (label, image) in enumerate(content):
        left = MARGIN + (index % PER_LINE) * (THUMBNAIL + MARGIN)
        line = top + TITLE_HEIGHT + (index // PER_LINE) * (THUMBNAIL + LABEL_HEIGHT + MARGIN)
        sheet.paste(thumbnail(image), (left, line))
        draw.text((left, line + THUMBNAIL + 4), shorten(draw, label, 14, THUMBNAIL), FAINT, font(14))


def font(size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.load_default(size)


def thumbnail(image: Image.Image) -> Image.Image:
    """The image on a square; small ones are enlarged without smoothing, so that what the model made stays visible."""
    scale = THUMBNAIL / max(image.size)
    size = tuple(max(1, round(side * scale)) for side in image.size)
    resized = image.convert("RGB").resize(size, Image.Resampling.NEAREST if scale > 1 else Image.Resampling.LANCZOS)
    square = Image.new("RGB", (THUMBNAIL, THUMBNAIL), "#f0f0f0")
    square.paste(resized, ((THUMBNAIL - size[0]) // 2, (THUMBNAIL - size[1]) // 2))
    return square


def shorten(draw: ImageDraw.ImageDraw, text: str, size: int, width: int) -> str:
    while draw.textlength(text, font(size)) > width:
        text = text[:-2].rstrip("…") + "…"
    return text
