"use strict";
(() => {
  // Sorting. Values that are missing stay at the end in both directions.
  for (const table of document.querySelectorAll("table.sortable")) {
    const body = table.tBodies[0];
    const heads = [...table.tHead.rows[0].cells];
    const original = [...body.rows];
    const compare = (a, b) => {
      const x = Number(a), y = Number(b);
      return Number.isNaN(x) || Number.isNaN(y) ? a.localeCompare(b, "en", { numeric: true }) : x - y;
    };
    heads.forEach((head, column) => {
      head.querySelector("button").addEventListener("click", () => {
        const order = head.getAttribute("aria-sort") === "ascending" ? "descending" : "ascending";
        heads.forEach((each) => each.removeAttribute("aria-sort"));
        head.setAttribute("aria-sort", order);
        const key = (row) => row.cells[column].dataset.sort;
        const known = original.filter((row) => key(row) !== undefined);
        const sign = order === "ascending" ? 1 : -1;
        known.sort((a, b) => sign * compare(key(a), key(b)));
        body.append(...known, ...original.filter((row) => key(row) === undefined));
      });
    });
  }

  const embedded = document.getElementById("figures");
  if (!embedded) return;
  const figures = JSON.parse(embedded.textContent);
  const plots = [...document.querySelectorAll(".plot")];
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const fine = matchMedia("(pointer: fine)").matches;
  let printing = false;

  const theme = () => {
    if (printing) return { ink: "#000000", muted: "#444444", line: "#cccccc", ground: "#ffffff" };
    const style = getComputedStyle(document.documentElement);
    const of = (name) => style.getPropertyValue("--" + name).trim();
    return { ink: of("ink"), muted: of("muted"), line: of("line"), ground: of("ground") };
  };

  // "@ink" as a colour stands for that of text.
  const coloured = (value, colours, key) => {
    if (Array.isArray(value)) return value.map((each) => coloured(each, colours, key));
    if (value && typeof value === "object")
      return Object.fromEntries(Object.entries(value).map(([k, v]) => [k, coloured(v, colours, k)]));
    return key === "color" && value === "@ink" ? colours.ink : value;
  };

  const draw = (plot) => {
    const { data, layout } = figures[Number(plot.dataset.figure)];
    const colours = theme();
    const axes = Object.fromEntries(
      Object.entries(layout)
        .filter(([name]) => /^[xy]axis\d*$/.test(name))
        .map(([name, axis]) => [
          name,
          { gridcolor: colours.line, zerolinecolor: colours.line, linecolor: colours.line, ...axis },
        ]),
    );
    const base = {
      autosize: true,
      height: plot.clientHeight,
      margin: { l: 8, r: 14, t: 10, b: 36 },
      paper_bgcolor: "rgba(0,0,0,0)",
      plot_bgcolor: "rgba(0,0,0,0)",
      font: { color: colours.ink, size: 12, family: getComputedStyle(document.body).fontFamily },
      hoverlabel: { bgcolor: colours.ground, bordercolor: colours.line, font: { color: colours.ink } },
      showlegend: false,
      // On a touch screen a drag scrolls the page.
      dragmode: fine ? "zoom" : false,
    };
    const full = { ...base, ...coloured(layout, colours), ...axes };
    full.margin = { ...base.margin, ...layout.margin };
    // The layout is still that of the screen then, which may be wider than paper.
    if (printing) full.width = Math.min(plot.clientWidth, 640);
    const config = {
      responsive: true,
      displaylogo: false,
      displayModeBar: fine ? "hover" : false,
      modeBarButtonsToRemove: ["select2d", "lasso2d"],
      scrollZoom: false,
    };
    plot.dataset.drawn = "yes";
    return Plotly.react(plot, coloured(data, colours), full, config);
  };

  const watcher = new IntersectionObserver(
    (entries) => {
      for (const entry of entries) {
        if (!entry.isIntersecting) continue;
        watcher.unobserve(entry.target);
        draw(entry.target);
      }
    },
    { rootMargin: "600px" },
  );
  plots.forEach((plot) => watcher.observe(plot));

  const redraw = () => plots.filter((plot) => plot.dataset.drawn).forEach(draw);
  dark.addEventListener("change", redraw);

  // Paper is white and has no place for what is folded away.
  let opened = [];
  addEventListener("beforeprint", () => {
    printing = true;
    opened = [...document.querySelectorAll("details:not([open])")];
    opened.forEach((each) => { each.open = true; });
    plots.forEach((plot) => { watcher.unobserve(plot); draw(plot); });
  });
  addEventListener("afterprint", () => {
    printing = false;
    opened.forEach((each) => { each.open = false; });
    redraw();
  });
})();
