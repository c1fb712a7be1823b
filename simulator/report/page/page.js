(function () {
  "use strict";
  const charts = JSON.parse(document.getElementById("charts").textContent);
  const touch = window.matchMedia("(pointer: coarse)").matches;
  const style = {
    paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", autosize: true,
    modebar: { bgcolor: "rgba(0,0,0,0)", color: "#8a94a0", activecolor: "#2b7fbf" },
    font: { family: "system-ui, DejaVu Sans, sans-serif", size: 12 },
    dragmode: touch ? false : "zoom"
  };
  const config = {
    responsive: true, displaylogo: false, displayModeBar: touch ? false : "hover",
    modeBarButtons: [["toImage", "zoom2d", "pan2d", "resetScale2d"]], showSendToCloud: false, plotlyServerURL: ""
  };
  const elements = charts.map((chart, at) => {
    const element = document.getElementById("c" + at);
    Plotly.newPlot(element, chart.data, Object.assign({}, style, chart.layout), config);
    return element;
  });

  // paper has another width than the screen, and no resize is announced
  const PRINTED = 660;
  window.addEventListener("beforeprint", () => {
    document.querySelectorAll("details").forEach((part) => { part.dataset.was = part.open; part.open = true; });
    elements.forEach((element) => Plotly.relayout(element, { width: PRINTED, autosize: false }));
  });
  window.addEventListener("afterprint", () => {
    document.querySelectorAll("details").forEach((part) => { part.open = part.dataset.was === "true"; });
    elements.forEach((element) => Plotly.relayout(element, { width: null, autosize: true }));
  });

  // a chart of which the reader chooses what it shows
  document.querySelectorAll("select[data-chart]").forEach((choice) => {
    const groups = Array.from(choice.options, (option) => JSON.parse(option.dataset.traces));
    const element = elements[Number(choice.dataset.chart)];
    choice.addEventListener("change", () => {
      const shown = new Set(groups[choice.selectedIndex]);
      const option = choice.options[choice.selectedIndex];
      Plotly.update(element, { visible: element.data.map((_, at) => shown.has(at)) },
        { "yaxis.title.text": option.dataset.axis });
    });
  });

  const value = (cell) => {
    const number = Number(cell.textContent.replace(/,/g, ""));
    return Number.isNaN(number) || cell.textContent === "" ? cell.textContent : number;
  };
  document.querySelectorAll("table.sortable").forEach((table) => {
    const heads = Array.from(table.tHead.rows[0].cells);
    heads.forEach((head, column) => head.addEventListener("click", () => {
      const rising = head.getAttribute("aria-sort") !== "ascending";
      heads.forEach((other) => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", rising ? "ascending" : "descending");
      const order = (a, b) => {  // numbers before words, whichever way they go
        if (typeof a !== typeof b) return typeof a === "number" ? -1 : 1;
        const less = typeof a === "number" ? a - b : a.localeCompare(b, "en", { numeric: true });
        return rising ? less : -less;
      };
      const rows = Array.from(table.tBodies[0].rows);
      rows.sort((a, b) => order(value(a.cells[column]), value(b.cells[column])));
      rows.forEach((row) => table.tBodies[0].appendChild(row));
    }));
  });
})();
