// Draws the run's figures into the plots that stand on the page. Gradio's own way mounts a plot anew on every change,
// which loses a person's zoom and costs a browser that watches for hours; Plotly's `react` changes only what is new.
// `page.py` runs this once; the page then hands over figures by setting `window.tailorFigures`: {plot id: figure}.
() => {
  const draw = () => {
    const figures = window.tailorFigures;
    if (!figures || !window.Plotly) return;
    for (const element of document.querySelectorAll("[id^=plot-] .js-plotly-plot")) {
      const place = element.closest("[id^=plot-]");
      const figure = figures[place.id.slice("plot-".length)];
      const block = element.closest(".block");
      if (block) block.style.display = figure ? "" : "none"; // this run has no such numbers
      if (!figure || element.data === figure.data) continue; // nothing new
      if (!element.offsetParent) continue; // folded away: drawn when it is opened
      window.Plotly.react(element, figure.data, figure.layout, { responsive: true, displaylogo: false });
    }
  };
  setInterval(draw, 250);
}
