"""Which classes do the public benchmarks have, and how do their raw label values become train ids?

Plain data; `common.data.classes` makes tables of it. A value that no range covers is no valid label.
"""

from __future__ import annotations

CITYSCAPES_27: tuple[tuple[str, tuple[int, int, int]], ...] = (
    ("road", (128, 64, 128)),
    ("sidewalk", (244, 35, 232)),
    ("parking", (250, 170, 160)),
    ("rail track", (230, 150, 140)),
    ("building", (70, 70, 70)),
    ("wall", (102, 102, 156)),
    ("fence", (190, 153, 153)),
    ("guard rail", (180, 165, 180)),
    ("bridge", (150, 100, 100)),
    ("tunnel", (150, 120, 90)),
    ("pole", (153, 153, 153)),
    ("polegroup", (120, 120, 120)),
    ("traffic light", (250, 170, 30)),
    ("traffic sign", (220, 220, 0)),
    ("vegetation", (107, 142, 35)),
    ("terrain", (152, 251, 152)),
    ("sky", (70, 130, 180)),
    ("person", (220, 20, 60)),
    ("rider", (255, 0, 0)),
    ("car", (0, 0, 142)),
    ("truck", (0, 0, 70)),
    ("bus", (0, 60, 100)),
    ("caravan", (0, 0, 90)),
    ("trailer", (0, 0, 110)),
    ("train", (0, 80, 100)),
    ("motorcycle", (0, 0, 230)),
    ("bicycle", (119, 11, 32)),
)

# The 27 coarse classes of CocoStuff over its 182 fine ids: first 12 things, then 15 kinds of stuff.
COCOSTUFF_27: tuple[tuple[str, str], ...] = (
    ("electronic", "71-76"),
    ("appliance", "77-82"),
    ("food (thing)", "51-60"),
    ("furniture (thing)", "61-70"),
    ("indoor", "83-90"),
    ("kitchen", "43-50"),
    ("accessory", "25-32"),
    ("animal", "15-24"),
    ("outdoor", "9-14"),
    ("person", "0"),
    ("sports", "33-42"),
    ("vehicle", "1-8"),
    ("ceiling", "101-102"),
    ("floor", "100,113-117"),
    ("food (stuff)", "120-121,152,169"),
    ("furniture (stuff)", "97,106-107,109,111,122,129,132,155,160,164"),
    ("raw material", "99,131,138,142"),
    ("textile", "91-92,103-104,108,130,136,140,151,166-167"),
    ("wall", "170-176"),
    ("window", "179-180"),
    ("building", "94-95,127,150,157,165"),
    ("ground", "110,124-125,135,139,143-144,146,148,153,158"),
    ("plant", "93,96,118,123,128,133,141,162,168"),
    ("sky", "105,156"),
    ("solid", "126,134,149,159,161,181"),
    ("structural", "98,112,137,145,163"),
    ("water", "119,147,154,177-178"),
)

VOC_21 = (
    "background",
    "aeroplane",
    "bicycle",
    "bird",
    "boat",
    "bottle",
    "bus",
    "car",
    "cat",
    "chair",
    "cow",
    "dining table",
    "dog",
    "horse",
    "motorbike",
    "person",
    "potted plant",
    "sheep",
    "sofa",
    "train",
    "tv monitor",
)


def expand(ranges: str) -> list[int]:
    """Turn ``1-3,7`` into [1, 2, 3, 7]."""
    values: list[int] = []
    for part in ranges.split(","):
        first, _, last = part.partition("-")
        values += range(int(first), int(last or first) + 1)
    return values


def cocostuff_remap(coarse: tuple[int, ...], ignore: int) -> dict[int, int]:
    """Return fine id -> index in ``coarse`` (coarse ids 0..26), ``ignore`` for all other fine ids."""
    return {
        fine: coarse.index(i) if i in coarse else ignore
        for i, (_, ranges) in enumerate(COCOSTUFF_27)
        for fine in expand(ranges)
    }


def voc_colour(index: int) -> tuple[int, int, int]:
    """Return the colour of the devkit: bits of the index spread over the channels from the top."""
    rgb = [0, 0, 0]
    for bit in range(8):
        for channel in range(3):
            rgb[channel] |= (index >> (3 * bit + channel) & 1) << (7 - bit)
    return rgb[0], rgb[1], rgb[2]
