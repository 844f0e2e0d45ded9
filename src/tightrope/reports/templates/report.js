"use strict";
(() => {
  const root = document.documentElement;
  const figures = JSON.parse(document.getElementById("figures").textContent);
  const said = document.getElementById("said");
  const narrow = matchMedia("(max-width: 40rem)");
  const touch = matchMedia("(pointer: coarse)").matches;
  const plots = [...document.querySelectorAll(".plot")];

  // --------------------------------------------------------------------------------------- charts and their colours

  const css = (name) => getComputedStyle(root).getPropertyValue(name).trim();

  /** A trace with the colours of the theme; its tint is a number of the palette. */
  const coloured = ({ tint, ...trace }) => {
    if (tint === undefined) return trace;
    const found = css(tint === "muted" ? "--muted" : `--tint-${tint}`);
    const made = { ...trace, line: { ...trace.line, color: found } };
    if (trace.marker) made.marker = { ...trace.marker, color: found, line: { color: css("--back"), width: 1 } };
    if (trace.fill) made.fillcolor = `${found}33`;
    for (const error of ["error_x", "error_y"]) {
      if (trace[error]) made[error] = { ...trace[error], color: found };
    }
    return made;
  };

  const themed = (layout, height) => {
    const axis = { gridcolor: css("--grid"), zerolinecolor: css("--line"), linecolor: css("--line") };
    const font = { color: css("--text") };
    const clear = "rgba(0,0,0,0)";
    return {
      ...layout,
      height,
      paper_bgcolor: clear,
      plot_bgcolor: clear,
      dragmode: touch ? false : "zoom",
      font: { ...font, family: getComputedStyle(document.body).fontFamily, size: narrow.matches ? 11 : 13 },
      hoverlabel: { bgcolor: css("--raised"), bordercolor: css("--line"), font, align: "left", namelength: -1 },
      modebar: { bgcolor: clear, color: css("--muted"), activecolor: css("--link") },
      xaxis: { ...axis, ...layout.xaxis },
      yaxis: { ...axis, ...layout.yaxis },
    };
  };

  const config = {
    responsive: true,
    displaylogo: false,
    displayModeBar: true,
    modeBarButtons: [["zoomIn2d", "zoomOut2d", "resetScale2d", "toImage"]],
    toImageButtonOptions: { scale: 2 },
  };

  const draw_one = async (plot) => {
    const { data, layout, height } = figures[plot.id];
    const width = root.classList.contains("printing") ? plot.clientWidth : undefined;
    await Plotly.react(plot, data.map(coloured), { ...themed(layout, height), width }, config);
    for (const button of plot.querySelectorAll(".modebar-btn")) {
      button.tabIndex = 0;
      button.setAttribute("role", "button");
      button.setAttribute("aria-label", button.dataset.title || "");
    }
  };

  const draw = () => Promise.all(plots.map(draw_one));

  // ----------------------------------------------------------------------------------------- charts by keyboard

  const places = new WeakMap();

  /** To another point of a line, or to another line: shown, and said. */
  const step = (plot, along, across) => {
    const lines = plot.data.map((trace, index) => [trace, index]).filter(([trace]) => trace.hoverinfo !== "skip");
    if (!lines.length) return;
    const place = places.get(plot) || { line: 0, point: along > 0 ? -1 : 0 };
    place.line = (place.line + across + lines.length) % lines.length;
    const [trace, curve] = lines[place.line];
    place.point = Math.min(Math.max(place.point + along, 0), trace.x.length - 1);
    places.set(plot, place);
    Plotly.Fx.hover(plot, [{ curveNumber: curve, pointNumber: place.point }]);
    const { point } = place;
    const words = Array.isArray(trace.text) ? trace.text[point] : `${trace.name}: ${trace.x[point]}, ${trace.y[point]}`;
    said.textContent = plain(words);
  };

  const marks = { "<br>": ", ", "&lt;": "<", "&gt;": ">", "&#36;": "$", "&amp;": "&" };
  const plain = (text) => text.replace(/<br>|&lt;|&gt;|&#36;|&amp;/g, (mark) => marks[mark]);

  const zoom = (plot, factor) => {
    const change = {};
    for (const name of ["xaxis", "yaxis"]) {
      const [low, high] = plot._fullLayout[name].range;
      const middle = (low + high) / 2;
      const half = ((high - low) / 2) * factor;
      change[`${name}.range`] = [middle - half, middle + half];
    }
    Plotly.relayout(plot, change);
  };

  const keys = {
    ArrowRight: (plot) => step(plot, 1, 0),
    ArrowLeft: (plot) => step(plot, -1, 0),
    ArrowDown: (plot) => step(plot, 0, 1),
    ArrowUp: (plot) => step(plot, 0, -1),
    "+": (plot) => zoom(plot, 0.6),
    "=": (plot) => zoom(plot, 0.6),
    "-": (plot) => zoom(plot, 1 / 0.6),
    0: draw_one,
  };

  const on_key = (event) => {
    const { target, currentTarget, key } = event;
    if (target.matches(".modebar-btn") && (key === "Enter" || key === " ")) {
      event.preventDefault();
      target.dispatchEvent(new MouseEvent("click", { bubbles: true }));
    } else if (target === currentTarget && keys[key] && !event.ctrlKey && !event.metaKey && !event.altKey) {
      event.preventDefault();
      keys[key](currentTarget);
    }
  };

  for (const plot of plots) {
    plot.addEventListener("keydown", on_key);
    plot.addEventListener("blur", () => Plotly.Fx.unhover(plot));
  }

  // ------------------------------------------------------------------------------------------------------ tables

  const value = (row, column) => {
    const cell = row.cells[column];
    return cell.dataset.key === undefined ? cell.textContent.trim() : Number(cell.dataset.key);
  };

  /** Numbers before words. */
  const order = (one, other) => {
    if (typeof one !== typeof other) return typeof one === "number" ? -1 : 1;
    return typeof one === "number" ? one - other : one.localeCompare(other, "en", { numeric: true });
  };

  const sort = (head) => {
    const table = head.closest("table");
    const column = head.cellIndex;
    const descending = head.getAttribute("aria-sort") === "ascending";
    for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", descending ? "descending" : "ascending");
    const rows = [...table.tBodies[0].rows];
    rows.sort((one, other) => (descending ? -1 : 1) * order(value(one, column), value(other, column)));
    table.tBodies[0].append(...rows);
  };

  for (const button of document.querySelectorAll("thead button")) {
    button.addEventListener("click", () => sort(button.closest("th")));
  }

  /** Boxes that scroll are reached by keyboard; others need not be. */
  const scrollable = () => {
    for (const box of document.querySelectorAll(".scroll, pre")) {
      if (box.scrollWidth > box.clientWidth || box.scrollHeight > box.clientHeight) box.tabIndex = 0;
      else box.removeAttribute("tabindex");
    }
  };

  addEventListener("resize", scrollable);
  for (const details of document.querySelectorAll("details")) details.addEventListener("toggle", scrollable);

  // ---------------------------------------------------------------------------------------- theme and printing

  const button = document.getElementById("theme");
  const system = matchMedia("(prefers-color-scheme: dark)");
  let chosen = null;

  const show = (theme) => {
    root.dataset.theme = theme;
    button.textContent = theme === "dark" ? "Light theme" : "Dark theme";
    return draw();
  };
  const current = () => chosen || (system.matches ? "dark" : "light");

  button.addEventListener("click", () => {
    chosen = current() === "dark" ? "light" : "dark";
    show(chosen);
  });
  system.addEventListener("change", () => show(current()));
  narrow.addEventListener("change", draw);

  let closed = [];
  addEventListener("beforeprint", () => {
    // The numbers of a chart are printed only if the reader has opened them.
    closed = [...document.querySelectorAll("details:not([open])")].filter((details) => !details.closest(".chart"));
    for (const details of closed) details.open = true;
    root.classList.add("printing"); // charts are drawn for the width of a page
    show("light");
  });
  addEventListener("afterprint", () => {
    for (const details of closed) details.open = false;
    root.classList.remove("printing");
    show(current());
  });

  scrollable();
  show(current()).then(() => {
    root.dataset.drawn = "true";
  });
})();
