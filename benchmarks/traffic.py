"""How many bytes does a network travel with, whole and as changes, and how far does a rounded change fall?

    python benchmarks/traffic.py [--architecture deeplab] [--classes 11]

Serialized as in a run. Changes are drawn as AdamW makes them: most weights move alike, each row by its own length.
"""

from __future__ import annotations

import argparse

import numpy as np

from common import wire
from common.models.differences import CODES, SCALES, decode_change, encode_change
from common.models.network import build_network, network_to_arrays
from common.settings.network import Network


def payload(groups: wire.Groups, dtype: str = "float32") -> int:
    """Return the bytes of an update with these groups."""
    return wire.payload_bytes(wire.encode_update(wire.Update("site-0", "", groups), dtype))


def main() -> None:
    """Print bytes, ratios and the relative error of what one round's change is rounded to."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--architecture", default="deeplab")
    parser.add_argument("--classes", type=int, default=11)
    given = parser.parse_args()
    model = build_network(given.classes, Network(architecture=given.architecture, weights="random"), 0)
    weights, statistics = network_to_arrays(model)
    rng = np.random.default_rng(0)
    whole = payload({"weights": weights, "statistics": statistics})
    half = payload({"weights": weights, "statistics": statistics}, "float16")
    print(f"{'whole':<22} {whole / 1e6:7.2f} MB  1.000x")
    print(f"{'whole, float16':<22} {half / 1e6:7.2f} MB  {half / whole:.3f}x")
    for kind in ("float16", "int8"):
        codes: wire.Arrays = {}
        scales: wire.Arrays = {}
        lost = total = 0.0
        for key, value in weights.items():
            change = (rng.normal(size=value.shape) * 1e-3 * np.exp(rng.normal())).astype(np.float32)
            codes[key], scales[key] = encode_change(change, kind)
            lost += float(np.square(decode_change(codes[key], scales[key]) - change).sum())
            total += float(np.square(change).sum())
        size = payload({CODES: codes, SCALES: scales, "statistics": statistics})
        error = (lost / total) ** 0.5
        print(
            f"{'changes, ' + kind:<22} {size / 1e6:7.2f} MB  {size / whole:.3f}x  relative error {error:.1e}"
        )


if __name__ == "__main__":
    main()
