#!/usr/bin/env python3
"""Draws the histograms of a simulation's result: ``python3 draw.py result/latest.safetensors result.svg`` (needs matplotlib)."""

import sys

from matplotlib.figure import Figure
from safetensors.numpy import load_file

from propeller.sdk.statistics import read_statistics


def main(model, picture):
    columns = read_statistics(load_file(model))
    figure = Figure(figsize=(8, 2.8), layout="constrained")
    for axes, (name, found) in zip(figure.subplots(1, len(columns)), columns.items(), strict=True):
        axes.stairs(found.bins, found.edges, fill=True, alpha=0.6)
        axes.axvline(found.mean, color="black", linestyle="--", label=f"mean {found.mean:.3g}")
        axes.axvline(found.quantile(0.5), color="black", label=f"median {found.quantile(0.5):.3g}")
        axes.set(xlabel=name, ylabel="records of all wards")
        axes.legend()
    figure.savefig(picture)


if __name__ == "__main__":
    main(*sys.argv[1:])
