// Draws the figures of a run into the plots of the page. Gradio would build a plot again at every change, which loses the
// zoom and costs a browser that watches for hours; Plotly's `react` changes only what is new.
// ui/page.py hands figures over by setting `window.tailorFigures`: {plot id: figure}.
() => {
  // On a phone each name of the legend has a line of its own, which would take its room from the plot.
  const heightOf = (figure, width) => {
    const named = [...figure.data, ...(figure.layout.shapes ?? []).filter(each => each.showlegend)];
    const numLines = figure.layout.showlegend && width < 500 ? Math.max(0, named.length - 2) : 0;
    return figure.layout.height + 19 * numLines;
  };
  const draw = () => {
    const figures = window.tailorFigures;
    if (!figures || !window.Plotly) return;
    for (const element of document.querySelectorAll("[id^=plot-] .js-plotly-plot")) {
      const place = element.closest("[id^=plot-]");
      const figure = figures[place.id.slice("plot-".length)];
      const block = element.closest(".block");
      if (block) block.style.display = figure ? "" : "none"; // the run has no such metrics
      if (!figure || !element.offsetParent) continue; // in a closed accordion or tab: drawn once it is open
      // Plotly fills the height of its element, which has none if it was first drawn while hidden.
      const height = heightOf(figure, element.clientWidth);
      element.style.height = `${height}px`;
      if (element.data !== figure.data) {
        const layout = { ...figure.layout, height };
        window.Plotly.react(element, figure.data, layout, { responsive: true, displaylogo: false });
      }
      const drawn = element.querySelector(".main-svg");
      const isOtherWidth = drawn && Math.abs(drawn.clientWidth - element.clientWidth) > 1;
      if (isOtherWidth) window.Plotly.Plots.resize(element);
      // A legend that has other lines than before stands where the last layout had room for it: lay out once more.
      const width = `${element.clientWidth}`;
      if (element.dataset.width && element.dataset.width !== width) {
        window.Plotly.relayout(element, { height, autosize: true });
      }
      element.dataset.width = width;
    }
  };
  setInterval(draw, 250);
}
