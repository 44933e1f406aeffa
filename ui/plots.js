// Draws the figures of a run into the plots of the page. Gradio would build a plot again at every change, which loses the
// zoom and costs a browser that watches for hours; Plotly's `react` changes only what is new.
// ui/page.py hands figures over by setting `window.tailorFigures`: {plot id: figure}.
() => {
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
      element.style.height = `${figure.layout.height}px`;
      if (element.data !== figure.data) {
        window.Plotly.react(element, figure.data, figure.layout, { responsive: true, displaylogo: false });
      }
      const drawn = element.querySelector(".main-svg");
      const isOtherWidth = drawn && Math.abs(drawn.clientWidth - element.clientWidth) > 1;
      if (isOtherWidth) window.Plotly.Plots.resize(element);
    }
  };
  setInterval(draw, 250);
}
