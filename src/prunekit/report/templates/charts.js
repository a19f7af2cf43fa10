"use strict";
// Charts in place of the SVG figures. One line, at the sparsity of a point that was run, goes through all of
// them, the legends give what each method has there, and a click on a name hides it everywhere. Where this does
// not run, the page shows the SVG figures.
(() => {
  const data = JSON.parse(document.getElementById("charts").textContent);
  // A method is read off at its own point nearest to the line, up to this factor of compression away.
  const REACH = Math.log(data.reach);
  // Paths of the marks of matplotlib, of radius 1 about the origin; "x" is a stroke, the others are filled.
  const MARKS = {
    o: "M1 0A1 1 0 1 1-1 0A1 1 0 1 1 1 0Z",
    s: "M-.9-.9H.9V.9H-.9Z",
    "^": "M0-1.1L1.1 .9H-1.1Z",
    v: "M0 1.1L1.1-.9H-1.1Z",
    D: "M0-1.25L1.25 0 0 1.25-1.25 0Z",
    P: "M-.4-1.1H.4V-.4H1.1V.4H.4V1.1H-.4V.4H-1.1V-.4H-.4Z",
    X: "M-1.1-.6L-.6-1.1 0-.5 .6-1.1 1.1-.6 .5 0 1.1 .6 .6 1.1 0 .5-.6 1.1-1.1 .6-.5 0Z",
    p: "M0-1.1L1.05-.34 .65.9H-.65L-1.05-.34Z",
    x: "M-.9-.9L.9.9M-.9.9L.9-.9",
  };
  const RADIUS = 3.6;
  const MOST_BARS = 32; // of a curve; more would cover each other

  const figures = [];
  const hidden = new Set();
  let reading = null; // the point that the line goes through: its method and its sparsity

  function element(tag, className, text = "") {
    const made = document.createElement(tag);
    made.className = className;
    made.textContent = text;
    return made;
  }

  // A canvas knows no CSS variables: an element says what they are in the theme of the moment.
  const probe = document.body.appendChild(element("span", "probe"));
  const colors = new Map();
  function resolved(color, alpha = 1) {
    if (!colors.has(color)) {
      probe.style.color = color;
      colors.set(color, getComputedStyle(probe).color);
    }
    return alpha === 1 ? colors.get(color) : colors.get(color).replace(/^rgb\((.*)\)$/, `rgba($1, ${alpha})`);
  }

  // ---- what is read off ----

  const keyOf = (chart, line) => (chart.method === null ? "method " : "layer ") + line.name;
  const methodOf = (chart, line) => chart.method ?? line.name;
  const shown = (chart, line) => !hidden.has(keyOf(chart, line));

  // The place in a curve of the point nearest to the line, and how far it is; null where none is near.
  function readIn(curve) {
    if (reading === null) return null;
    let best = null;
    const kept = Math.log(1 - reading.sparsity);
    curve.kept ??= curve.sparsity.map((sparsity) => Math.log(1 - sparsity));
    curve.kept.forEach((other, index) => {
      const far = Math.abs(other - kept);
      if (far <= REACH && (best === null || far < best.far)) best = { index, far };
    });
    return best;
  }

  // Where the line stands in a chart: at a point of the chart itself, of the method that is read if it has one.
  function lineAt(chart) {
    let best = null;
    for (const curve of chart.curves) {
      const found = shown(chart, curve) ? readIn(curve) : null;
      if (found === null) continue;
      const own = methodOf(chart, curve) === reading.method ? 0 : 1;
      if (best === null || found.far < best.far || (found.far === best.far && own < best.own)) {
        best = { far: found.far, own, x: curve.x[found.index] };
      }
    }
    return best === null ? null : best.x;
  }

  function read(point) {
    reading = point;
    for (const figure of figures) {
      for (const chart of figure.charts) {
        if (chart.plot) moveLine(chart);
      }
      write(figure);
    }
  }

  function moveLine(chart) {
    const x = lineAt(chart);
    chart.plot.setCursor(x === null ? { left: -10, top: -10 } : { left: chart.plot.valToPos(x, "x"), top: 0 });
  }

  function write(figure) {
    const chart = figure.charts.find((each) => each.method !== null && each.method === reading?.method);
    const active = chart ?? figure.charts[0];
    for (const each of figure.charts) each.box.classList.toggle("read", reading !== null && each === chart);
    figure.said.textContent =
      reading === null ? figure.hint : `${chart ? `${chart.method}, ` : ""}${(100 * reading.sparsity).toFixed(1)}% removed`;
    for (const entry of figure.entries) {
      const line = [...active.curves, ...active.levels].find((each) => each.name === entry.name);
      const level = line && !line.x;
      const found = line && line.x ? readIn(line) : null;
      const none = reading === null ? "" : "–";
      entry.value.textContent = level ? line.value : found ? line.values[found.index] : none;
      entry.place.textContent = found ? `at ${line.places[found.index]}` : "";
    }
  }

  // The point of a chart that a pointer is nearest to: by x, and of those at the same x by y.
  function pick(chart, left, top) {
    let best = null;
    for (const curve of chart.curves) {
      if (!shown(chart, curve)) continue;
      curve.x.forEach((x, index) => {
        const apart = Math.round(Math.abs(chart.plot.valToPos(x, "x") - left));
        const above = Math.abs(chart.plot.valToPos(curve.y[index], "y") - top);
        if (best === null || apart < best.apart || (apart === best.apart && above < best.above)) {
          best = { apart, above, method: methodOf(chart, curve), sparsity: curve.sparsity[index] };
        }
      });
    }
    if (best === null || (best.method === reading?.method && best.sparsity === reading.sparsity)) return;
    read({ method: best.method, sparsity: best.sparsity });
  }

  function step(chart, by) {
    const points = new Map();
    for (const curve of chart.curves) {
      if (!shown(chart, curve)) continue;
      curve.x.forEach((x, index) => {
        const point = { method: methodOf(chart, curve), sparsity: curve.sparsity[index] };
        if (!points.has(x) || point.method === reading?.method) points.set(x, point);
      });
    }
    const places = [...points.keys()].sort((a, b) => a - b);
    if (!places.length) return;
    const line = lineAt(chart);
    const now = line === null ? (by > 0 ? -1 : places.length) : places.indexOf(line);
    read(points.get(places[Math.min(Math.max(now + by, 0), places.length - 1)]));
  }

  function toggle(key) {
    if (!hidden.delete(key)) hidden.add(key);
    for (const figure of figures) {
      for (const chart of figure.charts) {
        chart.lines.forEach((line, at) => {
          if (chart.plot && keyOf(chart, line) === key) chart.plot.setSeries(at + 1, { show: !hidden.has(key) });
        });
      }
      for (const entry of figure.entries) {
        if (entry.key === key) entry.button.setAttribute("aria-pressed", String(!hidden.has(key)));
      }
    }
    read(reading);
  }

  function emphasize(key) {
    for (const chart of figures.flatMap((figure) => figure.charts)) {
      if (!chart.plot) continue;
      const at = chart.lines.findIndex((line) => keyOf(chart, line) === key);
      chart.plot.setSeries(at < 0 ? null : at + 1, { focus: true });
    }
  }

  // ---- drawing ----

  const path = (stroke, fill) => ({ stroke, fill, clip: null, band: null, gaps: null, flags: 0 });

  function curvePath(plot, chart, curve) {
    const [stroke, fill] = [new Path2D(), new Path2D()];
    const least = chart.y.log ? chart.y.low / 2 : -Infinity; // a spread may reach below zero
    const at = curve.x.map((x, index) => [
      plot.valToPos(x, "x", true),
      ...[0, 1, -1].map((side) =>
        plot.valToPos(Math.max(curve.y[index] + side * curve.sd[index], least), "y", true),
      ),
    ]);
    at.forEach(([x, y]) => stroke.lineTo(x, y));
    if (chart.bands && at.length > 1) {
      at.forEach(([x, , high]) => fill.lineTo(x, high));
      [...at].reverse().forEach(([x, , , low]) => fill.lineTo(x, low));
    } else {
      const width = uPlot.pxRatio;
      const every = Math.ceil(at.length / MOST_BARS);
      at.forEach(([x, , high, low], index) => {
        if (index % every === 0) fill.rect(x - width / 2, high, width, low - high);
      });
    }
    return path(stroke, fill);
  }

  function levelPath(plot, level) {
    const { left, width } = plot.bbox;
    const [low, y, high] = [-1, 0, 1].map((side) => plot.valToPos(level.y + side * level.sd, "y", true));
    const [stroke, fill] = [new Path2D(), new Path2D()];
    stroke.moveTo(left, y);
    stroke.lineTo(left + width, y);
    if (level.sd > 0 && Number.isFinite(low)) fill.rect(left, high, width, low - high);
    return path(stroke, fill);
  }

  // Marks of a curve; hollow ones at the edge for points beyond it.
  function drawMarks(plot, chart, curve) {
    if (!curve.marked || !MARKS[curve.look.marker]) return;
    const { ctx } = plot;
    const color = resolved(curve.look.color);
    const { top, height } = plot.bbox;
    curve.x.forEach((x, index) => {
      const y = plot.valToPos(curve.y[index], "y", true);
      const beyond = y < top - 1 || y > top + height + 1;
      const mark = beyond ? (y < top ? "^" : "v") : curve.look.marker;
      const radius = (chart.method === null ? RADIUS : 2) * uPlot.pxRatio;
      ctx.save();
      const edge = Math.min(Math.max(y, top + radius), top + height - radius);
      ctx.translate(plot.valToPos(x, "x", true), beyond ? edge : y);
      ctx.scale(radius, radius);
      ctx.setLineDash([]);
      ctx.lineWidth = (mark === "x" || beyond ? 1.5 : 0.7) * uPlot.pxRatio / radius;
      ctx.strokeStyle = mark === "x" || beyond ? color : resolved("var(--card)");
      ctx.fillStyle = beyond ? resolved("var(--card)") : color;
      const outline = new Path2D(MARKS[mark]);
      if (mark !== "x") ctx.fill(outline);
      ctx.stroke(outline);
      ctx.restore();
    });
  }

  function drawDiagonal(plot) {
    const { ctx, bbox } = plot;
    ctx.save();
    ctx.beginPath();
    ctx.rect(bbox.left, bbox.top, bbox.width, bbox.height);
    ctx.clip();
    ctx.beginPath();
    for (const end of [0, 100]) ctx.lineTo(plot.valToPos(end, "x", true), plot.valToPos(end, "y", true));
    ctx.setLineDash([4 * uPlot.pxRatio, 3 * uPlot.pxRatio]);
    ctx.lineWidth = uPlot.pxRatio;
    ctx.strokeStyle = resolved("var(--soft)");
    ctx.stroke();
    ctx.restore();
  }

  // The ticks of the SVG figure, of which those that would touch have no text.
  function axisOf(spec, side) {
    const texts = new Map(spec.ticks);
    const longest = Math.max(...spec.ticks.map(([, text]) => text.length));
    const stroke = () => resolved("var(--soft)");
    return {
      scale: side,
      stroke,
      font: "12px system-ui, -apple-system, 'Segoe UI', Roboto, 'Liberation Sans', sans-serif",
      size: side === "x" ? 28 : 16 + 7 * longest,
      gap: 4,
      grid: { stroke: () => resolved("var(--line)"), width: 1 },
      ticks: { stroke: () => resolved("var(--line)"), width: 1, size: 5 },
      splits: () => spec.ticks.map(([value]) => value),
      filter: (plot, splits) => {
        let last = null;
        return splits.map((value) => {
          const at = plot.valToPos(value, side);
          const room = side === "x" ? 8 + 7 * Math.max(3, texts.get(value).length) : 16;
          if (last !== null && Math.abs(at - last) < room) return null;
          last = at;
          return value;
        });
      },
      values: (_, splits) => splits.map((value) => (value === null ? "" : texts.get(value))),
    };
  }

  const scaleOf = (spec) => ({ time: false, distr: spec.log ? 3 : 1, range: [spec.low, spec.high] });

  // The points of all curves in the order of x. uPlot has one x for all: a curve has nothing at those of others.
  function alignedData(chart) {
    const columns = new Map();
    chart.curves.forEach((curve, line) => {
      const seen = new Map();
      curve.x.forEach((x, index) => {
        const before = seen.get(x) ?? 0; // a curve may have several points at one x
        seen.set(x, before + 1);
        const key = `${x} ${before}`;
        if (!columns.has(key)) columns.set(key, { x, before, points: [] });
        columns.get(key).points[line] = index;
      });
    });
    const sorted = [...columns.values()].sort((a, b) => a.x - b.x || a.before - b.before);
    chart.curves.forEach((curve, line) => {
      curve.columns = [];
      sorted.forEach(({ points }, column) => {
        if (points[line] !== undefined) curve.columns[points[line]] = column;
      });
    });
    return [
      sorted.map(({ x }) => x),
      ...chart.curves.map((curve, line) => sorted.map(({ points }) => curve.y[points[line]] ?? null)),
      ...chart.levels.map((level) => sorted.map(() => level.y)),
    ];
  }

  function seriesOf(chart, line) {
    const level = !line.x;
    const alpha = level ? 0.1 : chart.bands ? 0.14 : 0.7;
    return {
      label: line.name,
      show: shown(chart, line),
      stroke: () => resolved(line.look.color),
      fill: () => resolved(line.look.color, alpha),
      width: line.look.width,
      dash: line.look.dash,
      points: { show: false },
      paths: (plot) => (level ? levelPath(plot, line) : curvePath(plot, chart, line)),
    };
  }

  // The column of the point that is read in a curve, where there is one within the axis.
  function columnRead(chart, line) {
    const found = line && line.x ? readIn(line) : null;
    if (found === null) return null;
    const y = line.y[found.index];
    return y >= chart.y.low && y <= chart.y.high ? line.columns[found.index] : null;
  }

  const heightOf = (chart, width) =>
    chart.method === null ? Math.min(Math.max(0.62 * width, 260), 430) : Math.min(Math.max(0.72 * width, 170), 230);

  function draw(chart, width) {
    const silent = () => null; // pointers are followed here
    const options = {
      width,
      height: heightOf(chart, width),
      padding: [10, 14, 0, 0],
      legend: { show: false },
      focus: { alpha: 0.2 },
      cursor: {
        y: false,
        drag: { x: false, y: false, setScale: false },
        points: {
          size: 11,
          width: 2,
          fill: "var(--card)",
          stroke: (_, at) => chart.lines[at - 1].look.color,
        },
        dataIdx: (_, at, column) => (at === 0 ? column : columnRead(chart, chart.lines[at - 1])),
        bind: Object.fromEntries(
          ["mousedown", "mouseup", "click", "dblclick", "mousemove", "mouseleave", "mouseenter"].map((name) => [name, silent]),
        ),
      },
      scales: { x: scaleOf(chart.x), y: scaleOf(chart.y) },
      axes: [axisOf(chart.x, "x"), axisOf(chart.y, "y")],
      series: [{}, ...chart.lines.map((line) => seriesOf(chart, line))],
      hooks: {
        draw: [() => (chart.ready = true)],
        drawAxes: [(plot) => chart.diagonal && drawDiagonal(plot)],
        drawSeries: [(plot, at) => at <= chart.curves.length && drawMarks(plot, chart, chart.lines[at - 1])],
      },
    };
    chart.plot = new uPlot(options, alignedData(chart), chart.box);
    const { over } = chart.plot;
    let last = null; // where the pointer is; it may move more often than anything is drawn
    const follow = (event) => {
      if (last === null) {
        requestAnimationFrame(() => {
          if (last === null) return;
          const area = over.getBoundingClientRect();
          pick(chart, last.clientX - area.x, last.clientY - area.y);
          last = null;
        });
      }
      last = event;
    };
    over.addEventListener("pointermove", follow);
    over.addEventListener("pointerdown", follow);
    over.addEventListener("pointerleave", (event) => {
      if (event.pointerType !== "mouse") return;
      last = null;
      read(null);
    });
  }

  const KEYS = { ArrowLeft: -1, ArrowRight: 1, Home: -Infinity, End: Infinity };

  function listen(chart) {
    chart.box.addEventListener("keydown", (event) => {
      if (event.key === "Escape") read(null);
      else if (event.key in KEYS) step(chart, KEYS[event.key]);
      else return;
      event.preventDefault();
    });
  }

  // ---- a figure ----

  function swatch(look) {
    const drawing = document.createElementNS("http://www.w3.org/2000/svg", "svg");
    drawing.setAttribute("class", "swatch");
    drawing.setAttribute("viewBox", "0 0 22 8");
    drawing.setAttribute("aria-hidden", "true");
    const part = (shape, style) => {
      const made = document.createElementNS(drawing.namespaceURI, "path");
      made.setAttribute("d", shape);
      made.style.cssText = style;
      drawing.append(made);
      return made;
    };
    part("M1 4H21", `stroke:${look.color};stroke-width:1.8;stroke-dasharray:${look.dash.join(" ") || "none"}`);
    if (look.marker) {
      const style = look.marker === "x" ? `stroke:${look.color};stroke-width:.5` : `fill:${look.color};stroke:none`;
      part(MARKS[look.marker], style).setAttribute("transform", "translate(11 4) scale(3)");
    }
    return drawing;
  }

  function entryOf(line, key) {
    const button = element("button", "entry");
    button.type = "button";
    button.setAttribute("aria-pressed", "true");
    const [value, place] = [element("span", "value"), element("span", "place")];
    const pair = element("span", "pair");
    pair.append(value, place);
    button.append(swatch(line.look), element("span", "name", line.name), pair);
    button.addEventListener("click", () => toggle(key));
    for (const name of ["pointerenter", "focus"]) button.addEventListener(name, () => emphasize(key));
    for (const name of ["pointerleave", "blur"]) button.addEventListener(name, () => emphasize(null));
    return { name: line.name, key, button, value, place };
  }

  function build({ name, charts }) {
    const card = document.querySelector(`#${CSS.escape(name)} .card`);
    const title = document.querySelector(`#${CSS.escape(name)} h3`).textContent;
    const holder = element("div", "chart");
    const panels = element("div", charts.length > 1 || charts[0].method !== null ? "panels" : "panel");
    const legend = element("div", "legend");
    const figure = { charts, entries: [], said: element("p", "said"), hint: "Point at a chart, tap it, or use the arrow keys." };
    legend.setAttribute("role", "group");
    legend.setAttribute("aria-label", `Curves of: ${title}`);
    legend.append(figure.said);
    for (const chart of charts) {
      chart.lines = [...chart.curves, ...chart.levels];
      chart.box = element("div", "plot");
      chart.box.tabIndex = 0;
      chart.box.setAttribute("role", "group");
      chart.box.setAttribute("aria-label", `${title}${chart.method ? `: ${chart.method}` : ""}. The arrow keys read points off.`);
      if (chart.method !== null) chart.box.append(element("div", "of", chart.method));
      panels.append(chart.box);
      listen(chart);
      for (const line of chart.lines) {
        const key = keyOf(chart, line);
        if (figure.entries.some((entry) => entry.key === key)) continue;
        figure.entries.push(entryOf(line, key));
      }
    }
    legend.append(...figure.entries.map(({ button }) => button));
    const drawing = element("div", "drawing");
    drawing.append(element("div", "y-label", charts[0].y.label), panels, element("div", "x-label", charts[0].x.label));
    holder.append(drawing, legend);

    card.append(holder);
    card.classList.add("drawn");
    card.removeAttribute("tabindex"); // it does not scroll
    figures.push(figure);
    write(figure);
    // A chart is drawn once it has a width: those in a closed <details> have none.
    const sizes = new ResizeObserver((entries) => {
      for (const entry of entries) {
        const chart = charts.find((each) => each.box === entry.target);
        const width = Math.floor(entry.contentRect.width);
        if (!width || chart.plot?.width === width) continue;
        if (chart.plot) {
          chart.plot.setSize({ width, height: heightOf(chart, width) });
          moveLine(chart);
          continue;
        }
        // uPlot draws after this, so that not all that fails is caught here
        setTimeout(() => chart.ready || giveUp());
        draw(chart, width);
        moveLine(chart);
      }
    });
    const giveUp = () => {
      if (!figures.includes(figure)) return;
      sizes.disconnect();
      figures.splice(figures.indexOf(figure), 1);
      holder.remove();
      card.classList.remove("drawn");
      console.warn(`${name}: shown as SVG`);
    };
    for (const chart of charts) sizes.observe(chart.box);
  }

  for (const figure of data.figures) build(figure);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
    colors.clear();
    for (const chart of figures.flatMap((figure) => figure.charts)) chart.plot?.redraw(false);
  });
})();
