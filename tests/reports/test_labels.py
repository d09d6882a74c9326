from __future__ import annotations

import itertools
import random

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.transforms import Bbox

from reports.labels import Anchor, place_labels
from reports.style import house_style, new_figure


def test_labels_of_a_crowd_overlap_neither_each_other_nor_the_edge() -> None:
    rng = random.Random(1)
    anchors = [Anchor(rng.gauss(0, 1), rng.gauss(0, 1), f"network {i}") for i in range(20)]
    points = [(anchor.x, anchor.y) for anchor in anchors]
    with house_style():
        figure = new_figure(4.5, "footer", width_in=4.5)
        axes = figure.subplots()
        axes.plot([x for x, _ in points], [y for _, y in points], "o")
        axes.margins(0.2)
        labels = place_labels(axes, anchors, points, [(-3, 0), (3, 0)])
        canvas = figure.canvas
        assert isinstance(canvas, FigureCanvasAgg)
        figure.draw_without_rendering()
        renderer = canvas.get_renderer()
        # Text's own extent: an annotation's also holds its leader.
        boxes = [super(type(label), label).get_window_extent(renderer) for label in labels]
        inside = axes.get_window_extent(renderer).padded(2)
    assert [label.get_text() for label in labels] == [anchor.text for anchor in anchors]
    assert not [pair for pair in itertools.combinations(boxes, 2) if Bbox.intersection(*pair) is not None]
    assert all(inside.containsx(box.x0) and inside.containsx(box.x1) for box in boxes)
    assert all(inside.containsy(box.y0) and inside.containsy(box.y1) for box in boxes)
