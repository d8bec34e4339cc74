"""The picture that a VLM is shown: the upright first frame, which a region's box is about."""

import base64
import io

from abc_embed.errors import ImageError
from abc_embed.inputs import open_image, read_header

# Formats that endpoints know, by how their files begin.
_MEDIA_TYPES = {
    b"\x89PNG": "image/png",
    b"\xff\xd8\xff": "image/jpeg",
    b"GIF8": "image/gif",
    b"RIFF": "image/webp",
}
_JPEG_QUALITY = 95


def encode_image(image: bytes) -> tuple[str, tuple[int, int]]:
    """(`data:` URL, (width, height)) of the picture as it is seen here: upright, one frame, opaque.

    A file that shows that to everybody is sent as it is; another as JPEG if it is one, else as PNG.

    Raises:
        ImageError: it cannot be opened.
    """
    picture = open_image(image)
    media_type = next((kind for magic, kind in _MEDIA_TYPES.items() if image.startswith(magic)), "")
    if not media_type or not is_plain(image):
        buffer = io.BytesIO()
        if media_type == "image/jpeg":
            picture.save(buffer, format="JPEG", quality=_JPEG_QUALITY, subsampling=0)
        else:
            picture.save(buffer, format="PNG")
            media_type = "image/png"
        image = buffer.getvalue()
    return f"data:{media_type};base64,{base64.b64encode(image).decode()}", picture.size


def is_plain(image: bytes) -> bool:
    """Whether every program sees in the file what is seen here."""
    try:
        return read_header(image).plain
    except ImageError:  # which shows where it is opened
        return True
