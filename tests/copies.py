"""What happens to an image on its way into a data set a second time; the tests plant these copies."""

import io

from PIL import Image, ImageEnhance, ImageOps


def _again(image, **how):
    buffer = io.BytesIO()
    image.save(buffer, **how)
    return Image.open(buffer).convert("RGB")


def _shifted(image, pixels):
    moved = Image.new("RGB", image.size)
    moved.paste(image, (pixels, -pixels))
    return moved


COPIES = {
    "JPEG 90": lambda image: _again(image, format="JPEG", quality=90),
    "PNG": lambda image: _again(image, format="PNG"),
    "turned by 90": lambda image: image.transpose(Image.Transpose.ROTATE_90),
    "turned by 180": lambda image: image.transpose(Image.Transpose.ROTATE_180),
    "turned by 270": lambda image: image.transpose(Image.Transpose.ROTATE_270),
    "mirrored": ImageOps.mirror,
    "rescaled to 0.8": lambda image: image.resize([round(0.8 * side) for side in image.size], Image.Resampling.BICUBIC),
    "shifted by 8 px": lambda image: _shifted(image, 8),
    "brightened by 10 %": lambda image: ImageEnhance.Brightness(image).enhance(1.1),
    "cropped by 16 px": lambda image: image.crop((16, 16, image.width - 16, image.height - 16)),
}
"""By name, from an RGB image to an RGB image."""

SAME_PIXELS = ("PNG",)  # copies that are no near but an exact duplicate
