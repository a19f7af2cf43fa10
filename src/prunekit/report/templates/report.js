"use strict";
(() => {
  // Tooltips: the nearest marker within reach; the native <title> serves where there is no script.
  const tip = document.getElementById("tip");
  const REACH = 22;
  for (const svg of document.querySelectorAll(".card svg")) {
    const points = [...svg.querySelectorAll(".point")];
    if (!points.length) continue;
    for (const point of points) {
      const title = point.querySelector("title");
      point.dataset.tip = title.textContent;
      title.remove();
    }
    let active = null;
    const leave = () => {
      tip.hidden = true;
      active = null;
      svg.querySelectorAll(".dim").forEach((part) => part.classList.remove("dim"));
    };
    svg.addEventListener("pointermove", (event) => {
      let best = null;
      let least = REACH;
      for (const point of points) {
        if (point.classList.contains("off")) continue;
        const box = point.getBoundingClientRect();
        const far = Math.hypot(box.x + box.width / 2 - event.clientX, box.y + box.height / 2 - event.clientY);
        if (far < least) [best, least] = [point, far];
      }
      if (best === active) return;
      leave();
      if (!best) return;
      active = best;
      const box = best.getBoundingClientRect();
      tip.textContent = best.dataset.tip;
      tip.hidden = false;
      const left = Math.min(box.right + 10, document.documentElement.clientWidth - tip.offsetWidth - 8);
      tip.style.left = Math.max(8, left) + window.scrollX + "px";
      tip.style.top = box.top + window.scrollY - tip.offsetHeight - 8 + "px";
      for (const part of svg.querySelectorAll("[data-series]")) {
        part.classList.toggle("dim", part.dataset.series !== best.dataset.series);
      }
    });
    svg.addEventListener("pointerleave", leave);
  }

  // Methods on and off, in every curve at once.
  const toggles = document.getElementById("toggles");
  const drawn = new Set([...document.querySelectorAll(".card [data-series]")].map((part) => part.dataset.series));
  const rows = [...document.querySelectorAll(".methods tbody tr")].filter((row) => drawn.has(row.dataset.series));
  if (rows.length > 1) {
    for (const row of rows) {
      const label = document.createElement("label");
      const box = document.createElement("input");
      box.type = "checkbox";
      box.checked = true;
      box.addEventListener("change", () => {
        for (const part of document.querySelectorAll(`.card [data-series="${row.dataset.series}"]`)) {
          part.classList.toggle("off", !box.checked);
        }
      });
      const head = row.querySelector("th");
      label.append(box, head.querySelector(".swatch").cloneNode(true), head.querySelector(".name").textContent);
      toggles.append(label);
    }
    toggles.hidden = false;
  }

  // Tables that sort by a click on a head.
  for (const table of document.querySelectorAll("table.sortable")) {
    const heads = [...table.tHead.rows[0].cells];
    const body = table.tBodies[0];
    const value = (row, column) => {
      const cell = row.cells[column];
      const number = parseFloat(cell.dataset.key ?? cell.textContent);
      return Number.isNaN(number) ? cell.textContent : number;
    };
    heads.forEach((head, column) => {
      const button = document.createElement("button");
      button.type = "button";
      button.append(...head.childNodes);
      head.append(button);
      button.addEventListener("click", () => {
        const down = head.getAttribute("aria-sort") === "ascending";
        heads.forEach((other) => other.removeAttribute("aria-sort"));
        head.setAttribute("aria-sort", down ? "descending" : "ascending");
        const sorted = [...body.rows].sort((a, b) => {
          const [x, y] = [value(a, column), value(b, column)];
          const order = typeof x === "number" && typeof y === "number" ? x - y : String(x).localeCompare(String(y));
          return down ? -order : order;
        });
        body.append(...sorted);
      });
    });
  }
})();
