"""ViTAS's networks: their text form, those with a name, and the count that its tables give.

`16/230;3,432,720;...` is patch and width of the stream, then heads, width of queries, keys and values together, and
MLP width of every block. The retrained networks are standard pre-norm transformers with a bias in qkv. Unlike the
original, attention is scaled by the true width of a head (48 in ViTAS-C; the original scales by 230 // 3), and the last
LayerNorm has the eps of the others, 1e-6.
"""

from __future__ import annotations

from models.spec import BlockSpec, ViTSpec

_FORM = "PATCH/WIDTH;HEADS,QKV,MLP;HEADS,QKV,MLP;..., such as 16/230;3,432,720;3,432,720"

# Names of what the original tabulates without saying how the network is built.
UNPUBLISHED = ("vitas_b", "vitas_e", "vitas_f")

# Published networks, and the largest ones of the search spaces: 16 slots or 12 blocks up to 1.6 G, 13 blocks to 4.9 G.
DEFINITIONS = {
    "vitas_a": "16/154;12,288,1008;16,720,576;6,288,1296;16,1008,720;16,1152,1008;16,864,1152;16,1440,1296",
    "vitas_c": "16/230" + ";3,432,720" * 12,
    "space_16_slots": "16/384" + ";16,1440,1440" * 16,
    "space_12_blocks": "16/384" + ";16,1440,1440" * 12,
    "space_13_wide_blocks": "16/768" + ";16,2880,2880" * 13,
}


def parse_vitas(text: str, image_px: int = 224, classes: int = 1000, name: str = "") -> ViTSpec:
    """The network that `text` defines, every head a softmax; ValueError names the part that is wrong."""
    first, *rest = text.strip().rstrip(";").split(";")
    patch_px, dim = _numbers(first, "/", 2, text)
    if not rest:
        raise ValueError(f"{text!r} defines no block; write {_FORM}")
    blocks = tuple(_block(part, text) for part in rest)
    return ViTSpec(image_px, patch_px, dim, classes, blocks, residual="pre_norm", qkv_bias=True, name=name)


def macs_published(spec: ViTSpec) -> int:
    """Multiply-accumulates as ViTAS counts them: without the class token, and the head once for every patch.

    `Trace.macs` of the shape reading is the true count.
    """
    patches = spec.tokens - 1
    total = spec.in_channels * spec.dim * patches * spec.patch_px**2 + patches * spec.dim * spec.classes
    for block in spec.blocks:
        width = block.attention_width
        total += patches * (4 * spec.dim * width + 2 * patches * width + 2 * spec.dim * block.mlp_width)
    return total


def _block(part: str, text: str) -> BlockSpec:
    heads, qkv_width, mlp_width = _numbers(part, ",", 3, text)
    step = 3 * heads
    if qkv_width % step:
        below = qkv_width // step * step
        near = ", ".join(str(width) for width in (below, below + step) if width)
        raise ValueError(
            f"{part} in {text!r}: {heads} heads do not divide qkv width {qkv_width} / 3; these fit: {near}"
        )
    return BlockSpec(("softmax",) * heads, qkv_width // step, mlp_width)


def _numbers(part: str, separator: str, count: int, text: str) -> list[int]:
    pieces = part.split(separator)
    if len(pieces) != count or not all(piece.strip().isdecimal() and int(piece) > 0 for piece in pieces):
        raise ValueError(f"cannot read {part!r} in {text!r}; write {_FORM}")
    return [int(piece) for piece in pieces]
