"""Picture of the losses of a run, which stands beside its model card. One SVG file, no script."""

from math import isfinite

from core.after_training.compare.report import svg
from core.runs import Run

LOSS_PLOT = "loss.svg"
STYLE = (
    "<style>text{fill:#333;font:12px sans-serif}.grid{stroke:#ccc}"
    "@media (prefers-color-scheme:dark){text{fill:#ddd}.grid{stroke:#555}}</style>"
)
MAX_POINTS = 400
CURVES = {"loss": "training", "eval_loss": "evaluation"}
"""Curve -> what its line is called."""
COLOUR_NAMES = ("blue", "red")
"""Names of the first colours of the lines, for the text of the card."""


def loss_plot(run: Run) -> str:
    """Return the plot of the losses by step, "" if no curve has two finite points."""
    lines = _lines(run)
    if not lines:
        return ""
    return svg.standalone(svg.line_chart(lines, "step", "loss"), (), STYLE)


def loss_caption(run: Run) -> str:
    """Return "Loss by step: training (blue), evaluation (red).", "" if nothing is drawn."""
    titles = [line.title for line in _lines(run)]
    named = [f"{title} ({colour})" for title, colour in zip(titles, COLOUR_NAMES, strict=False)]
    return f"Loss by step: {', '.join(named)}." if named else ""


def _lines(run: Run) -> list[svg.PlotLine]:
    lines: list[svg.PlotLine] = []
    curves = run.curves(MAX_POINTS)
    for key, title in CURVES.items():
        curve = curves.get(key)
        if curve is None:
            continue
        pairs = zip(curve.steps, curve.values, strict=True)
        points = [(float(x), float(y)) for x, y in pairs if isfinite(y)]
        if len(points) > 1:
            lines.append(svg.PlotLine(title, svg.LINE_COLOURS[len(lines)], points))
    return lines
