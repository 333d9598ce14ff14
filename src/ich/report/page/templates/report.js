"use strict";
(async () => {
  const charts = JSON.parse(document.getElementById("charts").textContent);
  for (const [id, figure] of Object.entries(charts)) {
    const place = document.querySelector(`#chart-${id} .plot`);
    await Plotly.newPlot(place, figure.data, figure.layout, { responsive: true, displaylogo: false });
    document.getElementById(`chart-${id}`).dataset.drawn = "true";
  }
  const data = document.getElementById("viewer-data");
  if (data) window.studyViewer(document.getElementById("viewer"), JSON.parse(data.textContent));
  document.body.dataset.ready = "true";
})();
