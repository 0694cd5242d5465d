"""Figures with what they were measured with below them, as files."""

import textwrap
from pathlib import Path

import matplotlib.pyplot as plt
from matplotlib.figure import Figure

LETTERS_PER_INCH = 17  # of a caption


def save(figure: Figure, path: Path, caption: str) -> None:
    """A PNG with the caption below; its folder is made. Raises OSError."""
    words = textwrap.fill(caption, int(LETTERS_PER_INCH * figure.get_figwidth()))
    figure.supxlabel(words, fontsize=7.5, color="0.35", x=0.01, ha="left")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
    plt.close(figure)
