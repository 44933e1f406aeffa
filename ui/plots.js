// Draws the run's figures into the plots that stand on the page. Gradio's own way mounts a plot anew on every change,
// which loses a person's zoom and costs a browser that watches for hours; Plotly's `react` changes only what is new.
// `page.py` runs this once; the page then hands over figures by setting `window.tailorFigures`: {plot id: figure}.
() => {
  const draw = () => {
    for (const [id, figure] of Object.entries(window.tailorFigures ?? {})) {
      const element = document.querySelector(`#plot-${id} .js-plotly-plot`);
      if (!element || !window.Plotly || element.data === figure.data) continue; // not on the page yet, or nothing new
      const block = element.closest(".block");
      if (block) block.style.display = figure.data.length || ["loss", "memory"].includes(id) ? "" : "none"; // not of this stage
      window.Plotly.react(element, figure.data, figure.layout, { responsive: true, displaylogo: false });
    }
  };
  setInterval(draw, 250);
}
